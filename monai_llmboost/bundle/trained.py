# SPDX-License-Identifier: Apache-2.0
"""The record of a trained folder: ``model.json`` next to ``model.pt``, which describes the trained network.

The file is an overlay for ``evaluate.json`` and ``inference.json``: its keys are those that the ``network_def`` of the
training and its ``preprocess`` refer to, with their values, and the names of the classes. Its key
``_trained_`` is no config, and describes the training: format, bundle, arm, data set, block, preprocessing, versions,
and the digest of ``model.pt``.

Like a bundle's configs, the overlay contains expressions that MONAI evaluates: use folders only from people whose
configs you would run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from monai_llmboost.artifacts.digests import file_digest
from monai_llmboost.artifacts.files import atomic_text
from monai_llmboost.bundle.content import merged, read_config, value_at
from monai_llmboost.bundle.contract import (
    ARMS,
    CLASS_NAMES,
    CONFIGS,
    EVALUATED_CASES,
    INPUT_COLUMNS,
    LABEL_VALUES,
    METADATA,
    MODEL_RECORD,
    NETWORK_DEF,
    NETWORKS,
    PREPROCESS,
    TRAINED,
    Option,
)
from monai_llmboost.bundle.effect import reached_from
from monai_llmboost.bundle.find import arms_of, networks_of
from monai_llmboost.bundle.identity import FREE, FREE_IN_TRAINING, as_plain
from monai_llmboost.bundle.missing_block import MissingBlockError
from monai_llmboost.bundle.words import is_computed, literal, plain_text

FORMAT = 1
# A folder of checkpoints as bundles' configs write it, such as `$@bundle_root + '/models'`.
BELOW_ROOT = re.compile(r"\$@bundle_root \+ '/([\w./-]+)'")
BEST = "model.pt"
# Keys that are not recorded, because each run has its own.
OF_A_RUN = {*FREE, Option.COMPUTE_DTYPE} - {Option.BLOCK}
# Values of `block` that name no file.
BLOCK_WORDS = ("embedded", "random")


def trained_config(
    config: Mapping[str, Any], class_names: Sequence[str], label_values: Sequence[int] = ()
) -> dict[str, Any]:
    """Return the keys of a training's merged config that its network and its input are made of.

    Args:
        config: from :func:`monai_llmboost.bundle.running_config`.
        class_names: names of the classes, which replace the component that found them.
        label_values: values of the structures in label maps; likewise.

    Raises:
        ValueError: there is no network, or it refers to a Python object or to the key ``dataset``, which means
            something else in inference.
    """
    if NETWORK_DEF not in config:
        raise ValueError(f"the config has no key {NETWORK_DEF!r}")
    tree = dict(config)
    if CLASS_NAMES in tree and class_names:
        tree[CLASS_NAMES] = [_encoded(name) for name in class_names]
    if LABEL_VALUES in tree and label_values:
        tree[LABEL_VALUES] = list(label_values)
    if (file := block_file(config)) is not None:
        tree[Option.BLOCK] = _encoded(str(file))
    if Option.ENCODER_WEIGHTS in tree:  # the checkpoint has them as they were trained further
        tree[Option.ENCODER_WEIGHTS] = None
    entries = [key for key in (NETWORK_DEF, PREPROCESS, *INPUT_COLUMNS) if key in tree]
    keys = _tops(tree, entries) - OF_A_RUN
    if Option.DATASET in keys:
        raise ValueError(f"the network refers to the key {Option.DATASET!r}, which means the scans in inference")
    return {key: _as_config(key, tree[key]) for key in tree if key in keys}


def trained_data(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain options of a training's merged config that its validation cases are made of, as text."""
    reached = reached_from(config, [EVALUATED_CASES]) & config.keys()
    keys = sorted(reached - ({*FREE, *FREE_IN_TRAINING} - {Option.DATASET_DIR, Option.DATA}))
    found = {key: plain_text(config[key]) if isinstance(config[key], str) else config[key] for key in keys}
    for key in (Option.DATASET_DIR, Option.DATA):
        if isinstance(place := found.get(key), str) and not place.startswith(("~", "$", "@", "%")):
            found[key] = str(Path(place).absolute())
    plain = (str, int, float, bool)
    return {key: value for key, value in found.items() if isinstance(value, plain) and not is_computed(value)}


