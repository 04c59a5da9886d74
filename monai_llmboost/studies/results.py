# SPDX-License-Identifier: Apache-2.0
"""The results of a study as records, and their JSON in ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from monai_llmboost.studies.rates import ChosenRate
from monai_llmboost.studies.statistics.records import Comparison, Summary
from monai_llmboost.studies.statistics.roc import RocCurves


@dataclass(frozen=True)
class MetricName:
    """The label and direction of a metric, for pages."""

    label: str
    larger_is_better: bool = True


@dataclass(frozen=True)
class FailedRun:
    """An unfinished run and the reason."""

    run: str
    reason: str


@dataclass(frozen=True)
class ArmResults:
    """The results of an arm on a data set; empty if no seed is complete in every arm.

    Args:
        failed: the arm's unfinished runs.
        metrics: metrics on the test cases, by name.
        validation: the metric that validation chooses by, on the validation cases.
        epochs: for each run, the epoch of the evaluated weights.
        other_weights: as ``metrics``, with the other weights.
        other_chosen_by: how the other weights were chosen.
    """

    failed: list[FailedRun]
    metrics: Mapping[str, Summary] = field(default_factory=dict)
    validation: Summary | None = None
    epochs: list[int] = field(default_factory=list)
    other_weights: Mapping[str, Summary] = field(default_factory=dict)
    other_chosen_by: str = ""

    def as_dict(self, metrics: Sequence[str]) -> dict[str, Any]:
        """Return the results for ``results.json``; validation chooses by the first of the metrics."""
        first = metrics[0]
        other = (
            {"what": self.other_chosen_by, first: self.other_weights[first].as_dict()}
            if first in self.other_weights
            else None
        )
        return {
            **{name: self.metrics[name].as_dict() if name in self.metrics else None for name in metrics},
            f"validation_{first}": self.validation and self.validation.as_dict(),
            "epochs": self.epochs,
            "beside": other,  # the name in the file format since the first version
            "failed": [asdict(run) for run in self.failed],
        }


@dataclass(frozen=True)
class Curves:
    """Learning curves of an arm's runs: a list for each run, with ``None`` for an epoch without validation."""

    epoch: list[int]
    train_loss: list[list[float | None]]
    validation: list[list[float | None]]

    def as_dict(self, metric: str) -> dict[str, Any]:
        """Return the curves for ``results.json``."""
        return {"epoch": self.epoch, "train_loss": self.train_loss, f"validation_{metric}": self.validation}


@dataclass(frozen=True)
class FloorResults:
    """The comparison of the base of a study with its floors on a data set.

    Args:
        comparisons: base minus floor.
        single_numbers: test AUC of single numbers of a volume, by name.
        shortcut: a warning if one of them alone predicts the class, else empty.
        left_out: why there are no floors, or empty.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    single_numbers: Mapping[str, float] = field(default_factory=dict)
    shortcut: str = ""
    left_out: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the results for ``results.json``."""
        return {
            "comparisons": [comparison.as_dict() for comparison in self.comparisons],
            "single_numbers": dict(self.single_numbers),
            "shortcut": self.shortcut,
            "left_out": self.left_out,
        }


@dataclass(frozen=True)
class DatasetResults:
    """The results of a study on one data set.

    ``arms`` has all arms and floors, ``roc`` those with runs, and the other mappings the arms with runs.

    Args:
        cases: numbers of training, validation and test cases.
        class_names: names of the classes, if the task has classes.
        learning_rates: learning rates by arm.
        arms: results by arm.
        comparisons: comparisons of pairs of arms.
        curves: learning curves by arm.
        roc: ROC curves by arm.
        cost: result of :func:`monai_llmboost.studies.cost_of_arms`.
        diagnostics: by arm and measure; ``None`` for an arm without a booster.
        floors: comparisons with the floors.
        caveats: sentences that every verdict begins with.
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
    floors: FloorResults = field(default_factory=FloorResults)
    caveats: list[str] = field(default_factory=list)

    def as_dict(self, metrics: Sequence[str]) -> dict[str, Any]:
        """Return the results for ``results.json``."""
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
            "floors": self.floors.as_dict(),
            "caveats": self.caveats,
        }


@dataclass(frozen=True)
class StudyResults:
    """All results of a study.

    Args:
        study: the plan, and how the weights were chosen.
        metrics: by name; validation chooses by the first one.
        software: versions by name.
        device: name of the device.
        command: the command that started the study.
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
        """Return the results for ``results.json``."""
        return {
            "study": dict(self.study),
            "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
            "software": dict(self.software),
            "device": self.device,
            "command": self.command,
            "model_card": self.model_card,
            "datasets": {name: found.as_dict(list(self.metrics)) for name, found in self.datasets.items()},
        }
