# SPDX-License-Identifier: Apache-2.0
"""A copy of a trained bundle for tools that read only ``inference.json`` and ``metadata.json``.

MONAI Label, MONAI Deploy and MONAI's own commands know nothing of ``model.json``, the description of the trained
network. In the copy its values are in ``inference.json`` and, for a named data set, in ``train.json``, the classes are
in ``metadata.json``, and the block file and the source of frozen features are with the weights, so that the folder can
be moved. The plan of the training, whose lines name cases, and the places of its scans are not copied.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_llmboost.bundle.content import read_config, value_at
from monai_llmboost.bundle.contract import (
    ARMS,
    CLASS_NAMES,
    CONFIGS,
    INFERENCE_CONFIG,
    LABEL_VALUES,
    METADATA,
    MODELS,
    NETWORK_DEF,
    TRAIN_CONFIG,
    TRAINED,
    Option,
)
from monai_llmboost.bundle.find import bundle_path
from monai_llmboost.bundle.published import PLACE
from monai_llmboost.bundle.trained import BEST, TrainedFolder, write_record
from monai_llmboost.bundle.words import is_computed, plain_text

# What belongs to a bundle, by MONAI's specification; other folders may contain scans and predictions.
PARTS = (CONFIGS, "docs", "scripts", "LICENSE")
BLOCK_FILE, FEATURES = "block.safetensors", "features"
# Shape (channels, x, y, z) of the network's input, in this package's bundles.
INPUT_SHAPE = f"{NETWORK_DEF}#image_shape"
BOOSTER = "booster"


def copy_trained(bundle: str | Path, to: Path) -> list[str]:
    """Copy a bundle with its trained network, for tools that read only ``inference.json`` and ``metadata.json``.

    Args:
        bundle: folder of the bundle, with ``models/model.pt`` and ``models/model.json``.
        to: folder to create.

    Returns:
        What such a tool does differently, a sentence for each difference.

    Raises:
        FileExistsError: ``to`` already exists.
        FileNotFoundError: there is no trained network, or its block file or frozen features have gone.
        ValueError: ``model.json`` does not belong to ``model.pt``, or the name of a class is an expression for MONAI.
    """
    source = bundle_path(bundle)
    weights = source / MODELS / BEST
    trained = TrainedFolder.read(weights.parent)
    if trained is None or not weights.is_file():
        raise FileNotFoundError(
            f"{source} has no trained network ({MODELS}/{BEST} with its model.json): train it first, or leave out "
            "--trained"
        )
    trained.check_block({})
    # An encoded name, as in inference.json, would be shown as it is by programs that read metadata.json as JSON.
    if computed := [name for name in trained.class_names if is_computed(name)]:
        raise ValueError(
            f"the class name {computed[0]!r} begins with $, @ or %, which MONAI reads as an expression in "
            f"{METADATA}: rename the class in the training list and train again"
        )
    if to.exists():
        raise FileExistsError(f"{to} already exists: give another folder, or remove it")
    values = {key: value for key, value in trained.content.items() if key != TRAINED}
    files: dict[str, tuple[Path, str]] = {}
    if trained.block_file is not None:
        files[Option.BLOCK] = trained.block_file, BLOCK_FILE
    if values.get(Option.FEATURES_FROM) is not None:
        features = Path(plain_text(values[Option.FEATURES_FROM]))
        files[Option.FEATURES_FROM] = features, f"{FEATURES}/{FEATURES}{features.suffix}"
        if not features.exists():
            raise FileNotFoundError(f"the frozen features of the training are no longer at {features}: put them back")
    values |= {key: f"$@bundle_root + '/{MODELS}/{name}'" for key, (_, name) in files.items()}
    inference = read_config(source / CONFIGS / INFERENCE_CONFIG) | values
    metadata = _described(read_config(source / CONFIGS / METADATA), trained.class_names, inference)
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as folder:
        copy = Path(folder) / "copy"
        for part in (source / name for name in PARTS):
            if part.is_dir():
                shutil.copytree(part, copy / part.name, ignore=shutil.ignore_patterns("plan*.json", "__pycache__"))
            elif part.is_file():
                shutil.copyfile(part, copy / part.name)
        _write(copy / CONFIGS / INFERENCE_CONFIG, inference)
        _write(copy / CONFIGS / METADATA, metadata)
        about = _without_places(trained.about)
        if Option.DATASET in about["data"]:  # training on scans needs their list and plan, which are not copied
            _write_training(copy / CONFIGS, values, about["data"])
        (copy / MODELS).mkdir()
        shutil.copyfile(weights, copy / MODELS / BEST)
        for file, name in files.values():
            place = copy / MODELS / name
            place.parent.mkdir(exist_ok=True)
            (shutil.copytree if file.is_dir() else shutil.copyfile)(file, place)
        write_record(copy / MODELS / trained.file.name, about, values)
        copy.rename(to)
    return _differences(inference.get(LABEL_VALUES))


def _write_training(folder: Path, values: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Let ``train.json`` train the network of the training again, and leave its booster to the arms that need it.

    The classes are not written: they follow from the data set.
    """
    file = folder / TRAIN_CONFIG
    usual = read_config(file)
    own = {key: value for key, value in {**values, **data}.items() if key != CLASS_NAMES}
    _write(file, usual | {key: value for key, value in own.items() if key in usual or key not in data})
    if BOOSTER not in usual or own.get(BOOSTER, usual[BOOSTER]) == usual[BOOSTER]:
        return
    for arm in (folder / ARMS).glob("*.json"):
        overlay = read_config(arm)
        if BOOSTER not in overlay:
            _write(arm, {BOOSTER: usual[BOOSTER], **overlay})


def _described(metadata: dict[str, Any], class_names: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``metadata.json`` with the classes, channels and shape of a trained network."""
    from monai.bundle import ConfigParser

    formats = metadata["network_data_format"]
    images, outputs = formats["inputs"].values(), formats["outputs"].values()
    for output in outputs:
        output["num_channels"] = len(class_names)
        output["channel_def"] = {str(number): name for number, name in enumerate(class_names)}
    for output in formats.get("post_processed_outputs", {}).values():
        numbers = [0, *config[LABEL_VALUES]] if LABEL_VALUES in config else range(len(class_names))
        output["channel_def"] = {str(number): name for number, name in zip(numbers, class_names, strict=True)}
    if value_at(config, INPUT_SHAPE) is not None:
        channels, *shape = ConfigParser(dict(config)).get_parsed_content(INPUT_SHAPE)
        for image in images:
            image["num_channels"] = channels
            image["channel_def"] = {str(number): "intensity" for number in range(channels)}
        for place in (*images, *outputs):
            place["spatial_shape"] = shape if place["spatial_shape"] else []  # classes have no shape
    return metadata


def _without_places(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a training without the places of its files, but with its columns and folds."""
    block, data = about.get("block") or {}, about.get("data") or {}
    places = (Option.DATA, Option.DATASET_DIR, *(key for key, value in data.items() if PLACE.match(str(value))))
    return {
        **about,
        "block": {key: value for key, value in block.items() if key != "file"} or None,
        "data": {key: value for key, value in data.items() if key not in places},
    }


def _differences(label_values: Sequence[int] | None) -> list[str]:
    values = list(label_values or ())
    if values == list(range(1, len(values) + 1)):
        return []
    return [
        f"MONAI Label names structures by the network's channel, 1 to {len(values)}, but masks have the values "
        f"{', '.join(map(str, values))} of the training list: it shows wrong names"
    ]


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
