# SPDX-License-Identifier: Apache-2.0
"""A trained network in one line of Python: its weights, class names and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from torch import nn

from monai_llmboost.bundle import BundleJob, Option, bundle_path, check_options, job_files, merged, split_network
from monai_llmboost.bundle.contract import CONFIGS, IMAGE, METADATA, MODEL_RECORD, MODELS
from monai_llmboost.bundle.find import bundle_of_record
from monai_llmboost.bundle.trained import TrainedFolder
from monai_llmboost.engines.trained_weights import TrainedWeights
from monai_llmboost.networks.class_names import class_names_of
from monai_llmboost.precision import FLOAT32

INFERENCE = "inference"


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network with what its output and input mean.

    Args:
        network: the network with its trained weights, in evaluation mode; it returns logits (B, classes).
        class_names: the classes, in the order of the logits.
        transforms: the preprocessing of inference, from the path of a scan, or the paths of its channels, to a tensor
            (channels, S0, S1, S2).
        record: the description of the training in ``model.json``; empty without one.

    Example:
        >>> mine = load_network("mine")  # doctest: +SKIP
        >>> mine.network(mine.transforms("scan.nii.gz")[None]).softmax(-1)  # doctest: +SKIP
        tensor([[0.9104, 0.0896]])
    """

    network: nn.Module
    class_names: list[str]
    transforms: Compose
    record: Mapping[str, Any] = field(default_factory=dict)


def load_network(
    folder: str | Path,
    device: torch.device | str = "cpu",
    weights: str = "best",
    arm: str | None = None,
    **options: Any,
) -> TrainedNetwork:
    """Return the trained network of a folder, with its weights, class names and preprocessing.

    There is no autocast around the network, so its block is in float32 unless another ``precision`` is given.

    Args:
        folder: a bundle's folder in which a network was trained, or a training's ``ckpt_dir``, such as the folder of a
            run of a study.
        device: the device of the network.
        weights: ``"best"`` (of the epoch that validation chose) or ``"last"``.
        arm: the arm of the training, for a folder without ``model.json``.
        options: options of ``inference.json``, such as ``intensity_range`` or the new place of a ``block``; for a
            folder without ``model.json`` also those of the training.

    Raises:
        FileNotFoundError: there is no bundle, or there are no trained weights.
        ValueError: the weights do not fit, or an option contradicts ``model.json``.

    Example:
        >>> load_network("mine").class_names  # doctest: +SKIP
        ['normal', 'hyperplasia']
    """
    folder = Path(folder)
    bundle, ckpt_dir = _places(folder)
    network_overlay, options = split_network(bundle, {Option.CKPT_DIR: str(ckpt_dir), **options})
    files = job_files(bundle, INFERENCE, arm, network_overlay, options)
    check_options(files.configs, options)
    options = files.with_options_of_training(options)
    usual = {Option.BUNDLE_ROOT: str(bundle), Option.DEVICE: str(device), Option.PRECISION: FLOAT32}
    if Option.PRECISION not in merged(files.configs):  # a copy of an earlier bundle
        del usual[Option.PRECISION]
    job = BundleJob.read(files.configs, {**usual, **options})
    network = job.network_definition.to(device)
    preprocessing = job.item("preprocessing", "load_network")
    TrainedWeights(options[Option.CKPT_DIR], network, weights, preprocessing).load()
    transforms = Compose([_as_item, *preprocessing.transforms, itemgetter(IMAGE)])
    record = {} if files.trained is None else dict(files.trained.about)
    return TrainedNetwork(network.eval(), class_names_of(network), transforms, record)


def _places(folder: Path) -> tuple[Path, Path]:
    """Return the folder of the bundle and the folder of the checkpoints.

    Raises:
        FileNotFoundError: the bundle of the training is not in this package, or there is no bundle.
    """
    if (folder / CONFIGS / METADATA).is_file() or not (folder / MODEL_RECORD).is_file():
        bundle = bundle_path(folder)
        return bundle, bundle / MODELS
    record = TrainedFolder.read(folder)
    return bundle_of_record(None if record is None else record.about.get("bundle"), folder), folder


def _as_item(scan: str | Path | Sequence[str | Path]) -> dict[str, Any]:
    """Return the item of a scan, or of the scans of several channels."""
    return {IMAGE: str(scan) if isinstance(scan, (str, Path)) else list(map(str, scan))}
