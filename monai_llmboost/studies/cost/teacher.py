# SPDX-License-Identifier: Apache-2.0
"""The network of a teacher, as it was trained, to measure what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_llmboost.bundle import Option
from monai_llmboost.engines.trained_folder import OpenedFolder
from monai_llmboost.engines.trained_weights import TrainedWeights


class Ensemble(nn.Module):
    """Several networks in turn: the mean of their logits.

    Args:
        networks: networks from volumes to logits of one shape.

    Example:
        >>> Ensemble([nn.Linear(3, 2), nn.Linear(3, 2)])(torch.zeros(4, 3)).shape
        torch.Size([4, 2])
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return torch.stack([network(x) for network in self.networks]).mean(dim=0)


def load_ensemble(
    folders: Sequence[str | Path], student: nn.Module, x: Tensor, amp: torch.dtype | None = None
) -> Ensemble:
    """Load the trained networks of a teacher, with the weights that their training did not freeze trainable.

    Args:
        folders: folders of trainings.
        student: the network next to which it is measured.
        x: a batch of volumes.
        amp: dtype of autocast, in which the frozen blocks are kept; ``None`` for float32.

    Raises:
        FileNotFoundError: no folder, bundle or weights.
        ValueError: a teacher that takes other volumes, or returns other logits, than the student.
    """
    options = {} if amp is None else {Option.PRECISION: str(amp).removeprefix("torch.")}
    wanted = _shape_of_logits(student, x)
    networks = []
    for folder in map(Path, folders):
        opened = OpenedFolder.open_teacher(folder, x.device, options)
        TrainedWeights(opened.ckpt_dir, opened.network).load()
        try:
            logits = _shape_of_logits(opened.network, x)
        except Exception as error:  # a network refuses an input with any kind of error
            raise ValueError(
                f"the teacher in {folder} does not take the volumes of the student, {list(x.shape[1:])} ({error}): "
                "give the student's bundle the options of volumes that the teacher was trained with, such as --size"
            ) from error
        if logits != wanted:
            raise ValueError(
                f"the teacher in {folder} returns logits of shape {logits} of a volume, and the student {wanted}: give "
                "the teacher that the student learns from"
            )
        networks.append(opened.network)
    return Ensemble(networks)


def _shape_of_logits(network: nn.Module, x: Tensor) -> list[int]:
    with torch.no_grad():
        return list(network.eval()(x[:1]).shape[1:])
