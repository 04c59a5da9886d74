# SPDX-License-Identifier: Apache-2.0
"""The course of a training run as a small table, one row for each epoch, and in TensorBoard."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import optim

from monai_llmboost.artifacts.files import placed_whole, set_aside

TABLE = "learning_curves.csv"


class LearningCurves:
    """Writes ``learning_curves.csv`` after each epoch, on rank 0.

    Columns: ``epoch``; ``train_loss``, the mean over the epoch's batches; ``learning_rate`` of the epoch; one for each
    metric of the evaluator, empty where the epoch was not validated. A resumed run goes on in its table. Attach it
    behind MONAI's ``ValidationHandler`` and before :class:`TrainingCheckpoints`, so that no checkpoint is ahead of it.

    Args:
        output_dir: the folder; a table of an earlier run in it is renamed, not overwritten.
        evaluator: the engine that validates.
        optimizer: whose first learning rate is written.

    Raises:
        ValueError: a learning rate by which nothing is trained; from the run, an epoch behind the first whose schedule
            gives 0, since it ended before the run.
    """

    def __init__(self, output_dir: str | Path, evaluator: Engine, optimizer: optim.Optimizer) -> None:
        largest = max(float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)
        if not 0 < largest < math.inf:
            raise ValueError(f"expected a learning rate above 0, got {largest:g}: give --learning_rate 0.001, say")
        self.path = Path(output_dir) / TABLE
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
        if engine.state.epoch > 1 and not any(group["lr"] for group in self.optimizer.param_groups):
            raise ValueError(
                f"expected a learning rate above 0 in epoch {engine.state.epoch}, got 0: its schedule is over; give it "
                "as many steps as the run has (--epochs), or use monai_llmboost.engines.HeldWarmupCosine"
            )

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


class TensorBoardCurves:
    """Writes the last row of :class:`LearningCurves` to TensorBoard after each epoch, on rank 0.

    Attach it behind :class:`TrainingCheckpoints`: an epoch that an interrupted run did not keep, and that is done again
    when it is resumed, was not written. Of an earlier run's files in the folder TensorBoard shows no step that this one
    writes. Nothing is asked of the device in an epoch's steps.

    Args:
        output_dir: the folder with the table, for the event files too.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir)
        self.writer: Any = None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def _epoch_completed(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            earlier = any(self.folder.glob("events.out.tfevents.*"))
            self.writer = SummaryWriter(str(self.folder), purge_step=engine.state.epoch if earlier else None)
        *_, row = read_curves(self.folder / TABLE)
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()


def read_curves(path: Path) -> list[dict[str, Any]]:
    """The rows of a table that :class:`LearningCurves` wrote: ``epoch`` whole, what is empty left out."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]
