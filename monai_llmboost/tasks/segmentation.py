# SPDX-License-Identifier: Apache-2.0
"""The segmentation task with exclusive structures: softmax over the classes, a Dice for each structure of a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from monai_llmboost.networks.class_names import class_names_of, on_one_line, unwrap
from monai_llmboost.tasks.task import Output, TaskMetric

# With more structures, only their mean is compared in studies and listed among the metrics.
MOST_METRICS = 8


def mean_dice(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean Dice over the structures that count: (..., cases, structures) -> (..., cases).

    A structure that is neither in the label map nor in the mask has no Dice (NaN) and does not count; a case without
    any structure has no mean (NaN).
    """
    there = np.isfinite(scores)
    number = there.sum(axis=-1)
    total = np.where(there, scores, 0.0).sum(axis=-1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


class Segmentation:
    """The segmentation task: each voxel is background or of one structure; a case is scored by a Dice per structure.

    The scores of a case are its Dice for each structure, NaN for a structure that is neither in its label map nor in
    its mask. Its label is the label map, so tables have none.

    Args:
        class_names: ``"background"`` and the names of the structures 1, 2, ..., in the order of the logits.

    Raises:
        ValueError: fewer than two classes.

    Example:
        >>> task = Segmentation(["background", "anterior", "posterior"])
        >>> task.columns()
        ['dice_anterior', 'dice_posterior']
        >>> task.row([0.9, float("nan")])
        {'dice_anterior': '0.9', 'dice_posterior': ''}
        >>> [metric.key for metric in task.metrics.values()]
        ['val_dice', 'val_dice_anterior', 'val_dice_posterior']
    """

    name = "segmentation"
    # The scores of a structure may be missing (NaN).
    missing_scores = True

    def __init__(self, class_names: Sequence[str]) -> None:
        names = [" ".join(on_one_line(name).splitlines()) for name in class_names]
        if len(names) < 2:
            raise ValueError(f"a segmentation needs a background and a structure, not {names}: name both")
        self.structures = names[1:]
        self.metrics: Mapping[str, TaskMetric] = {"dice": _metric("Dice", "val_dice", mean_dice)}
        if 1 < len(self.structures) <= MOST_METRICS:
            self.metrics = self.metrics | {
                column: _metric(
                    f"Dice of {name}", f"val_{column}", lambda scores, _, number=number: scores[..., number]
                )
                for number, (name, column) in enumerate(zip(self.structures, self.columns()))
            }

    @classmethod
    def of(cls, network: nn.Module) -> Segmentation:
        """Return the task of a network with class names; after loading, these are the names in its checkpoint."""
        names = class_names_of(network)
        if not names:
            raise ValueError(
                f"the network {type(unwrap(network)).__name__} keeps no class names: make it with class_names"
            )
        return cls(names)

    def activate(self, logits: Tensor) -> Tensor:
        """Return probabilities from logits, both (B, classes, ...), in float32."""
        return logits.float().softmax(dim=1)

    def columns_of(self, measure: str) -> list[str]:
        """Return the column of a measure, such as ``"volume_mm3"``, for each structure."""
        return [f"{measure}_{name}" for name in self.structures]

    def columns(self) -> list[str]:
        """Return the columns of a table: a Dice for each structure."""
        return self.columns_of("dice")

    def row(self, output: Output) -> dict[str, str]:
        """Return the cells of these columns for the Dice of one case; empty for a structure without one."""
        return self.cells("dice", output)

    def cells(self, measure: str, values: Output) -> dict[str, str]:
        """Return the cells of a measure for one case; empty for a structure without a value."""
        return {
            column: f"{float(value):.9g}" if np.isfinite(float(value)) else ""
            for column, value in zip(self.columns_of(measure), values)
        }

    def record(self, output: Output) -> dict[str, Any]:
        """Return the Dice of one case by structure, for JSON; ``None`` for a structure without one."""
        return {
            "dice": {
                name: float(value) if np.isfinite(float(value)) else None
                for name, value in zip(self.structures, output)
            }
        }

    def label(self, value: Any) -> str:
        """Return an empty cell: the label of a case is a volume."""
        return ""

    def read_scores(self, rows: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Return the Dice (cases, structures) from the rows of a table, NaN where a structure has none."""
        columns = self.columns()
        return np.array([[float(row[column] or "nan") for column in columns] for row in rows]).reshape(-1, len(columns))

    def read_labels(self, rows: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Return zeros (cases,): the label maps are part of the scores already."""
        return np.zeros(len(rows), dtype=int)

    def groups(self, labels: np.ndarray) -> np.ndarray:
        """Return zeros: the mean Dice is defined on any cases."""
        return np.zeros(len(labels), dtype=int)

    def check_labels(self, loader: Any, which: str) -> None:
        """Check nothing: a label map is checked when it is read."""


def _metric(label: str, key: str, per_case: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> TaskMetric:
    """Return the metric that is the mean over the cases with a value; NaN if there is none."""

    def mean(scores: np.ndarray, labels: np.ndarray) -> float:
        values = per_case(scores, labels)
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else float("nan")

    return TaskMetric(label, key, mean, per_case=per_case)
