# SPDX-License-Identifier: Apache-2.0
"""The config files and options of a job on a trained folder: ``model.json``, and options that contradict it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_llmboost.bundle.content import merged, value_at
from monai_llmboost.bundle.contract import CLASS_NAMES, CONFIGS, METADATA, MODEL_RECORD, MODELS, Option
from monai_llmboost.bundle.find import bundle_of_record, bundle_path, job_configs
from monai_llmboost.bundle.job import BundleJob
from monai_llmboost.bundle.options import Rules
from monai_llmboost.bundle.trained import TrainedFolder, find_trained
from monai_llmboost.bundle.words import config_values, is_computed

# Options of the training that do not contradict it: a block is known by its fingerprint, which the checkpoint has, a
# dtype only by its precision, the weights that a training started from are in the checkpoint, and frozen features are
# known by the step of the preprocessing that computes them.
NO_CONTRADICTION = (Option.BLOCK, Option.BLOCK_DTYPE, Option.ENCODER_WEIGHTS, Option.FEATURES_FROM)
TRAIN, EVALUATE = "train", "evaluate"
# What records of version 0.1.0 have, whatever the precision.
EARLIER_BLOCK_DTYPE = (
    "$torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32"
)


@dataclass(frozen=True)
class JobFiles:
    """The config files of a job.

    Args:
        configs: the files in the order in which MONAI merges them; ``model.json`` is the last.
        job: the job.
        trained: the record of the training; ``None`` for a training, and for a folder without a record.
    """

    configs: list[Path]
    job: str
    trained: TrainedFolder | None = None

    def with_options_of_training(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of the job; those of the data of the training are added to an evaluation.

        Raises:
            ValueError: an option that contradicts the training.
            FileNotFoundError: the block file of the training is not there.
        """
        if self.trained is None:
            return dict(options)
        self.trained.check_block(options)
        given = {key.replace("::", "#"): value for key, value in options.items() if value is not None}
        self._check_classes(self.trained, given)
        self._check_network(self.trained, given)
        options = self._with_block_dtype(options, given)
        data = self.trained.data
        if self.job != EVALUATE or given.get(Option.DATASET, data.get(Option.DATASET)) != data.get(Option.DATASET):
            return dict(options)
        content = merged(self.configs)
        missing = {key: value for key, value in data.items() if key not in given and key in content}
        return {**options, **missing}

    def _with_block_dtype(self, options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options, with the dtype of the block by the precision for a record that has an earlier default."""
        earlier = self.trained is not None and self.trained.content.get(Option.BLOCK_DTYPE) == EARLIER_BLOCK_DTYPE
        if earlier and Option.BLOCK_DTYPE not in given and Option.COMPUTE_DTYPE in merged(self.configs):
            return {**options, Option.BLOCK_DTYPE: f"$@{Option.COMPUTE_DTYPE}"}
        return dict(options)

    def _check_classes(self, trained: TrainedFolder, given: Mapping[str, Any]) -> None:
        """Compare the classes of another data set than that of the training with the classes of the training."""
        key = Option.DATASET if self.job == EVALUATE else Option.TRAINED_ON
        name = given.get(key)
        if name is None or name == trained.data.get(Option.DATASET) or not trained.class_names:
            return
        own = [file for file in self.configs if file != trained.file]
        if CLASS_NAMES not in (content := merged(own)) or key not in content:
            return
        names = list(BundleJob.read(own, {key: name}).item(CLASS_NAMES, self.job))
        if names != trained.class_names:
            raise ValueError(
                f"--{key} {name}, with the classes {', '.join(names)}, contradicts {trained.file}: the network was "
                f"trained on {trained.data.get(Option.DATASET, 'other data')}, with the classes "
                f"{', '.join(trained.class_names)}; leave out --{key}, or give the --ckpt_dir of the other training"
            )

    def _check_network(self, trained: TrainedFolder, given: Mapping[str, Any]) -> None:
        texts = Rules(self.configs[0].parent).texts
        for key, value in config_values(merged(self.configs), given, texts).items():
            top = key.partition("#")[0]
            if top not in trained.content or top in NO_CONTRADICTION:
                continue
            there = trained.class_names if key == CLASS_NAMES else value_at(trained.content, key)
            if _same(there, value) or self._same_when_computed(key, there, value):
                continue
            shown = "its default" if there is None and "#" in key else repr(there)
            raise ValueError(
                f"--{key} {given[key]!r} contradicts {trained.file}: its network was trained with {shown}; leave out "
                f"--{key}, or give the --ckpt_dir of the other training"
            )

    def _same_when_computed(self, key: str, there: Any, value: Any) -> bool:
        """Return whether two values are equal once MONAI has computed them."""
        if not is_computed(there) and not is_computed(value):
            return False
        computed = [BundleJob.read(self.configs, options).item(key, self.job) for options in ({}, {key: value})]
        return _same(*computed)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.replace("::", "#") == other.replace("::", "#")
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return list(one) == list(other)
    return type(one) is type(other) and one == other if isinstance(one, bool) else bool(one == other)


def job_files(
    name: str | Path,
    job: str,
    arm: str | None = None,
    network: str | None = None,
    options: Mapping[str, Any] | None = None,
    overlays: Iterable[str] = (),
) -> JobFiles:
    """Return the config files of a job, for an evaluation or an inference with the ``model.json`` of the training.

    Args:
        name: name or folder of a bundle.
        job: ``"train"``, ``"evaluate"`` or ``"inference"``.
        arm: overlay in ``configs/arms``; ``None`` for that of the training, if it is known.
        network: overlay in ``configs/networks``; ``None`` for that of the training.
        options: the options of the job, which may name the folder of the checkpoints.
        overlays: further configs of the bundle.

    Raises:
        ValueError: an unknown job, arm or network; one that contradicts ``model.json``, or a ``model.json`` that
            cannot be used.
    """
    bundle = bundle_path(name)
    overlays = list(overlays)
    own = job_configs(bundle, job, arm, network, overlays)
    trained = None if job == TRAIN else find_trained(name, own, options or {})
    if trained is None:
        return JobFiles(own, job)
    arm, network = trained.choose(bundle, arm, network)
    return JobFiles([*job_configs(bundle, job, arm, network, overlays), trained.file], job, trained)


def trained_places(folder: Path) -> tuple[Path, Path]:
    """Return the folder of the bundle and the folder of the checkpoints of a bundle's folder, or of a ``ckpt_dir``.

    Raises:
        FileNotFoundError: the bundle of the training is not in this package, or there is no bundle.
    """
    if (folder / CONFIGS / METADATA).is_file() or not (folder / MODEL_RECORD).is_file():
        bundle = bundle_path(folder)
        return bundle, bundle / MODELS
    record = TrainedFolder.read(folder)
    return bundle_of_record(None if record is None else record.about.get("bundle"), folder), folder
