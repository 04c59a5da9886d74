# SPDX-License-Identifier: Apache-2.0
"""The interface of a task, used by metrics, tables, statistics and pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

# Scores of runs on the same cases (..., cases, values) and labels (cases,) -> (..., cases).
PerCase = Callable[[np.ndarray, np.ndarray], np.ndarray]
# The same arguments -> for each curve the scores (..., cases) and which cases are positive (cases,).
Curves = Callable[[np.ndarray, np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]
# The network's output for one case, after activation.
Output = Tensor | Sequence[float]


class TrainingDiverged(ValueError):
    """Error for a network whose outputs are no longer finite.

    Example:
        >>> raise TrainingDiverged("the probabilities are not finite: lower the learning rate")
        Traceback (most recent call last):
        monai_llmboost.tasks.task.TrainingDiverged: the probabilities are not finite: lower the learning rate
    """


@dataclass(frozen=True)
class TaskMetric:
    """A metric of a task. Give ``per_case`` or ``curves``: either determines the variance over the cases.

    Args:
        label: its label in tables and pages, such as ``"AUC"``.
        key: its name among the metrics of an evaluator, such as ``"val_auc"``.
        compute: scores (cases, values) and labels (cases,) -> one number.
        per_case: value of each case, for a metric that is their mean, such as accuracy, Dice or error.
        curves: scores and positive cases of each ROC curve, for a metric that is the mean area under ROC curves.
        bounds: the smallest and the largest possible value.
        larger_is_better: False for an error.

    Example:
        >>> import numpy as np
        >>> def error(scores, labels):
        ...     return abs(scores[..., 0] - labels)
        >>> mae = TaskMetric("MAE", "val_mae", lambda *case: error(*case).mean(), error, larger_is_better=False)
        >>> float(mae.compute(np.array([[1.0], [4.0]]), np.array([2, 4])))
        0.5
    """

    label: str
    key: str
    compute: Callable[[np.ndarray, np.ndarray], float]
    per_case: PerCase | None = None
    curves: Curves | None = None
    bounds: tuple[float, float] = (0.0, 1.0)
    larger_is_better: bool = True

    def __post_init__(self) -> None:
        if (self.per_case is None) == (self.curves is None):
            raise ValueError(f"the metric {self.label} needs either per_case or curves, for its variance over cases")


class Task(Protocol):
    """The interface of a task; ``Classification`` and ``Segmentation`` implement it.

    The scores of a case are the part of its output that a table contains; metrics need only scores and labels. A task
    with ``class_names`` needs cases of each class; with ``missing_scores = True`` a case may lack some scores (NaN),
    which the metrics leave out.

    Example:
        >>> from monai_llmboost.tasks import Classification
        >>> task: Task = Classification(["benign", "malignant"])
        >>> [metric.label for metric in task.metrics.values()]
        ['AUC', 'ACC']
    """

    name: str
    metrics: Mapping[str, TaskMetric]  # by name in files; the first metric is the one that validation chooses by

    def activate(self, logits: Tensor) -> Tensor:
        """Return the outputs of a batch (B, ...) from the network's logits, in float32."""

    def columns(self) -> list[str]:
        """Return the columns of a table that contain an output, in order."""

    def row(self, output: Output) -> dict[str, str]:
        """Return the cells of these columns for the output of one case."""

    def record(self, output: Output) -> dict[str, Any]:
        """Return the output of one case for a JSON file."""

    def label(self, value: Any) -> str:
        """Return the cell of the column ``label`` for the label of one case."""

    def read_scores(self, rows: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Return the scores (cases, values) from the rows of a table."""

    def read_labels(self, rows: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Return the labels (cases,) from the rows of a table."""

    def groups(self, labels: np.ndarray) -> np.ndarray:
        """Return the group of each case, a whole number; metrics are undefined without a case of each group."""

    def check_labels(self, loader: Any, which: str) -> None:
        """Raise a ValueError for invalid labels; ``which`` names the cases of the loader, such as "training"."""
