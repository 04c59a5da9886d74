# SPDX-License-Identifier: Apache-2.0
"""What a network's output says of a case: how it is recorded and tabulated; here probabilities of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from ignite.engine import EventEnum, Events
from torch import Tensor, nn

from monai_llmboost.data import RefusedScan, Scan
from monai_llmboost.inference.case import Case
from monai_llmboost.tasks import Classification

NOT_FINITE = "the network's output is not finite: look at the scan, or train again"


class Answers(Protocol):
    """The answers of a network, used by the handler, the tables and the page.

    :class:`ClassProbabilities` and :class:`monai_llmboost.inference.StructureMasks` implement it.

    Example:
        >>> from monai_llmboost.networks.class_names import ClassNames
        >>> network = nn.Module()
        >>> network.class_names = ClassNames(2, ["flat", "round"])
        >>> answers: Answers = ClassProbabilities(network)
        >>> answers.columns()
        ['p_flat', 'p_round', 'predicted']
    """

    @property
    def event(self) -> EventEnum:
        """The event of MONAI's evaluator after which its output "pred" is what :meth:`record` takes."""

    @property
    def class_names(self) -> list[str]:
        """The names in the network's checkpoint.

        Raises:
            ValueError: the network has none.
        """

    @property
    def structures(self) -> dict[int, str]:
        """The value and name of each structure in masks; empty if answers have no masks."""

    def record(self, scan: Scan, case: Case, output: Tensor) -> dict[str, Any]:
        """Return the answer of a case as JSON types, after writing its files.

        Args:
            scan: the scan.
            case: what was read of it.
            output: the case of the evaluator's output "pred".

        Raises:
            RefusedScan: the output is not finite.
        """

    def columns(self) -> list[str]:
        """Return the columns of ``predictions.csv`` that contain an answer, in order."""

    def cells(self, answer: Mapping[str, Any]) -> dict[str, str]:
        """Return the cells of these columns; none if the case is refused."""

    def refused(self) -> dict[str, Any]:
        """Return the answer of a refused case."""


class ClassProbabilities:
    """Answers of a classification: the probability of each class, and the most probable one.

    Args:
        network: the network, which keeps its class names.

    Example:
        >>> from monai_llmboost.networks.class_names import ClassNames
        >>> network = nn.Module()
        >>> network.class_names = ClassNames(2, ["flat", "round"])
        >>> ClassProbabilities(network).cells({"probabilities": [0.25, 0.75]})
        {'p_flat': '0.25', 'p_round': '0.75', 'predicted': 'round'}
    """

    event = Events.ITERATION_COMPLETED

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @property
    def task(self) -> Classification:
        """The task, with the names in the checkpoint that was loaded."""
        return Classification.of(self.network)

    @property
    def class_names(self) -> list[str]:
        """The names in the network's checkpoint."""
        return self.task.class_names

    @property
    def structures(self) -> dict[int, str]:
        """No structures."""
        return {}

    def record(self, scan: Scan, case: Case, output: Tensor) -> dict[str, Any]:
        """Return the probabilities (classes,) and the name of the predicted class."""
        values = output.tolist()
        if not all(map(math.isfinite, values)):
            raise RefusedScan(NOT_FINITE, kind="not-finite")
        return self.task.record(values)

    def columns(self) -> list[str]:
        """Return a column for each class and the predicted class."""
        return self.task.columns()

    def cells(self, answer: Mapping[str, Any]) -> dict[str, str]:
        """Return the cells of these columns."""
        return self.task.row(answer["probabilities"]) if answer.get("probabilities") else {}

    def refused(self) -> dict[str, Any]:
        """Return no probabilities."""
        return {"probabilities": [], "predicted": ""}
