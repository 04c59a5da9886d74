# SPDX-License-Identifier: Apache-2.0
"""The plan of a training, derived from the survey of its scans: an overlay of the bundle's config."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_llmboost import __version__
from monai_llmboost.artifacts.files import atomic_text
from monai_llmboost.bundle.contract import PLAN_DESCRIPTION
from monai_llmboost.bundle.words import config_values
from monai_llmboost.data.labelled import CaseList, LabelledCase
from monai_llmboost.inspection.extent import Extents, choose_crop, fit_spacing, shape_of
from monai_llmboost.inspection.intensity import choose_intensity
from monai_llmboost.inspection.survey import CaseSurvey

# Most voxels of a network's input, of all channels together, and of a batch of it.
CPU_VOXELS, GPU_VOXELS = 64**3, 128**3
BATCH_INPUTS = 16
LARGEST_BATCH, SMALLEST_BATCH = 32, 2
# An epoch has about this number of steps or more.
STEPS = 8
# A training has about this number of steps, and at least and at most so many epochs.
TRAINING_STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 600, 15, 100
# Memory of a training in addition to the prepared scans: libraries and the planned network; copies of a batch, for the
# augmentation and the network; and copies of the largest scan, because some are prepared at the same time.
PROGRAM_MB, BATCH_COPIES, SCAN_COPIES = 1300, 24, 20
# Fewer training cases than these call for stronger augmentation, and for a smaller network.
STRONG_BELOW, MEDIUM_BELOW, SMALL_NETWORK_BELOW = 100, 1000, 200
# Strides of the first convolution, the cheapest first; three stages after it halve the volume.
STEM_STRIDES, HALVINGS, LEAST_LAST = (3, 2, 1), 3, 2
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
        most_voxels: most voxels of a network's input, :data:`CPU_VOXELS` or :data:`GPU_VOXELS`.

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
    lines = Lines(dict(given or {}))
    lines.add("data", str(Path(cases.path).expanduser().absolute()), "the list")
    _add_size(lines, cases, training, used, most_voxels)
    intensity, limits, why = choose_intensity(used)
    scheme = lines.add("intensity", intensity, why)
    if "intensity" in lines.given and scheme != intensity:
        limits = [0.5, 99.5] if scheme == "percentiles" else _seen_intensity(used)
    lines.add("intensity_range", limits, "in percent" if scheme == "percentiles" else "in the units of the scans")
    _add_training(lines, len(used), most_voxels)
    needs_foreground = lines.values["crop"] == "foreground"
    unusable = [
        record.name for record in survey if record.refused or (needs_foreground and not _has_foreground(record))
    ]
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
    prepared = kept * 4 * math.prod(lines.values["image_shape"])
    described = {
        "cases": kept,
        "list": cases.digest,
        "memory_mb": math.ceil(prepared / 1e6),
        "peak_mb": math.ceil(PROGRAM_MB + (prepared + _transient_bytes(lines, used)) / 1e6),
        "versions": {"monai_llmboost": __version__},
    }
    return ScanPlan(lines.values, lines.reasons, described)


def _add_size(
    lines: Lines, cases: CaseList, training: Sequence[LabelledCase], used: Sequence[CaseSurvey], most_voxels: int
) -> None:
    """Add orientation, spacing, crop and shape."""
    lines.add("orientation", "RAS", "axes of the patient: to the right, to the front, to the head")
    extents = Extents.of(used, training)
    choice = choose_crop(extents)
    crop = lines.add("crop", choice.crop, choice.reason)
    lines.add("foreground_above", choice.above, choice.above_reason)
    margin = lines.add("margin_mm", *extents.margin(crop))
    most = most_voxels / len(cases.channels)
    median = extents.median_spacing
    sizes = extents.sizes_mm(crop, margin, most)
    fitted = fit_spacing(median, sizes, most)
    why = f"the median of {len(used)} training cases"
    if fitted != median:
        why += f" ({_product(median)}), made coarser because the scans would not fit {most_voxels} voxels"
    spacing = lines.add("spacing_mm", fitted, why)
    shape, reason = shape_of(extents, crop, spacing, sizes)
    lines.add("image_shape", [len(cases.channels), *shape], reason)


def _add_training(lines: Lines, count: int, most_voxels: int) -> None:
    """Add size of batch, augmentation and size of the network."""
    _, *shape = lines.values["image_shape"]
    voxels = math.prod(lines.values["image_shape"])
    fit = max(1, BATCH_INPUTS * most_voxels // voxels)
    batch = min(LARGEST_BATCH, fit, max(1, count // STEPS))
    batch = max(SMALLEST_BATCH, 2 ** int(math.log2(max(batch, 1))))
    lines.add("batch_size", batch, f"{count} training cases of {voxels} voxels")
    steps = -(-count // batch)
    epochs = min(max(round(TRAINING_STEPS / steps), FEWEST_EPOCHS), MOST_EPOCHS)
    lines.add("epochs", epochs, f"{epochs * steps} steps of a batch")
    strength = "strong" if count < STRONG_BELOW else "medium" if count < MEDIUM_BELOW else "light"
    lines.add("augmentation", strength, f"{count} training cases")
    lines.add("hidden_size", 64 if count < SMALL_NETWORK_BELOW else 128, f"{count} training cases")
    lines.add("num_blocks", 1, "a small network")
    stride = next((one for one in STEM_STRIDES if _last_side(min(shape), one) >= LEAST_LAST), STEM_STRIDES[-1])
    last = " x ".join(str(_last_side(side, stride)) for side in shape)
    lines.add("stem_stride", stride, f"the network's last feature map has {last} voxels")


def _transient_bytes(lines: Lines, used: Sequence[CaseSurvey]) -> int:
    """Return the bytes that a batch in training, and the scans that are prepared at one time, take at most."""
    batch = lines.values["batch_size"] * math.prod(lines.values["image_shape"])
    largest = max(math.prod(one.shape) * len(record.measures) for record in used for one in record.measures)
    return 4 * (BATCH_COPIES * batch + SCAN_COPIES * largest)


def _last_side(side: int, stride: int) -> int:
    for step in (stride, *[2] * HALVINGS):
        side = -(-side // step)
    return side


def _choose_test_fraction(cases: CaseList, records: Mapping[str, CaseSurvey]) -> tuple[float, str]:
    if any(case.split == "test" for case in cases.cases):
        return 0.0, "the list has test cases"
    usable = [case for case in cases.cases if not records[case.name].refused]
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


def _product(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values) + " mm"