def block_file(config: Mapping[str, Any]) -> Path | None:
    """Return the absolute path of the block file of a merged config; ``None`` if its block is not a file."""
    block = config.get(Option.BLOCK)
    text = plain_text(block) if isinstance(block, str) else block
    if not isinstance(text, (str, Path)) or str(text) in BLOCK_WORDS or is_computed(text):
        return None
    return path.absolute() if (path := Path(text)).is_file() else None


def _tops(tree: Mapping[str, Any], entries: Iterable[str]) -> set[str]:
    """Return the top-level keys that entries refer to; each counts as a whole."""
    known: set[str] = set()
    todo = {*entries}
    while todo:
        tops = {one.partition("#")[0] for one in reached_from(tree, todo)} & tree.keys()
        known, todo = known | tops, tops - known
    return known


def _encoded(text: str) -> str:
    return literal(text) if is_computed(text) or "#" in text else text


def _as_config(key: str, value: Any) -> Any:
    """Return a value of a config as JSON, with torch's dtypes and devices as expressions."""
    if isinstance(value, Mapping):
        return {str(name): _as_config(f"{key}#{name}", part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_config(f"{key}#{number}", part) for number, part in enumerate(value)]
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if kind == "torch.dtype":
        return f"${value}"
    if kind == "torch.device":
        return f"$torch.device('{value}')"
    try:
        plain = as_plain(value)
    except TypeError as error:
        raise ValueError(f"{key} is an object of Python ({kind})") from error
    if isinstance(plain, (Mapping, list)):  # a dataclass
        raise ValueError(f"{key} is an object of Python ({kind})")
    return plain


@dataclass(frozen=True)
class TrainedFolder:
    """The record of a trained folder.

    Args:
        file: its ``model.json``.
        content: the content of the file.

    Example:
        >>> TrainedFolder.read(Path("nowhere")) is None  # a folder of an earlier version, or without a training
        True
    """

    file: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> TrainedFolder | None:
        """Read the record of a folder of checkpoints; ``None`` without one.

        Raises:
            ValueError: invalid JSON, not a record, of a later version, or not of the ``model.pt`` next to it.
        """
        file = folder / MODEL_RECORD
        return cls.of(file) if file.is_file() else None

    @classmethod
    def of(cls, file: Path) -> TrainedFolder:
        """Read a record; see :meth:`read`."""
        content = read_config(file)
        about = content.get(TRAINED)
        number = about.get("format") if isinstance(about, Mapping) else None
        if not isinstance(number, int) or NETWORK_DEF not in content:
            raise ValueError(
                f"{file} describes no trained network: put back the file that the training wrote, or remove it and "
                "give the options of the training"
            )
        if number > FORMAT:
            raise ValueError(
                f"{file} has the format {number}, and this version of monai-llmboost reads {FORMAT}: install a later "
                "version"
            )
        record = cls(file, content)
        record._check_digest()
        return record

    def _check_digest(self) -> None:
        weights, digest = self.file.with_name(BEST), self.about.get("weights_sha256")
        if weights.is_file() and (there := file_digest(weights)) != digest:
            raise ValueError(
                f"{self.file} does not belong to {weights}: it describes weights with the sha256 "
                f"{str(digest)[:12] or '(none yet)'}, and the file, which has {there[:12]}, was replaced or damaged; "
                f"put back the two files of one training (resume it if it was interrupted), or remove {self.file.name} "
                "and give its options"
            )

    @property
    def about(self) -> Mapping[str, Any]:
        """The description of the training."""
        return self.content[TRAINED]

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of the network's output."""
        return [str(name) for name in self.about.get("class_names", ())]

    @cached_property
    def data(self) -> dict[str, Any]:
        """The options of the data of the training, such as ``dataset`` and ``folds``."""
        return dict(self.about.get("data") or {})

    @property
    def block_file(self) -> Path | None:
        """The block file of the training; ``None`` if its block needs none."""
        file = (self.about.get("block") or {}).get("file")
        return None if file is None else Path(file)

    def choose(self, bundle: Path, arm: str | None, network: str | None) -> tuple[str | None, str | None]:
        """Return the arm and the network of the training, as far as the bundle has them.

        Raises:
            ValueError: another arm, network or bundle than in the training.
        """
        name, own = self.about.get("bundle"), read_config(bundle / CONFIGS / METADATA).get("name")
        if name and own and name != own:
            raise ValueError(
                f"{self.file} was written by the bundle {name!r}, and {bundle} is {own!r}: give the --bundle of the "
                "training, or another --ckpt_dir"
            )
        arm = self._chosen("arm", bundle / CONFIGS / ARMS, arm, arms_of(bundle))
        return arm, self._chosen("network", bundle / CONFIGS / NETWORKS, network, networks_of(bundle))

    def _chosen(self, kind: str, folder: Path, given: str | None, known: Sequence[str]) -> str | None:
        trained = self.about.get(kind)
        if given is None or given not in known:  # job_configs reports an unknown name
            return trained if given is None and trained in known else given
        if kind in self.about:
            differs = given != trained
        else:  # a training by `python -m monai.bundle run`, whose overlays are not known by name
            differs = self._lacks(read_config(folder / f"{given}.json"))
        if differs:
            own = f"--{kind} {trained}" if trained else f"no --{kind}" if kind in self.about else f"another {kind}"
            raise ValueError(
                f"--{kind} {given} contradicts {self.file}: its network was trained with {own}; leave out --{kind}, or "
                "give the --ckpt_dir of the other training"
            )
        return given

    def _lacks(self, overlay: Mapping[str, Any]) -> bool:
        """Return whether the trained network has other components than an overlay gives it."""
        for key, value in overlay.items():
            there = value_at(self.content, key)
            if value is None and there is not None:
                return True
            if isinstance(value, Mapping) and not (isinstance(there, Mapping) and value.items() <= there.items()):
                return True
        return False

    def check_block(self, options: Mapping[str, Any]) -> None:
        """Check that the block file of the training is there, or that an option gives its new place.

        Raises:
            MissingBlockError: it is not there.
        """
        file = self.block_file
        if file is not None and options.get(Option.BLOCK) is None and not file.is_file():
            fingerprint = str((self.about.get("block") or {}).get("fingerprint"))[:12]
            raise MissingBlockError(file, fingerprint)


def checkpoint_folder(name: str | Path, content: Mapping[str, Any], options: Mapping[str, Any]) -> Path | None:
    """Return the folder of the checkpoints of a job; ``None`` if only MONAI's parser can tell.

    Args:
        name: name or folder of the bundle.
        content: the merged configs of the job.
        options: the options of the job.
    """
    given, usual = options.get(Option.CKPT_DIR), content.get(Option.CKPT_DIR)
    if given is None and isinstance(usual, str) and (below := BELOW_ROOT.fullmatch(usual)):
        root = options.get(Option.BUNDLE_ROOT)
        return Path((name if Path(name).is_dir() else ".") if root is None else root) / below[1]
    folder = usual if given is None else given
    return Path(folder) if isinstance(folder, Path) or (isinstance(folder, str) and not is_computed(folder)) else None


def write_record(file: Path, about: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Write a record atomically; an earlier one is replaced."""
    with atomic_text(file, aside=False) as text:
        json.dump({TRAINED: {"format": FORMAT, **about}, **config}, text, indent=1)
        text.write("\n")


def find_trained(name: str | Path, configs: Iterable[Path], options: Mapping[str, Any]) -> TrainedFolder | None:
    """Return the record next to the weights of an evaluation or an inference; ``None`` without one.

    Raises:
        ValueError: see :meth:`TrainedFolder.read`.
    """
    folder = checkpoint_folder(name, merged(configs), options)
    return None if folder is None else TrainedFolder.read(folder)
