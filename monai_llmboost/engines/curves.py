# SPDX-License-Identifier: Apache-2.0
"""The course of a training run as a small table: one row for each epoch."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import optim

from monai_llmboost.engines.files import placed_whole, set_aside


class LearningCurves:
    """Writes ``learning_curves.csv`` after each epoch, on rank 0.

    Columns: ``epoch``; ``train_loss``, the mean over the epoch's batches; ``learning_rate`` of the epoch; one for each
    metric of the evaluator, empty where the epoch was not validated. A resumed run goes on in its table. Attach it
    behind MONAI's ``ValidationHandler`` and before :class:`TrainingCheckpoints`, so that no checkpoint is ahead of it.

    Args:
        output_dir: the folder; a table of an earlier run in it is renamed, not overwritten.
        evaluator: the engine that validates.
        optimizer: whose first learning rate is written.
    """

    def __init__(self, output_dir: str | Path, evaluator: Engine, optimizer: optim.Optimizer) -> None:
        self.path = Path(output_dir) / "learning_curves.csv"
        self.evaluator = evaluator
        self.optimizer = optimizer
        self.rows: list[dict[str, Any]] | None = None
        self.losses: list[Any] = []
        self.validated: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        self.evaluator.add_event_handler(Events.COMPLETED, self._validated)

    def _epoch_started(self, engine: Engine) -> None:
        self.losses = []
        self.learning_rate = self.optimizer.param_groups[0]["lr"]

    def _iteration_completed(self, engine: Engine) -> None:
        output: Any = engine.state.output
        loss = output["loss"] if isinstance(output, dict) else output[0]["loss"]
        self.losses.append(loss.detach())  # and not asked for now: a GPU would have to finish its work

    def _validated(self, engine: Engine) -> None:
        self.validated = {name: float(value) for name, value in engine.state.metrics.items()}

    def _epoch_completed(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        epoch = engine.state.epoch
        if self.rows is None:
            self.rows = self._earlier(epoch)
        loss = sum(float(loss) for loss in self.losses) / max(1, len(self.losses))
        row = {"epoch": epoch, "train_loss": loss, "learning_rate": self.learning_rate, **self.validated}
        self.validated = {}
        self.rows.append(row)
        columns = list(dict.fromkeys(name for each in self.rows for name in each))
        with placed_whole(self.path) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)

    def _earlier(self, epoch: int) -> list[dict[str, Any]]:
        """The rows of the epochs before the first one of this process."""
        if epoch > 1 and self.path.is_file():
            return [row for row in read_curves(self.path) if row["epoch"] < epoch]
        set_aside(self.path)
        return []


def read_curves(path: Path) -> list[dict[str, Any]]:
    """The rows of a table that :class:`LearningCurves` wrote: ``epoch`` whole, what is empty left out."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]
