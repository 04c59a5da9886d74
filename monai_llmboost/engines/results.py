# SPDX-License-Identifier: Apache-2.0
"""What evaluation and inference leave on disk: a table of predictions, metrics with their intervals."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from torch import Tensor, distributed, nn

from monai_llmboost.artifacts.files import safe_row, written_whole
from monai_llmboost.data.labels import check_labels
from monai_llmboost.networks.class_names import class_names_of, on_one_line, unwrap
from monai_llmboost.tasks.classification import bootstrap_interval, medmnist_acc, medmnist_auc

logger = logging.getLogger("monai_llmboost")


class PredictionTable:
    """Writes ``predictions.csv`` when an evaluator is done: one row per case, on rank 0, for all ranks.

    Columns: case; one probability per class, ``p_<class name>``; ``predicted``, the class of the largest; ``label``
    where cases have one; ``refused``, the reason why a case has no prediction, where cases may be refused. A case whose
    probabilities are not finite is refused.

    Args:
        output_dir: the folder; an earlier ``predictions.csv`` in it is renamed, not overwritten.
        network: gives the names of its classes, those of the checkpoint it loaded.
        class_names: the names that the cases' labels have, if they have labels.

    Raises:
        ValueError: from the run, if the network was trained for other classes than ``class_names``.
    """

    def __init__(self, output_dir: str | Path, network: nn.Module, class_names: Sequence[str] | None = None) -> None:
        self.path = Path(output_dir) / "predictions.csv"
        self.network = network
        self.class_names = class_names
        self.names: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator, decollating or not, whose batches hold "pred" (probabilities) and "case"."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Learn the names of the classes, once the checkpoint is loaded, and look at the cases' labels."""
        self.rows = []
        self.names = class_names_of(self.network)
        if not self.names:
            raise ValueError(f"expected a network with class_names, got {type(unwrap(self.network)).__name__}")
        if self.class_names is not None and list(map(on_one_line, self.class_names)) != self.names:
            raise ValueError(
                f"expected a network trained for the classes {list(self.class_names)}, the checkpoint's are "
                f"{self.names}: give the --dataset that it was trained on"
            )
        if self.class_names is not None:
            check_labels(getattr(engine, "data_loader", None), self.names, "evaluated")

    def collect(self, engine: Engine) -> None:
        """Take the rows of one batch."""
        state: Any = engine.state
        batch, output = (_items(part) if isinstance(part, Mapping) else part for part in (state.batch, state.output))
        self.rows += [self._row({**item, **answer}) for item, answer in zip(batch, output)]

    def _row(self, item: Mapping[str, Any]) -> dict[str, Any]:
        probabilities = [float(p) for p in item["pred"]]
        refused = item.get("refused", "")
        if not refused and not all(map(math.isfinite, probabilities)):
            refused = "the network's output is not finite"
        row: dict[str, Any] = {"case": item["case"]}
        for name, p in zip(self.names, probabilities):
            row[f"p_{name}"] = "" if refused else f"{p:.9g}"
        row["predicted"] = "" if refused else self.names[probabilities.index(max(probabilities))]
        if item.get("label") is not None:
            row["label"] = self.names[int(item["label"])]
        if "refused" in item or refused:
            row["refused"] = refused
        return row

    def write(self, engine: Engine) -> None:
        """Write the table of all ranks."""
        rows = [row for part in gathered(self.rows) for row in part]
        if idist.get_rank() == 0 and rows:
            with written_whole(self.path) as file:
                writer = csv.DictWriter(file, max(map(list, rows), key=len), restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(map(safe_row, sorted(rows, key=lambda row: row["case"])))
            refused = sum(bool(row.get("refused")) for row in rows)
            logger.info(f"{len(rows)} cases, {refused} refused: {self.path}")


class MetricsFile:
    """Writes ``metrics.json`` when an evaluator is done: AUC and ACC with 95 % intervals over the cases, on rank 0.

    Cases are sorted by their names first (where batches hold none, by label and probabilities), so that the numbers do
    not depend on how many processes took part.

    Args:
        output_dir: the folder; an earlier ``metrics.json`` in it is renamed, not overwritten.
        auc: name of the evaluator's :class:`MedMNISTAUC`, whose gathered cases are used.
        about: what the numbers are of, such as dataset and split; written beside them.
    """

    def __init__(self, output_dir: str | Path, auc: str, about: Mapping[str, Any]) -> None:
        self.path = Path(output_dir) / "metrics.json"
        self.auc = auc
        self.about = dict(about)
        self.cases: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self.cases.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def collect(self, engine: Engine) -> None:
        """Take the names of one batch's cases."""
        batch: Any = engine.state.batch
        columns = [batch] if isinstance(batch, Mapping) else batch if isinstance(batch, list) else []
        for column in columns:
            found = column.get("case", ()) if isinstance(column, Mapping) else ()
            self.cases += [found] if isinstance(found, str) else list(found)

    def write(self, engine: Engine) -> None:
        """Write the file."""
        cases = [case for part in gathered(self.cases) for case in part]
        if idist.get_rank() != 0:
            return
        state: Any = engine.state
        probabilities, labels = (x.cpu().numpy() for x in state.metric_details[self.auc])
        probabilities, labels = probabilities.astype("float64"), labels.reshape(-1)
        # The metric gathers the ranks in their order, as the names were.
        keys = [np.array(cases)] if len(cases) == len(labels) else [*probabilities.T, labels]
        order = np.lexsort(keys)
        probabilities, labels = probabilities[order], labels[order]
        numbers: dict[str, Any] = {}
        for name, metric in (("auc", medmnist_auc), ("acc", medmnist_acc)):
            numbers[name] = metric(probabilities, labels)
            numbers[f"{name}_interval_95"] = list(bootstrap_interval(metric, probabilities, labels))
        with written_whole(self.path) as file:
            json.dump({**self.about, "cases": len(labels), **numbers}, file, indent=2)
            file.write("\n")
        logger.info(f"AUC {numbers['auc']:.4f} ACC {numbers['acc']:.4f} on {len(labels)} cases: {self.path}")


def _items(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the table needs of a whole batch, as one dictionary per case; each tensor comes from its device in one."""
    columns = {key: batch[key] for key in ("case", "pred", "label", "refused") if batch.get(key) is not None}
    lists = [column.tolist() if isinstance(column, Tensor) else column for column in columns.values()]
    return [dict(zip(columns, values)) for values in zip(*lists)]


def gathered(value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    if idist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * idist.get_world_size()
    distributed.all_gather_object(values, value)
    return values
