# SPDX-License-Identifier: Apache-2.0
"""The classification task with one class per case: softmax, a column per class, AUC and ACC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from monai_llmboost.artifacts.files import plain_cell
from monai_llmboost.data.labels import check_labels
from monai_llmboost.networks.class_names import class_names_of, on_one_line, unwrap
from monai_llmboost.tasks.medmnist_metrics import medmnist_acc, medmnist_auc
from monai_llmboost.tasks.task import Output, TaskMetric


def is_right(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return 1.0 for a correctly classified case, else 0.0: (..., cases, classes), (cases,) -> (..., cases)."""
    two = probabilities.shape[-1] == 2
    predicted = probabilities[..., 1] > 0.5 if two else probabilities.argmax(axis=-1)
    return (predicted == labels).astype(np.float64)


def one_against_all(probabilities: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each scored class its probabilities (..., cases) and a mask of its cases (cases,)."""
    classes = probabilities.shape[-1]
    for k in [1] if classes == 2 else range(classes):  # two classes have one curve: medmnist uses the second class
        yield probabilities[..., k], labels == k


class Classification:
    """The classification task with one class per case.

    Args:
        class_names: names of the classes 0, 1, ..., in the order of the logits.

    Example:
        >>> task = Classification(["benign", "malignant"])
        >>> task.columns()
        ['p_benign', 'p_malignant', 'predicted']
        >>> task.row([0.25, 0.75])
        {'p_benign': '0.25', 'p_malignant': '0.75', 'predicted': 'malignant'}
    """

    name = "classification"
    metrics: Mapping[str, TaskMetric] = {
        "auc": TaskMetric("AUC", "val_auc", medmnist_auc, curves=one_against_all),
        "acc": TaskMetric("ACC", "val_acc", medmnist_acc, per_case=is_right),
    }

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = [on_one_line(name) for name in class_names]

    @classmethod
    def of(cls, network: nn.Module) -> Classification:
        """Return the task of a network with class names; after loading, these are the names in its checkpoint."""
        names = class_names_of(network)
        if not names:
            raise ValueError(
                f"the network {type(unwrap(network)).__name__} keeps no class names: make it with class_names"
            )
        return cls(names)

    def activate(self, logits: Tensor) -> Tensor:
        """Return probabilities from logits, both (..., classes), in float32."""
        return logits.float().softmax(dim=-1)

    def predicted(self, output: Output) -> int:
        """Return the class with the largest probability, or the first one of equal classes."""
        values = [float(p) for p in output]
        return values.index(max(values))

    def probability_columns(self) -> list[str]:
        """Return the column name of each class."""
        return [f"p_{' '.join(name.splitlines())}" for name in self.class_names]

    def columns(self) -> list[str]:
        """Return the columns of a table: a probability per class, and the class with the largest probability."""
        return [*self.probability_columns(), "predicted"]

    def row(self, output: Output) -> dict[str, str]:
        """Return the cells of these columns for the probabilities of one case."""
        cells = {column: f"{float(p):.9g}" for column, p in zip(self.probability_columns(), output)}
        return {**cells, "predicted": self.class_names[self.predicted(output)]}

    def record(self, output: Output) -> dict[str, Any]:
        """Return the probabilities of one case and the name of its predicted class, for JSON."""
        return {"probabilities": [float(p) for p in output], "predicted": self.class_names[self.predicted(output)]}

    def label(self, value: Any) -> str:
        """Return the name of the class with this number."""
        return self.class_names[int(value)]

    def read_scores(self, rows: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Return the probabilities (cases, classes) from the rows of a table."""
        columns = self.probability_columns()
        return np.array([[float(row[column]) for column in columns] for row in rows]).reshape(-1, len(columns))

    def read_labels(self, rows: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Return the numbers of the classes (cases,) from the column ``label``."""
        return np.array([self.class_names.index(plain_cell(row["label"])) for row in rows], dtype=int)

    def groups(self, labels: np.ndarray) -> np.ndarray:
        """Return the classes: the AUC is undefined without a case of each."""
        return labels

    def check_labels(self, loader: Any, which: str) -> None:
        """Raise a ValueError for labels that are not class numbers, or for a class without a case."""
        check_labels(loader, self.class_names, which)
