# SPDX-License-Identifier: Apache-2.0
"""The Dice that chooses the best epoch of a segmentation, which counts cases as the evaluation does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from monai_llmboost.arguments import check_whole
from monai_llmboost.tasks.segmentation import mean_dice


class StructureDice(CumulativeIterationMetric):
    """Mean Dice of masks: the mean over the structures of each case, then over the cases.

    A structure that only the mask or only the label map has counts as 0; one that neither has does not count. MONAI's
    ``DiceMetric`` does not count a structure without a label, whatever was predicted, or else counts 1 for neither.
    The mean is NaN if no case has a structure.

    Args:
        structures: number of structures, whose class numbers are 1, 2, ...

    Raises:
        ValueError: no structure.

    Example:
        >>> dice = StructureDice(structures=2)
        >>> label = torch.tensor([0, 1, 1, 0]).reshape(1, 1, 4, 1, 1)
        >>> _ = dice(torch.tensor([0, 1, 0, 2]).reshape(1, 1, 4, 1, 1), label)
        >>> round(dice.aggregate(), 4)  # 2/3 for the first structure, 0 for the second one
        0.3333
    """

    def __init__(self, structures: int) -> None:
        super().__init__()
        check_whole("structures", structures, 1)
        self.structures = structures

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return the Dice of class numbers (B, 1, ...): (B, structures), NaN where neither has the structure."""
        if y is None:
            raise ValueError("a Dice needs label maps: give both")
        scores = []
        for structure in range(1, self.structures + 1):
            mask, label = (torch.as_tensor(one == structure).flatten(1) for one in (y_pred, y))
            both = mask.sum(1) + label.sum(1)
            scores.append(torch.where(both > 0, 2 * (mask & label).sum(1) / both, torch.nan))
        return torch.stack(scores, dim=1)

    def aggregate(self, *args: Any, **kwargs: Any) -> float:
        """Return the mean over the structures of each case, then over the cases of all processes."""
        buffer = self.get_buffer()
        cases = mean_dice(np.asarray(torch.as_tensor(buffer).cpu(), dtype=np.float64), np.empty(0))
        there = cases[np.isfinite(cases)]
        return float(there.mean()) if there.size else float("nan")
