# SPDX-License-Identifier: Apache-2.0
"""The evaluated cases of all ranks, and metrics of them with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from torch import distributed

from monai_llmboost.data.labels import patients_of
from monai_llmboost.tasks import bootstrap_draws

# Scores (cases, values) and labels (cases,) -> one number, or several (numbers,).
Metric = Callable[[np.ndarray, np.ndarray], Any]


@dataclass(frozen=True)
class EvaluatedCases:
    """Scores and labels of the evaluated cases.

    Args:
        scores: (cases, values) float64, such as class probabilities.
        labels: (cases,).
        names: names of the cases (cases,); ``None`` if batches contain none.
        patients: patient of each case (cases,); ``None`` if the data set does not know them.
    """

    scores: np.ndarray
    labels: np.ndarray
    names: np.ndarray | None = None
    patients: np.ndarray | None = None

    def count(self) -> dict[str, int]:
        """Return the number of cases and, if known, of patients."""
        patients = {} if self.patients is None else {"patients": len(np.unique(self.patients))}
        return {"cases": len(self.labels), **patients}

    def measure(self, metrics: Mapping[str, Metric], groups: np.ndarray) -> dict[str, Any]:
        """Return each metric, and its 95 % bootstrap interval as ``NAME_interval_95``; all use the same samples.

        A metric of several numbers has a list of intervals.

        Args:
            metrics: by name.
            groups: group of each case, of which each sample must have one; see
                :func:`monai_llmboost.tasks.bootstrap_interval`.
        """
        values: dict[str, list[Any]] = {name: [] for name in metrics}
        for drawn in bootstrap_draws(groups, patients=self.patients):
            for name, metric in metrics.items():
                values[name].append(metric(self.scores[drawn], self.labels[drawn]))
        numbers: dict[str, Any] = {}
        for name, metric in metrics.items():
            numbers[name] = np.asarray(metric(self.scores, self.labels)).tolist()
            numbers[f"{name}_interval_95"] = np.quantile(values[name], [0.025, 0.975], axis=0).T.tolist()
        return numbers


class CaseCollector:
    """Collects the names of an evaluator's cases, and returns the cases when it completes."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self.names.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)

    def collect(self, engine: Engine) -> None:
        """Collect the names of one batch's cases."""
        self.names += names_in(engine.state.batch)

    def gather(self, engine: Engine, auc: str) -> EvaluatedCases | None:
        """Return the cases of all ranks on rank 0, ``None`` on the others.

        The cases are sorted by name (by label and scores without names), so that numbers do not depend on the number
        of processes.

        Args:
            engine: the completed evaluator.
            auc: name of its metric that gathers scores and labels.
        """
        names = np.array([name for part in gathered(self.names) for name in part])
        if idist.get_rank() != 0:
            return None
        state: Any = engine.state
        scores, labels = (x.cpu().numpy() for x in state.metric_details[auc])
        scores, labels = scores.astype("float64"), labels.reshape(-1)
        # The metric gathers the ranks in the same order as the names.
        named = len(names) == len(labels)
        order = np.lexsort([names] if named else [*scores.T, labels])
        scores, labels = scores[order], labels[order]
        if not named:
            return EvaluatedCases(scores, labels)
        names = names[order]
        known = patients_of(getattr(getattr(state, "dataloader", None), "dataset", None))
        patients = np.array([known.get(name, f"case {name}") for name in names]) if known else None
        return EvaluatedCases(scores, labels, names, patients)


def names_in(batch: Any) -> list[str]:
    """Return the names of the cases in a batch, decollated or not; an empty list if it contains none."""
    columns = [batch] if isinstance(batch, Mapping) else batch if isinstance(batch, list) else []
    names: list[str] = []
    for column in columns:
        found = column.get("case", ()) if isinstance(column, Mapping) else ()
        names += [found] if isinstance(found, str) else list(found)
    return names


def gathered(value: Any) -> list[Any]:
    """Return the values of all ranks, in rank order."""
    if idist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * idist.get_world_size()
    distributed.all_gather_object(values, value)
    return values
