# SPDX-License-Identifier: Apache-2.0
"""Learning curves as a table with one row per epoch, and in TensorBoard."""

from __future__ import annotations

import csv
import math
from itertools import chain
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import optim

from monai_llmboost.artifacts.files import atomic_path, set_aside

CURVES = "learning_curves.csv"


class LearningCurves:
    """Writes ``learning_curves.csv`` after each epoch, on rank 0.

    Columns: ``epoch``; ``train_loss``, the mean over the epoch's batches; ``learning_rate`` of the epoch; one column
    per metric of the evaluator, empty if the epoch was not validated. A resumed run continues its table. Attach this
    handler after MONAI's ``ValidationHandler`` and before :class:`TrainingCheckpoints`, so that the table is never
    older than a checkpoint.

    Args:
        output_dir: the folder; a table of an earlier run in it is renamed, not overwritten.
        evaluator: the engine that validates.
        optimizer: the optimizer; the learning rate of its first parameter group is written.

    Raises:
        ValueError: a learning rate that is not positive and finite; in the run, a learning rate of 0 after the first
            epoch, because the schedule is shorter than the run.

    Example:
        >>> from ignite.engine import Engine
        >>> evaluator = Engine(lambda engine, batch: None)
        >>> optimizer = torch.optim.SGD(torch.nn.Linear(1, 2).parameters(), lr=0.1)
        >>> handlers = [LearningCurves("eval", evaluator, optimizer)]  # of a trainer
    """

    def __init__(self, output_dir: str | Path, evaluator: Engine, optimizer: optim.Optimizer) -> None:
        largest = max(float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)
        if not 0 < largest < math.inf:
            raise ValueError(
                f"the learning rate must be above 0 and finite, not {largest:g}: give --learning_rate 0.001, say"
            )
        self.path = Path(output_dir) / CURVES
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
                f"the learning rate of epoch {engine.state.epoch} is 0, since its schedule is over: give the schedule "
                "as many steps as the run has (--epochs), or use monai_llmboost.engines.HeldWarmupCosine"
            )

    def _iteration_completed(self, engine: Engine) -> None:
        output: Any = engine.state.output
        loss = output["loss"] if isinstance(output, dict) else output[0]["loss"]
        self.losses.append(loss.detach())  # read at the end of the epoch: reading it now would synchronize the GPU

    def _validated(self, engine: Engine) -> None:
        self.validated = {name: float(value) for name, value in engine.state.metrics.items()}

    def _epoch_completed(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        epoch = engine.state.epoch
        if self.rows is None:
            self.rows = self._earlier(epoch)
        losses = torch.stack(self.losses).flatten().tolist() if self.losses else [0.0]  # one copy from the device
        row = {
            "epoch": epoch,
            "train_loss": sum(losses) / len(losses),
            "learning_rate": self.learning_rate,
            **self.validated,
        }
        self.validated = {}
        self.rows.append(row)
        columns = list(dict.fromkeys(chain.from_iterable(self.rows)))
        with atomic_path(self.path) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)

    def _earlier(self, epoch: int) -> list[dict[str, Any]]:
        """Return the rows of epochs before the first epoch of this process."""
        if epoch > 1 and self.path.is_file():
            return [row for row in read_curves(self.path) if row["epoch"] < epoch]
        set_aside(self.path)
        return []


class TensorBoardCurves:
    """Writes the last row of :class:`LearningCurves` to TensorBoard after each epoch, on rank 0.

    Attach this handler after :class:`TrainingCheckpoints`, so that an epoch without a checkpoint, which a resumed run
    repeats, is not written. TensorBoard hides the steps of an earlier run in the folder that this run writes again.

    Args:
        output_dir: the folder of the table and the event files.

    Example:
        >>> handlers = [TensorBoardCurves("eval")]  # of a trainer
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
        *_, row = read_curves(self.folder / CURVES)
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()


def read_curves(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table that :class:`LearningCurves` wrote: ``epoch`` as int, without empty cells."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]
