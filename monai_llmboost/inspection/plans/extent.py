# SPDX-License-Identifier: Apache-2.0
"""Sizes of scans and of what is in them: the crop, the spacing and the shape of a network's input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monai_llmboost.data.labelled import LabelledCase
from monai_llmboost.inspection.measure import FOREGROUND_MARGIN_MM
from monai_llmboost.inspection.survey import CaseSurvey

# Most voxels of a network's input: in classification of all channels together.
CPU_VOXELS, GPU_VOXELS = 64**3, 128**3
# A foreground that takes this part of the scan or more is not cropped.
MOSTLY_FOREGROUND = 0.8
# Thresholds of scans that differ by more than this part of the largest have no common value.
SAME_UNITS = 0.5
# Margin around a mask, as a part of its size.
MASK_MARGIN = 0.25
# The input holds this percentile of the scans' sizes.
HELD = 95
# Sides are a multiple of this, and no smaller than LEAST_SIDE, so that a network can halve them three times.
MULTIPLE, LEAST_SIDE = 4, 12
# Spacings that differ by a smaller part are equal.
SAME = 1e-3


@dataclass(frozen=True)
class Crop:
    """A crop, and why.

    Args:
        crop: ``"none"``, ``"foreground"``, ``"mask"`` or ``"centre"``.
        reason: why.
        above: the value above which voxels are foreground, in the units of the scans.
        above_reason: why.
    """

    crop: str
    reason: str
    above: float
    above_reason: str


@dataclass(frozen=True)
class Extents:
    """Sizes of the training cases along x, y, z.

    Args:
        shapes: voxels of the first channel (cases, 3).
        spacings: mm (cases, 3).
        foreground: size of the box around the foreground of all channels, mm (cases, 3).
        masks: size of the box around the mask, mm; ``None`` if a case has none.
        has_centres: whether all cases have a point to crop around.
        above: the threshold of the foreground of each scan.
        plain_background: whether the background of all scans is one value.
        is_ct: whether all scans are CT.
    """

    shapes: np.ndarray
    spacings: np.ndarray
    foreground: np.ndarray
    masks: np.ndarray | None
    has_centres: bool
    above: np.ndarray
    plain_background: bool
    is_ct: bool

    @classmethod
    def of(cls, used: Sequence[CaseSurvey], training: Sequence[LabelledCase]) -> Extents:
        """Return the sizes of the cases of a survey."""
        cases = {case.name: case for case in training}
        firsts = [record.measures[0] for record in used]
        scans = [one for record in used for one in record.measures]
        masks = [record.mask_mm for record in used]
        return cls(
            np.array([first.shape for first in firsts]),
            np.array([first.spacing_mm for first in firsts]),
            np.array([np.max([one.foreground_mm for one in record.measures], axis=0) for record in used]),
            None if any(mask is None for mask in masks) else np.array(masks),
            all(cases[record.name].centre_mm is not None for record in used),
            np.array([one.above for one in scans]),
            all(one.plain_background for one in scans),
            all(one.modality == "CT" for one in scans),
        )

    @property
    def whole(self) -> np.ndarray:
        """Sizes of the scans, mm (cases, 3)."""
        return self.shapes * self.spacings

    @property
    def median_spacing(self) -> list[float]:
        """The median spacing along x, y, z."""
        return [float(f"{value:.4g}") for value in np.median(self.spacings, axis=0)]

    @property
    def are_equal(self) -> bool:
        """Whether all scans have one shape and one spacing."""
        return bool((self.shapes == self.shapes[0]).all() and np.allclose(self.spacings, self.spacings[0], rtol=SAME))

    def margin(self, crop: str) -> tuple[float, str]:
        """Return the margin of a crop, mm, and why."""
        if crop == "mask" and self.masks is not None:
            part = float(np.median(self.masks)) * MASK_MARGIN
            return float(max(FOREGROUND_MARGIN_MM, round(part))), "a quarter of the median size of the masks"
        return (FOREGROUND_MARGIN_MM, "around the foreground") if crop == "foreground" else (0.0, "not needed")

    def sizes_mm(self, crop: str, margin: float, most_voxels: float) -> np.ndarray:
        """Return the sizes after a crop, mm (cases, 3)."""
        if crop == "centre":
            # A cube as large as the voxels allow at the median spacing, and no larger than most scans.
            side = (most_voxels * math.prod(self.median_spacing)) ** (1 / 3)
            return np.minimum(side, np.median(self.whole, axis=0))[None]
        if crop == "mask" and self.masks is not None:
            return np.minimum(self.masks + 2 * margin, self.whole)
        return np.minimum(self.foreground + 2 * margin, self.whole) if crop == "foreground" else self.whole


def choose_crop(extents: Extents) -> Crop:
    """Choose a crop: what the list gives, none for cubes and where the foreground fills the scan, else foreground."""
    above, why = float(f"{np.min(extents.above):.6g}"), "the smallest threshold of the training scans"
    if extents.is_ct:
        above, why = float(extents.above[0]), "CT: air is below, in HU"
    elif extents.plain_background:
        above, why = float(np.max(extents.above)), "the value of the background"
    if extents.masks is not None:
        return Crop("mask", "the list has a mask for each case", above, why)
    if extents.has_centres:
        return Crop("centre", "the list has a point for each case", above, why)
    if extents.are_equal:
        return Crop("none", "all scans have one shape and spacing", above, why)
    part = float(np.median(np.prod(extents.foreground / extents.whole, axis=1)))
    if part >= MOSTLY_FOREGROUND:
        return Crop("none", f"the foreground fills {100 * part:.0f} % of the scans", above, why)
    spread = float(np.ptp(extents.above))
    if not extents.is_ct and spread > SAME_UNITS * float(np.max(np.abs(extents.above))):
        return Crop("none", "the scans have different units, so that no value separates their foreground", above, why)
    return Crop("foreground", f"the foreground fills {100 * part:.0f} % of the scans", above, why)


def fit_spacing(spacing: Sequence[float], sizes_mm: np.ndarray, most_voxels: float) -> list[float]:
    """Return a spacing with which the sizes fit a number of voxels; the finest axes are made coarser first.

    Example:
        >>> fit_spacing([0.5, 0.5, 5.0], np.array([[256.0, 256.0, 150.0]]), 64**3)
        [2.95, 2.95, 5.0]
    """
    held = np.percentile(sizes_mm, HELD, axis=0)
    finest = min(spacing)
    steps = np.array(spacing, dtype=float)
    while math.prod(_sides(held, steps)) > most_voxels:
        finest *= 1.01
        steps = np.maximum(spacing, finest)
    changed = steps > np.array(spacing)
    return [math.ceil(step * 20) / 20 if step > 1 and is_new else float(f"{step:.3g}" if is_new else step)
            for step, is_new in zip(steps.tolist(), changed)]  # fmt: skip


def shape_of(extents: Extents, crop: str, spacing: Sequence[float], sizes_mm: np.ndarray) -> tuple[list[int], str]:
    """Return the voxels of the input along x, y, z, and why."""
    is_kept = np.allclose(extents.spacings, np.array(spacing), rtol=SAME)
    own = [int(side) for side in extents.shapes[0]]
    if crop == "none" and extents.are_equal and is_kept and min(own) >= LEAST_SIDE:
        return own, "the shape of all scans"
    sides = _sides(np.percentile(sizes_mm, HELD, axis=0), np.array(spacing))
    what = "the surroundings of the points" if crop == "centre" else f"{HELD} % of the scans along each axis"
    return sides, f"holds {what}, in multiples of {MULTIPLE}"


def _sides(held_mm: np.ndarray, spacing: np.ndarray) -> list[int]:
    counts = np.ceil(held_mm / spacing - 0.01)
    return [max(LEAST_SIDE, MULTIPLE * math.ceil(count / MULTIPLE)) for count in counts.tolist()]
