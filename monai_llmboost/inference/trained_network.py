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

from monai_llmboost.bundle.contract import IMAGE
from monai_llmboost.engines.trained_folder import OpenedFolder
from monai_llmboost.engines.trained_weights import TrainedWeights
from monai_llmboost.networks.class_names import class_names_of


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
    opened = OpenedFolder.open(Path(folder), device, arm, options)
    preprocessing = opened.job.item("preprocessing", "load_network")
    TrainedWeights(opened.ckpt_dir, opened.network, weights, preprocessing).load()
    transforms = Compose([_as_item, *preprocessing.transforms, itemgetter(IMAGE)])
    return TrainedNetwork(opened.network.eval(), class_names_of(opened.network), transforms, opened.record)


def _as_item(scan: str | Path | Sequence[str | Path]) -> dict[str, Any]:
    """Return the item of a scan, or of the scans of several channels."""
    return {IMAGE: str(scan) if isinstance(scan, (str, Path)) else list(map(str, scan))}
