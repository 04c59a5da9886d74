# SPDX-License-Identifier: Apache-2.0
"""ROC curves of runs at fixed false positive rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_curve

from monai_llmboost.tasks.task import TaskMetric

FALSE_POSITIVE_RATES = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class RocCurves:
    """ROC curves of the runs of an arm.

    Args:
        false_positive_rate: (points,), the same for all runs.
        true_positive_rate: a list (points,) for each run.
    """

    false_positive_rate: list[float]
    true_positive_rate: list[list[float]]


def roc_curves(metrics: Mapping[str, TaskMetric], scores: np.ndarray, labels: np.ndarray) -> RocCurves | None:
    """Return a curve for each run, the mean over the curves of the first metric with ROC curves.

    Args:
        metrics: metrics of a task.
        scores: (runs, cases, values).
        labels: (cases,).

    Returns:
        ``None`` for a task without ROC curves.
    """
    curves_of = next((metric.curves for metric in metrics.values() if metric.curves), None)
    if curves_of is None:
        return None
    runs = []
    for run in scores:
        curves = [roc_curve(positive, of_curve)[:2] for of_curve, positive in curves_of(run, labels)]
        mean = np.mean([np.interp(FALSE_POSITIVE_RATES, *curve) for curve in curves], axis=0)
        runs.append(mean.round(5).tolist())
    return RocCurves(FALSE_POSITIVE_RATES.round(5).tolist(), runs)
