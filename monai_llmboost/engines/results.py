# SPDX-License-Identifier: Apache-2.0
"""The output files of an evaluation: a table of predictions, and metrics with confidence intervals."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from monai_llmboost.artifacts.files import atomic_text, safe_row
from monai_llmboost.engines.evaluation.cases import CaseCollector, EvaluatedCases, gathered
from monai_llmboost.networks.class_names import class_names_of, on_one_line
from monai_llmboost.tasks import Classification, Task

logger = logging.getLogger("monai_llmboost")
PREDICTIONS_FILE, METRICS_FILE = "predictions.csv", "metrics.json"


class PredictionTable:
    """Writes ``predictions.csv`` when an evaluator completes: one row per case of all ranks, written by rank 0.

    Columns: ``case``; the columns of the task, for a classification one probability per class, ``p_<class name>``, and
    ``predicted``, the class of the largest; ``label`` if cases have one; ``refused``, the reason why a case has no
    prediction, if any case is refused. A case whose output is not finite is refused.

    Args:
        output_dir: the folder; an earlier ``predictions.csv`` in it is renamed, not overwritten.
        network: the network, which knows the class names of its loaded checkpoint.
        class_names: class names of the cases' labels, if the cases have labels.
        task: task of the network; ``None`` is a classification into the classes of ``network``.

    Raises:
        ValueError: in the run, if the network was trained for other classes than ``class_names``.

    Example:
        >>> from monai_llmboost.networks import ViT3D
        >>> network = ViT3D(1, 2, 28, 7, class_names=["benign", "malignant"])
        >>> handlers = [PredictionTable("eval", network)]  # of an evaluator, after the handler that loads the weights
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: nn.Module,
        class_names: Sequence[str] | None = None,
        task: Task | None = None,
    ) -> None:
        self.path = Path(output_dir) / PREDICTIONS_FILE
        self.network = network
        self.class_names = class_names
        self.given_task = task
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator, decollating or not, whose batches contain "pred" (activated outputs) and "case"."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Read the class names of the loaded checkpoint and check the cases' labels."""
        self.rows = []
        self.task = self.given_task or Classification.of(self.network)
        if self.class_names is not None:
            check_classes(self.class_names, self.network)
            self.task.check_labels(getattr(engine, "data_loader", None), "evaluated")

    def collect(self, engine: Engine) -> None:
        """Collect the rows of one batch."""
        state: Any = engine.state
        batch, output = (_items(part) if isinstance(part, Mapping) else part for part in (state.batch, state.output))
        self.rows += [prediction_row(self.task, {**item, **answer}) for item, answer in zip(batch, output)]

    def write(self, engine: Engine) -> None:
        """Write the table of all ranks."""
        rows = [row for part in gathered(self.rows) for row in part]
        if idist.get_rank() == 0 and rows:
            write_predictions(self.path, rows)
            refused = sum(bool(row.get("refused")) for row in rows)
            logger.info(f"{len(rows)} cases, {refused} refused: {self.path}")


def check_classes(class_names: Sequence[str], network: nn.Module) -> None:
    """Raise a ValueError if a network was trained for other classes than these."""
    names = class_names_of(network)
    if list(map(on_one_line, class_names)) != names:
        raise ValueError(
            f"the checkpoint was trained for the classes {names}, not for {list(class_names)}: give the "
            "data that it was trained on"
        )


def prediction_row(task: Task, item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a case in ``predictions.csv``.

    Args:
        task: task of the output.
        item: ``"case"``, its name; ``"pred"``, its activated output; ``"label"`` and ``"refused"``, if there are any.
    """
    output = torch.as_tensor(item["pred"]).cpu()
    refused = item.get("refused", "")
    if not refused and not output.isfinite().all():
        refused = "the network's output is not finite"
    cells = dict.fromkeys(task.columns(), "") if refused else task.row(output)
    row: dict[str, Any] = {"case": item["case"], **cells}
    if item.get("label") is not None:
        row["label"] = task.label(item["label"])
    if "refused" in item or refused:
        row["refused"] = refused
    return row


def write_predictions(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``predictions.csv``, sorted by case; an earlier file is renamed."""
    with atomic_text(path) as file:
        writer = csv.DictWriter(file, max(map(list, rows), key=len), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(safe_row, sorted(rows, key=lambda row: row["case"])))


class MetricsFile:
    """Writes ``metrics.json`` when an evaluator completes: metrics with 95 % intervals over the cases, on rank 0.

    Cases of one patient, if the data set knows it, are drawn together. Cases are first sorted by name (by label and
    scores if batches contain no names), so that the numbers do not depend on the number of processes.

    Args:
        output_dir: the folder; an earlier ``metrics.json`` in it is renamed, not overwritten.
        auc: name of the evaluator's metric that gathers scores and labels, such as :class:`MedMNISTAUC`.
        about: metadata such as dataset and split, written next to the numbers.
        task: task that defines the metrics; ``None`` is a classification: AUC and ACC.

    Example:
        >>> handlers = [MetricsFile("eval", "val_auc", {"dataset": "phantom", "split": "test"})]  # of an evaluator
    """

    def __init__(self, output_dir: str | Path, auc: str, about: Mapping[str, Any], task: Task | None = None) -> None:
        self.path = Path(output_dir) / METRICS_FILE
        self.auc = auc
        self.about = dict(about)
        self.task: Task = task or Classification(())
        self.collector = CaseCollector()

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        self.collector.attach(engine)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        """Write the file."""
        cases = self.collector.gather(engine, self.auc)
        if cases is not None:
            metrics = {name: metric.compute for name, metric in self.task.metrics.items()}
            numbers = cases.measure(metrics, self.task.groups(cases.labels))
            write_metrics(self.path, {**self.about, **cases.count(), **numbers})
            log_metrics(self.path, self.task, cases, numbers)


def write_metrics(path: Path, numbers: Mapping[str, Any]) -> None:
    """Write ``metrics.json``; an earlier file is renamed."""
    with atomic_text(path) as file:
        json.dump(numbers, file, indent=2)
        file.write("\n")


def log_metrics(path: Path, task: Task, cases: EvaluatedCases, numbers: Mapping[str, Any]) -> None:
    """Log the task's metrics and the path of their file."""
    values = " ".join(f"{metric.label} {numbers[name]:.4f}" for name, metric in task.metrics.items())
    logger.info(f"{values} on {len(cases.labels)} cases: {path}")


def _items(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the table's values of a batch as one dictionary per case; each tensor is copied once."""
    columns = {key: batch[key] for key in ("case", "pred", "label", "refused") if batch.get(key) is not None}
    here = [column.cpu() if isinstance(column, Tensor) else column for column in columns.values()]
    return [dict(zip(columns, values)) for values in zip(*here)]
