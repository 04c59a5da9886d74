# SPDX-License-Identifier: Apache-2.0
"""The plan of a training, derived from the survey of its scans: an overlay of the bundle's config."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_llmboost import __version__
from monai_llmboost.data.labelled import CaseList, LabelledCase
from monai_llmboost.inspection.plans import classification, segmentation
from monai_llmboost.inspection.plans.extent import CPU_VOXELS
from monai_llmboost.inspection.plans.intensity import choose_intensity
from monai_llmboost.inspection.plans.lines import GIVEN, Lines, ScanPlan
from monai_llmboost.inspection.structures import name_structures
from monai_llmboost.inspection.survey import CaseSurvey

# Memory of a training that does not depend on the scans: libraries and the planned network.
PROGRAM_MB = 1300
# Part of the cases that is set aside as test, if each class has enough.
TEST_FRACTION, ENOUGH_FOR_TEST = 0.2, 10


def derive_plan(
    cases: CaseList,
    survey: Sequence[CaseSurvey],
    training: Sequence[LabelledCase],
    given: Mapping[str, Any] | None = None,
    most_voxels: int = CPU_VOXELS,
) -> ScanPlan:
    """Derive a plan from the training cases of a list.

    Args:
        cases: the list.
        survey: the records of its cases.
        training: the cases that statistics may use; without those of the test.
        given: values by key that are taken as they are.
        most_voxels: most voxels of a network's input, ``CPU_VOXELS`` or ``GPU_VOXELS``.

    Raises:
        ValueError: no training case can be read.

    Example:
        >>> derive_plan(cases, survey_cases(cases), cases.cases).values["spacing_mm"]  # doctest: +SKIP
        [1.0, 1.0, 1.0]
    """
    records = {record.name: record for record in survey}
    used = [records[case.name] for case in training if not records[case.name].refused]
    if not used:
        raise ValueError("no training scan can be read: correct the scans, see the reasons of their refusals")
    known = dict(given or {})
    lines = Lines(known)
    lines.add("data", str(Path(cases.path).expanduser().absolute()), "the list")
    kind = segmentation if cases.is_segmentation else classification
    if cases.is_segmentation:
        structures, origin = name_structures(cases, survey, lines.given.get("structures"))
        lines.values["structures"] = {str(value): name for value, name in structures.items()}
        lines.reasons["structures"] = origin
    kind.add_size(lines, cases, training, used, most_voxels)
    intensity, limits, why = choose_intensity(used)
    scheme = lines.add("intensity", intensity, why)
    if "intensity" in lines.given and scheme != intensity:
        limits = [0.5, 99.5] if scheme == "percentiles" else _seen_intensity(used)
    lines.add("intensity_range", limits, "in percent" if scheme == "percentiles" else "in the units of the scans")
    kind.add_training(lines, len(used), most_voxels)
    needs_foreground = lines.values["crop"] == "foreground"
    unusable = [
        record.name for record in survey if record.refused or (needs_foreground and not _has_foreground(record))
    ]
    if "leave_out" in known:  # the given ones, and what cannot be used
        known["leave_out"] = list(dict.fromkeys([*known["leave_out"], *unusable]))
    lines.add("leave_out", unusable, f"{len(unusable)} cases cannot be used" if unusable else "every scan can be read")
    lines.add("test_fraction", *_choose_test_fraction(cases, records))
    lines.add(
        "seen",
        {"spacing_mm": _seen_spacing(used), "intensity": _seen_intensity(used)},
        f"ranges over {len(used)} training cases; a scan outside is warned about when it is predicted",
    )
    for key, value in lines.given.items():
        if key not in lines.values:
            lines.add(key, value, GIVEN)
    kept = len(survey) - len(unusable)
    prepared, more = kind.memory_bytes(lines, used, kept)
    described = {
        "cases": kept,
        "list": cases.digest,
        "memory_mb": math.ceil(prepared / 1e6),
        "peak_mb": math.ceil(PROGRAM_MB + (prepared + more) / 1e6),
        "versions": {"monai_llmboost": __version__},
    }
    return ScanPlan(lines.values, lines.reasons, described)


def _choose_test_fraction(cases: CaseList, records: Mapping[str, CaseSurvey]) -> tuple[float, str]:
    if any(case.split == "test" for case in cases.cases):
        return 0.0, "the list has test cases"
    usable = [case for case in cases.cases if not records[case.name].refused]
    if cases.is_segmentation:
        number = len({case.group or case.name for case in usable})
        if number < ENOUGH_FOR_TEST:
            return 0.0, f"there are {number} cases (of different groups), too few to set some aside"
        return TEST_FRACTION, "the list has no test cases, so a part is set aside"
    units = {
        name: len({case.group or case.name for case in usable if case.label == name}) for name in cases.class_names
    }
    fewest = min(units.values(), default=0)
    if fewest < ENOUGH_FOR_TEST:
        return 0.0, f"a class has {fewest} cases (of different groups), too few to set some aside"
    return TEST_FRACTION, "the list has no test cases, so a part of each class is set aside"


def _has_foreground(record: CaseSurvey) -> bool:
    return any(min(one.foreground_mm) > 0 for one in record.measures)


def _seen_spacing(used: Sequence[CaseSurvey]) -> list[list[float]]:
    steps = np.array([one.spacing_mm for record in used for one in record.measures[:1]])
    return [[round(float(axis.min()), 4), round(float(axis.max()), 4)] for axis in steps.T]


def _seen_intensity(used: Sequence[CaseSurvey]) -> list[float]:
    ends = [(one.percentiles[0], one.percentiles[2]) for record in used for one in record.measures]
    lows, highs = zip(*ends)
    low, high = float(min(lows)), float(max(highs))
    if low == high:  # sparse masks: as in the check at prediction
        low = min(one.minimum for record in used for one in record.measures)
        high = max(one.maximum for record in used for one in record.measures)
    return [float(f"{low:.6g}"), float(f"{high:.6g}")]
