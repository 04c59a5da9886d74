# SPDX-License-Identifier: Apache-2.0
"""AUC and ACC exactly as medmnist's Evaluator computes them, also as Ignite metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from monai_llmboost.tasks.task import TrainingDiverged


def medmnist_auc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve; for more than two classes the mean of their one-against-all areas.

    Args:
        probabilities: (cases, classes), rows sum to one.
        labels: (cases,) whole numbers.

    Raises:
        ValueError: a class has no case, so that its area is undefined; probabilities that are not finite.
    """
    from medmnist.evaluator import getAUC

    if not np.isfinite(probabilities).all():
        raise TrainingDiverged("expected finite probabilities, got NaN: training has diverged, lower the learning rate")
    absent = sorted(set(range(probabilities.shape[1])) - set(labels.tolist()))
    if absent:
        raise ValueError(f"expected cases of every class for an AUC, none of the class(es) {absent} are there")
    return float(getAUC(labels[:, None], probabilities, _kind(probabilities)))


def medmnist_acc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of cases classified rightly: above 0.5 for two classes, the largest for more."""
    from medmnist.evaluator import getACC

    return float(getACC(labels[:, None], probabilities, _kind(probabilities)))


def _kind(probabilities: np.ndarray) -> str:
    return "binary-class" if probabilities.shape[1] == 2 else "multi-class"


class _OverAllCases(CumulativeIterationMetric):
    """Gathers probabilities and labels of all cases, on all ranks, and computes one number from them."""

    def __init__(self, metric: Callable[[np.ndarray, np.ndarray], float]) -> None:
        super().__init__()
        self.metric = metric

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if y is None:
            raise ValueError("expected labels beside the probabilities, got none")
        return y_pred.detach().float(), torch.as_tensor(y).reshape(-1, 1)  # (cases, classes), (cases, 1)

    def aggregate(self, *args: Any, **kwargs: Any) -> float:
        probabilities, labels = self.get_buffer()
        return self.metric(probabilities.cpu().numpy().astype(np.float64), labels.cpu().numpy().reshape(-1))


class MedMNISTAUC(IgniteMetricHandler):
    """Ignite metric: AUC as ``medmnist.Evaluator`` computes it, over all cases of all ranks.

    Args:
        output_transform: engine output -> (probabilities, labels), such as ``from_engine(["pred", "label"])``.
    """

    def __init__(self, output_transform: Callable = lambda x: x) -> None:
        super().__init__(metric_fn=_OverAllCases(medmnist_auc), output_transform=output_transform)


class MedMNISTACC(IgniteMetricHandler):
    """Ignite metric: ACC as ``medmnist.Evaluator`` computes it, over all cases of all ranks.

    Args:
        output_transform: engine output -> (probabilities, labels), such as ``from_engine(["pred", "label"])``.
    """

    def __init__(self, output_transform: Callable = lambda x: x) -> None:
        super().__init__(metric_fn=_OverAllCases(medmnist_acc), output_transform=output_transform)
