# SPDX-License-Identifier: Apache-2.0
"""A learning-rate schedule for runs that may be longer than the schedule."""

from __future__ import annotations

import torch
from monai.optimizers import WarmupCosineSchedule

from monai_llmboost.arguments import check_whole


class HeldWarmupCosine(WarmupCosineSchedule):
    """MONAI's warmup and cosine schedule, which keeps the rate of its last step afterwards.

    MONAI's own schedule is 0 at ``t_total`` and rises again afterwards. A run may be longer: federated clients train
    for many rounds (``MonaiAlgo``) and do not know which round is the last.

    Args:
        optimizer: the optimizer whose learning rates are set.
        warmup_steps: steps in which the rate rises, fewer than ``t_total``; 0 for no warmup.
        t_total: steps of the whole schedule.
        warmup_multiplier: fraction of the full rate at the first step.

    Raises:
        ValueError: numbers that are not whole; a warmup that never reaches the full rate.

    Example:
        >>> optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0)
        >>> schedule = HeldWarmupCosine(optimizer, warmup_steps=2, t_total=6)
        >>> [round(schedule.lr_lambda(step), 3) for step in (0, 2, 4, 5, 9)]
        [0.1, 1.0, 0.5, 0.146, 0.146]
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, warmup_steps: int, t_total: int, warmup_multiplier: float = 0.1
    ) -> None:
        check_whole("epochs", t_total, 1, advice="give --epochs")
        check_whole("warmup_epochs", warmup_steps, 0, advice="give --warmup_epochs")
        if warmup_steps >= t_total:
            raise ValueError(
                f"warmup_epochs must be fewer than epochs, not {warmup_steps} of {t_total}, or the full learning rate "
                "is never reached: give --warmup_epochs or more --epochs"
            )
        super().__init__(optimizer, warmup_steps, t_total, warmup_multiplier=warmup_multiplier)

    def lr_lambda(self, step: int) -> float:
        """Return the fraction of the full rate at a step, counted from 0."""
        return super().lr_lambda(min(step, self.t_total - 1))
