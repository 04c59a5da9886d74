# SPDX-License-Identifier: Apache-2.0
"""A schedule of learning rates whose length and that of the run may differ."""

from __future__ import annotations

from monai.optimizers import WarmupCosineSchedule
from torch.optim import Optimizer

from monai_llmboost.arguments import is_whole


class HeldWarmupCosine(WarmupCosineSchedule):
    """MONAI's warmup and cosine, which holds the rate of its last step from there on.

    MONAI's own gives 0 at ``t_total`` and rises again behind it. A run may well be longer: federated clients train
    round after round (``MonaiAlgo``) and know no last one.

    Args:
        optimizer: whose rates are set.
        warmup_steps: steps in which the rate rises, fewer than ``t_total``; 0 for none.
        t_total: steps of the whole schedule.
        warmup_multiplier: the part of the full rate to begin with.

    Raises:
        ValueError: numbers that are not whole; a warmup in which the full rate is never reached.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, t_total: int, warmup_multiplier: float = 0.1) -> None:
        for name, value, least in (("epochs", t_total, 1), ("warmup_epochs", warmup_steps, 0)):
            if not is_whole(value) or value < least:
                raise ValueError(f"expected {name} to be a whole number from {least}, got {value!r}: give --{name}")
        if warmup_steps >= t_total:
            raise ValueError(
                f"expected fewer warmup_epochs than epochs, got {warmup_steps} of {t_total}: the full learning rate "
                "would never be reached; give --warmup_epochs or more --epochs"
            )
        super().__init__(optimizer, warmup_steps, t_total, warmup_multiplier=warmup_multiplier)

    def lr_lambda(self, step: int) -> float:
        """Return the part of the full rate in a step, counted from 0."""
        return super().lr_lambda(min(step, self.t_total - 1))
