# SPDX-License-Identifier: Apache-2.0
"""The results of a study as records, and as the JSON of ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from monai_llmboost.studies.rates import ChosenRate
from monai_llmboost.studies.statistics.records import Comparison, Summary
from monai_llmboost.studies.statistics.roc import RocCurves


@dataclass(frozen=True)
class MetricName:
    """A metric as pages show it."""

    label: str
    larger_is_better: bool = True


@dataclass(frozen=True)
class FailedRun:
    """A run that was not finished, and why."""

    run: str
    reason: str


@dataclass(frozen=True)
class ArmResults:
    """The results of an arm on a data set; without runs that every arm has there are none.

    Args:
        failed: its runs that were not finished.
        metrics: of the test cases, by the name of the metric.
        validation: the metric that chooses, on validation.
        epochs: of each run, the one whose weights are read.
        other_weights: as ``metrics``, by the other weights.
        other_chosen_by: what chose those.
    """

    failed: list[FailedRun]
    metrics: Mapping[str, Summary] = field(default_factory=dict)
    validation: Summary | None = None
    epochs: list[int] = field(default_factory=list)
    other_weights: Mapping[str, Summary] = field(default_factory=dict)
    other_chosen_by: str = ""

    def as_dict(self, metrics: Sequence[str]) -> dict[str, Any]:
        """Return the results as ``results.json`` has them; the first of the metrics is the one that chooses."""
        first = metrics[0]
        other = (
            {"what": self.other_chosen_by, first: self.other_weights[first].as_dict()} if self.other_weights else None
        )
        return {
            **{name: self.metrics[name].as_dict() if name in self.metrics else None for name in metrics},
            f"validation_{first}": self.validation and self.validation.as_dict(),
            "epochs": self.epochs,
            "beside": other,  # the name that the file has had from the start
            "failed": [asdict(run) for run in self.failed],
        }


@dataclass(frozen=True)
class Curves:
    """Learning curves of the runs of an arm: a list for each run, ``None`` where an epoch was not validated."""

    epoch: list[int]
    train_loss: list[list[float | None]]
    validation: list[list[float | None]]

    def as_dict(self, metric: str) -> dict[str, Any]:
        """Return the curves as ``results.json`` has them."""
        return {"epoch": self.epoch, "train_loss": self.train_loss, f"validation_{metric}": self.validation}


@dataclass(frozen=True)
class DatasetResults:
    """The results of a study on one data set; what is by arm has the arms that have runs.

    Args:
        cases: numbers of training, validation and test cases.
        class_names: of the classes, if the task has some.
        learning_rates: by arm.
        arms: all arms.
        comparisons: of pairs of arms.
        curves: learning curves by arm.
        roc: ROC curves by arm.
        cost: what :func:`monai_llmboost.studies.cost_of_arms` measured.
        diagnostics: by arm, by measure; ``None`` for an arm without a booster.
    """

    cases: Mapping[str, int]
    class_names: list[str]
    learning_rates: Mapping[str, ChosenRate]
    arms: Mapping[str, ArmResults]
    comparisons: list[Comparison]
    curves: Mapping[str, Curves]
    roc: Mapping[str, RocCurves]
    cost: Mapping[str, Any]
    diagnostics: Mapping[str, Mapping[str, Summary] | None]

    def as_dict(self, metrics: Sequence[str]) -> dict[str, Any]:
        """Return the results as ``results.json`` has them."""
        first = metrics[0]
        return {
            "cases": dict(self.cases),
            "class_names": self.class_names,
            "learning_rates": {arm: rate.as_dict(first) for arm, rate in self.learning_rates.items()},
            "arms": {arm: found.as_dict(metrics) for arm, found in self.arms.items()},
            "comparisons": [comparison.as_dict() for comparison in self.comparisons],
            "curves": {arm: curves.as_dict(first) for arm, curves in self.curves.items()},
            "roc": {arm: asdict(curves) for arm, curves in self.roc.items()},
            "cost": dict(self.cost),
            "diagnostics": {
                arm: found and {name: summary.as_dict() for name, summary in found.items()}
                for arm, found in self.diagnostics.items()
            },
        }


@dataclass(frozen=True)
class StudyResults:
    """All results of a study.

    Args:
        study: the plan, and what chose the weights.
        metrics: by name; the first is the one that chooses.
        software: versions by name.
        device: that the study ran on.
        command: that started it.
        model_card: intended use of the bundle.
        datasets: results by data set.
    """

    study: Mapping[str, Any]
    metrics: Mapping[str, MetricName]
    software: Mapping[str, str]
    device: str
    command: str
    model_card: str
    datasets: Mapping[str, DatasetResults]

    def as_dict(self) -> dict[str, Any]:
        """Return the results as ``results.json`` has them."""
        return {
            "study": dict(self.study),
            "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
            "software": dict(self.software),
            "device": self.device,
            "command": self.command,
            "model_card": self.model_card,
            "datasets": {name: found.as_dict(list(self.metrics)) for name, found in self.datasets.items()},
        }
