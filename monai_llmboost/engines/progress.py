# SPDX-License-Identifier: Apache-2.0
"""The progress of a training, as saved in ``last.pt``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.engines import default_metric_cmp_fn

from monai_llmboost.artifacts.weights import load_weights

# Key in last.pt of the SHA-256 of model.pt; empty before the first validation, None in runs of earlier versions.
DIGEST = "model_sha256"


@dataclass
class TrainingProgress:
    """The last finished epoch, the best epoch, and the number of validations since the best one.

    Args:
        epoch: last finished epoch.
        epoch_length: steps in an epoch.
        best_value: best value of the metric that chooses the epoch.
        best_epoch: epoch of this value; 0 before the first validation.
        waited: validations since the best one.
        digest: digest of ``model.pt``; see :data:`DIGEST`.

    Example:
        >>> progress = TrainingProgress()
        >>> [progress.improves(value, epoch) for epoch, value in enumerate([0.7, 0.8, 0.8], start=1)]
        [True, True, False]
        >>> progress.best_epoch, progress.waited
        (2, 1)
    """

    epoch: int = 0
    epoch_length: int = 0
    best_value: float = -math.inf
    best_epoch: int = 0
    waited: int = 0
    digest: str | None = ""

    def improves(self, value: float, epoch: int, is_better: Callable[..., bool] = default_metric_cmp_fn) -> bool:
        """Count a validation; return whether it is the best so far."""
        if math.isfinite(value) and (not self.best_epoch or is_better(value, self.best_value)):
            self.best_value, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        return False

    def state(self) -> dict[str, Any]:
        """Return the entries of ``last.pt``."""
        return {
            "progress": {"epoch": self.epoch, "epoch_length": self.epoch_length},
            "best": {"value": self.best_value, "epoch": self.best_epoch},
            "waited": self.waited,
            DIGEST: self.digest,
        }

    @classmethod
    def of(cls, state: Any, path: Path, val_interval: int = 1) -> TrainingProgress:
        """Return the progress in the content of a ``last.pt``.

        Args:
            state: content of the file.
            path: path of the file, for the message.
            val_interval: of the run; used for files of earlier versions, which have no ``waited``.

        Raises:
            ValueError: the file is not a checkpoint for resuming a training.
        """
        if not isinstance(state, Mapping) or not {"options", "progress", "best"} <= state.keys():
            raise ValueError(f"{path} is not what a training left to resume it: give the --ckpt_dir of the run")
        progress, best = state["progress"], state["best"]
        since = (progress["epoch"] - best["epoch"]) // val_interval if best["epoch"] else 0
        return cls(
            int(progress["epoch"]),
            int(progress["epoch_length"]),
            float(best["value"]),
            int(best["epoch"]),
            state.get("waited", since),
            state.get(DIGEST),
        )

    @classmethod
    def read(cls, path: Path) -> TrainingProgress:
        """Return the progress in a file ``last.pt``."""
        return cls.of(load_weights(path), path)
