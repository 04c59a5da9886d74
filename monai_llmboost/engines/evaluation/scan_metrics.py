# SPDX-License-Identifier: Apache-2.0
"""The output of an evaluation of scans: metrics at a threshold from validation, and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from torch import nn

from monai_llmboost.data.labels import cases_of
from monai_llmboost.engines.evaluation.cases import CaseCollector, EvaluatedCases
from monai_llmboost.engines.evaluation.threshold import Threshold, predict_cases
from monai_llmboost.engines.results import METRICS_FILE, check_classes, log_metrics, write_metrics
from monai_llmboost.tasks import (
    Classification,
    balanced_accuracy,
    calibration_error,
    class_recalls,
    confusion_counts,
    error_if_calibrated,
)

PAGE_FILE = "evaluation.html"
VALIDATION, TRAINING = ("val", "validation"), ("train", "training")  # names of splits


class ScanMetrics:
    """Writes ``metrics.json`` and ``evaluation.html`` when an evaluator of a classification completes, on rank 0.

    In addition to the numbers of :class:`MetricsFile`, there are balanced accuracy, recall by class, calibration error
    and the confusion matrix. Two classes get a threshold: when the evaluator starts, the network predicts the
    validation cases, and the threshold with the largest sensitivity + specificity on them is used for all these numbers
    but the calibration error. With more classes the most probable one is predicted.

    Args:
        output_dir: the folder; earlier files in it are renamed, not overwritten.
        network: the network, which knows the class names of its loaded checkpoint.
        class_names: names of the classes of the cases; the second of two is the positive one.
        auc: name of the evaluator's metric that gathers scores and labels, such as :class:`MedMNISTAUC`.
        about: metadata such as dataset and split, written next to the numbers. A ``"split"`` "val" says that the
            threshold and the epoch were chosen on the evaluated cases.
        validation: loader of the validation cases; ``None`` uses the threshold 0.5.

    Raises:
        ValueError: in the run, if the network was trained for other classes, or a class has no case among the
            evaluated cases or, with two classes, among the validation cases.
        TrainingDiverged: in the run, if probabilities are not finite.

    Example:
        >>> from monai_llmboost.networks import ViT3D
        >>> network = ViT3D(1, 2, 28, 7, class_names=["benign", "malignant"])
        >>> about = {"data": "scans.csv", "split": "test"}
        >>> handlers = [  # of an evaluator, after the handler that loads the weights
        ...     ScanMetrics("eval", network, ["benign", "malignant"], "val_auc", about, validation=None)
        ... ]
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: nn.Module,
        class_names: Sequence[str],
        auc: str,
        about: Mapping[str, Any],
        validation: Any = None,
    ) -> None:
        self.path = Path(output_dir) / METRICS_FILE
        self.network = network
        self.class_names = class_names
        self.auc = auc
        self.about = dict(about)
        self.validation = validation
        self.collector = CaseCollector()
        self.threshold: Threshold | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to MONAI's supervised evaluator."""
        self.collector.attach(engine)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Check classes and labels, and choose the threshold on the validation cases."""
        check_classes(self.class_names, self.network)
        self.task = Classification.of(self.network)
        evaluated = getattr(engine, "data_loader", None)
        self.task.check_labels(evaluated, "evaluated")
        self.threshold = Threshold() if len(self.class_names) == 2 else None
        if self.threshold is not None and self.validation is not None and self.validation is not evaluated:
            self.task.check_labels(self.validation, "validation")
            self.threshold = Threshold.choose(*predict_cases(engine, self.network, self.validation, self.task))

    def write(self, engine: Engine) -> None:
        """Write both files."""
        cases = self.collector.gather(engine, self.auc)
        if cases is None:
            return
        evaluated = getattr(engine, "data_loader", None)
        if self.threshold is not None and self.validation is not None and self.validation is evaluated:
            self.threshold = Threshold.choose(cases.scores, cases.labels)
        numbers = measure_cases(cases, self.task, self.threshold)
        numbers["caveats"] = self.caveats(cases, evaluated)
        write_metrics(self.path, {**self.about, **cases.count(), **numbers})
        log_metrics(self.path, self.task, cases, numbers)
        from monai_llmboost.engines.evaluation.page.report import write_evaluation_page  # imports matplotlib

        write_evaluation_page(self.path.with_name(PAGE_FILE), cases, self.about, numbers)

    def caveats(self, cases: EvaluatedCases, evaluated: Any) -> list[str]:
        """Return sentences on what limits the numbers."""
        sentences = []
        chosen = ["the threshold"] if self.threshold is not None and self.threshold.cases else []
        chosen += ["the epoch"] if self.about.get("weights") != "last" else []
        shared = self.count_shared(cases, evaluated)
        if shared and chosen:
            words = " and ".join(chosen).capitalize() + (" were" if len(chosen) > 1 else " was")
            some = "" if shared == len(cases.labels) else f"{shared} of "
            sentences.append(f"{words} chosen on {some}these cases, so the numbers are optimistic.")
        if self.about.get("split") in TRAINING:
            sentences.append("The network was trained on these cases, so the numbers say nothing about other cases.")
        if self.threshold is not None and not self.threshold.cases:
            sentences.append(f"No validation cases were given, so the threshold is {self.threshold.value}.")
        elif self.threshold is not None and not self.threshold.better_than_chance:
            sentences.append(
                f"No threshold was better than chance on the validation cases, so it is {self.threshold.value}."
            )
        return sentences

    def count_shared(self, cases: EvaluatedCases, evaluated: Any) -> int:
        """Return the number of evaluated cases that are also validation cases."""
        if self.about.get("split") in VALIDATION or (self.validation is not None and self.validation is evaluated):
            return len(cases.labels)
        if cases.names is None:
            return 0
        return len(cases_of(getattr(self.validation, "dataset", None)) & set(map(str, cases.names)))


def measure_cases(cases: EvaluatedCases, task: Classification, threshold: Threshold | None) -> dict[str, Any]:
    """Return the numbers of ``metrics.json`` and of the page.

    Args:
        cases: evaluated cases.
        task: their classification.
        threshold: threshold of two classes; ``None``: the most probable class is predicted.
    """
    names = task.class_names
    cut = None if threshold is None else threshold.value
    numbers = cases.measure(
        {
            **{name: metric.compute for name, metric in task.metrics.items()},
            "balanced_accuracy": lambda scores, labels: balanced_accuracy(scores, labels, cut),
            "recall": lambda scores, labels: class_recalls(scores, labels, cut),
            "calibration_error": calibration_error,
        },
        task.groups(cases.labels),
    )
    counts = confusion_counts(cases.scores, cases.labels, cut)
    numbers["recall_interval_95"] = [
        _widen(interval, int(row[number]), int(row.sum()))
        for number, (interval, row) in enumerate(zip(numbers["recall_interval_95"], counts))
    ]
    if threshold is not None:
        numbers |= {"positive_class": names[1], **threshold.numbers()}
        for index, name in ((1, "sensitivity"), (0, "specificity")):
            numbers |= {f"{name}{end}": numbers[f"recall{end}"][index] for end in ("", "_interval_95")}
    return numbers | {
        "recall": dict(zip(names, numbers["recall"])),
        "recall_interval_95": dict(zip(names, numbers["recall_interval_95"])),
        "calibration_error_if_calibrated": error_if_calibrated(cases.scores),
        "majority": float(np.max(counts.sum(axis=1)) / counts.sum()),
        "confusion_matrix": {"class_names": names, "counts": counts.tolist()},
    }


def _widen(interval: Sequence[float], found: int, cases: int) -> list[float]:
    """Return the smallest interval with a bootstrap interval and Wilson's; the bootstrap of 0 or 1 has no width."""
    from scipy.stats import binomtest

    wilson = binomtest(found, cases).proportion_ci(method="wilson")
    return [min(interval[0], float(wilson.low)), max(interval[1], float(wilson.high))]
