# SPDX-License-Identifier: Apache-2.0
"""AUC and ACC as medmnist's Evaluator computes them, as functions and as Ignite metrics."""

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
    """Return the area under the ROC curve; for more than two classes, the mean of the one-vs-rest areas.

    Args:
        probabilities: (cases, classes), rows sum to one.
        labels: (cases,) whole numbers.

    Raises:
        ValueError: a class without a case, whose area is undefined; probabilities that are not finite.
    """
    from medmnist.evaluator import getAUC

    if not np.isfinite(probabilities).all():
        raise TrainingDiverged("probabilities are not finite, training has diverged: lower the learning rate")
    absent = sorted(set(range(probabilities.shape[1])) - set(labels.tolist()))
    if absent:
        raise ValueError(f"an AUC needs cases of every class, and there are none of the class(es) {absent}: add some")
    return float(getAUC(labels[:, None], probabilities, _kind(probabilities)))


def medmnist_acc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of correctly classified cases: threshold 0.5 for two classes, else the largest."""
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
            raise ValueError(
                "the probabilities have no labels: give batches with labels, and an output_transform that takes both"
            )
        return y_pred.detach().float(), torch.as_tensor(y).reshape(-1, 1)  # (cases, classes), (cases, 1)

    def aggregate(self, *args: Any, **kwargs: Any) -> float:
        probabilities, labels = self.get_buffer()
        return self.metric(probabilities.cpu().numpy().astype(np.float64), labels.cpu().numpy().reshape(-1))


class MedMNISTAUC(IgniteMetricHandler):
    """Ignite metric: AUC as ``medmnist.Evaluator`` computes it, over all cases of all ranks.

    Args:
        output_transform: engine output -> (probabilities, labels), such as ``from_engine(["pred", "label"])``.

    Example:
        >>> from ignite.engine import Engine
        >>> evaluator = Engine(lambda engine, batch: batch)
        >>> MedMNISTAUC().attach(evaluator, "val_auc")
        >>> batch = torch.tensor([[0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1])
        >>> evaluator.run([batch]).metrics
        {'val_auc': 1.0}
    """

    def __init__(self, output_transform: Callable = lambda x: x) -> None:
        super().__init__(metric_fn=_OverAllCases(medmnist_auc), output_transform=output_transform)


class MedMNISTACC(IgniteMetricHandler):
    """Ignite metric: ACC as ``medmnist.Evaluator`` computes it, over all cases of all ranks.

    Args:
        output_transform: engine output -> (probabilities, labels), such as ``from_engine(["pred", "label"])``.

    Example:
        >>> from ignite.engine import Engine
        >>> evaluator = Engine(lambda engine, batch: batch)
        >>> MedMNISTACC().attach(evaluator, "val_acc")
        >>> batch = torch.tensor([[0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 1])
        >>> evaluator.run([batch]).metrics
        {'val_acc': 1.0}
    """

    def __init__(self, output_transform: Callable = lambda x: x) -> None:
        super().__init__(metric_fn=_OverAllCases(medmnist_acc), output_transform=output_transform)
