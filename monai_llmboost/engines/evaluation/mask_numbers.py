# SPDX-License-Identifier: Apache-2.0
"""Measured cases of a segmentation, and the numbers of ``metrics.json`` over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_llmboost.engines.evaluation.cases import EvaluatedCases
from monai_llmboost.tasks import MEASURES, Segmentation, StructureMeasures
from monai_llmboost.tasks.segmentation import mean_dice

NUM_WORST = 6  # cases with pictures


@dataclass(frozen=True)
class MeasuredCase:
    """A case whose mask was compared with its label map.

    Args:
        name: its name.
        structures: the measures of each structure.

    Example:
        >>> MeasuredCase("a", [StructureMeasures(0.5, 2.0, 0.25, 100.0, 300.0)]).dice
        [0.5]
    """

    name: str
    structures: Sequence[StructureMeasures]

    @property
    def dice(self) -> list[float]:
        """The Dice of each structure, NaN where there is none."""
        return [each.dice for each in self.structures]

    @property
    def mean_dice(self) -> float:
        """The mean Dice over the structures that count; NaN if none does."""
        return float(mean_dice(np.array(self.dice), np.empty(0)))

    def row(self, task: Segmentation) -> dict[str, str]:
        """Return the row of the case in ``predictions.csv``."""
        row = {"case": self.name}
        for measure in MEASURES:
            row |= task.cells(measure, [getattr(each, measure) for each in self.structures])
        return row


@dataclass(frozen=True)
class WorstCase:
    """A case with a low mean Dice.

    Args:
        case: its measures.
        picture: WebP of three planes through the largest disagreement, see
            :func:`monai_llmboost.artifacts.contours.contour_picture`.
    """

    case: MeasuredCase
    picture: bytes


def worst_of(cases: Sequence[WorstCase]) -> list[WorstCase]:
    """Return the cases with the smallest mean Dice, the worst first; those with equal ones in the order of names."""
    return sorted(cases, key=lambda each: (each.case.mean_dice, each.case.name))[:NUM_WORST]


def mask_numbers(
    cases: Sequence[MeasuredCase], task: Segmentation, patients: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the numbers of ``metrics.json``: means and medians with 95 % intervals, and counts.

    Each mean is over the cases with a value; how many have none is counted.

    Args:
        cases: the measured cases.
        task: the task.
        patients: patient of each case by its name, if they are known; cases of one patient are drawn together.
    """
    of = None if not patients else np.array([patients.get(case.name, f"case {case.name}") for case in cases])
    count = EvaluatedCases(np.empty((len(cases), 0)), np.zeros(len(cases)), patients=of).count()
    overall = _summary(np.array([case.mean_dice for case in cases]), of)
    structures = {
        name: _of_structure([case.structures[number] for case in cases], of)
        for number, name in enumerate(task.structures)
    }
    return {
        **count,
        "dice": overall.get("mean"),
        "dice_interval_95": overall.get("mean_interval_95"),
        "median_dice": overall.get("median"),
        "median_dice_interval_95": overall.get("median_interval_95"),
        "structures": structures,
    }


def _of_structure(measured: Sequence[StructureMeasures], patients: np.ndarray | None) -> dict[str, Any]:
    in_label = np.array([each.label_volume_mm3 > 0 for each in measured])
    in_mask = np.array([each.volume_mm3 > 0 for each in measured])
    return {
        "cases_with_label": int(in_label.sum()),
        "missed": int((in_label & ~in_mask).sum()),  # Dice 0, no HD95
        "found_without_label": int((in_mask & ~in_label).sum()),  # Dice 0, no HD95
        "in_neither": int((~in_label & ~in_mask).sum()),  # no Dice
        **{name: _summary(np.array([getattr(each, name) for each in measured]), patients) for name in MEASURES},
    }


def _summary(values: np.ndarray, patients: np.ndarray | None) -> dict[str, Any]:
    """Return mean and median with intervals over the cases with a value, and the numbers of cases with and without."""
    there = np.isfinite(values)
    count = {"cases": int(there.sum()), "undefined": int((~there).sum())}
    if not there.any():
        return count
    some = EvaluatedCases(
        values[there, None], np.zeros(there.sum()), patients=None if patients is None else patients[there]
    )
    metrics = {"mean": lambda scores, _: scores.mean(), "median": lambda scores, _: np.median(scores)}
    return {**some.measure(metrics, some.labels), **count}
