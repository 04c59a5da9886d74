# SPDX-License-Identifier: Apache-2.0
"""A schedule of learning rates for runs that may be longer than it."""

from __future__ import annotations

import torch
from monai.optimizers import WarmupCosineSchedule

from monai_llmboost.arguments import check_whole


class HeldWarmupCosine(WarmupCosineSchedule):
    """MONAI's warmup and cosine, which holds the rate of its last step from there on.

    MONAI's own gives 0 at ``t_total`` and rises again after it. A run may be longer: federated clients train round
    after round (``MonaiAlgo``) and do not know the last one.

    Args:
        optimizer: whose rates are set.
        warmup_steps: steps in which the rate rises, fewer than ``t_total``; 0 for none.
        t_total: steps of the whole schedule.
        warmup_multiplier: the part of the full rate to begin with.

    Raises:
        ValueError: numbers that are not whole; a warmup in which the full rate is never reached.

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
        """Return the part of the full rate in a step, counted from 0."""
        return super().lr_lambda(min(step, self.t_total - 1))
