# SPDX-License-Identifier: Apache-2.0
"""Where the slices of a stack lie: their order, their affine, and what keeps them from being one volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.nifti.headers import LARGEST_VOLUME
from monai_llmboost.data.scans.scan import RefusedScan

# A slice may lie so far from its place on an even line, in parts of the distance of slices.
SPACING_TOLERANCE = 0.01
# Slices closer than this part of a pixel lie at the same place.
SAME_PLACE = 0.01
# Directions of x and y may differ so much from unit length and from a right angle.
DIRECTION_TOLERANCE = 1e-3
# Slices may shift sideways by this part of their distance (0.06 degrees) before it is called a tilt.
TILT_TOLERANCE = 1e-3
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Layout:
    """The slices in order, and voxel (i, j, k) -> RAS+ mm, where i runs along x of the images, j along y.

    Args:
        slices: in the order of k, along the cross product of the images' x and y.
        affine: 4 x 4; sheared if the slices are tilted.
        tilt_deg: angle between the step from slice to slice and the normal of the slices; 0 if within tolerance.
    """

    slices: tuple[SliceHeader, ...]
    affine: np.ndarray
    tilt_deg: float


def distances(slices: Sequence[SliceHeader]) -> np.ndarray:
    """Places (mm) of the slices along the normal of the first one; all need a position and an orientation."""
    x, y = np.array(slices[0].orientation).reshape(2, 3)
    return np.array([part.position for part in slices]) @ np.cross(x, y)


def places(slices: Sequence[SliceHeader]) -> np.ndarray:
    """Number of the place of every slice, counted from 0; slices at the same place have the same number."""
    along = distances(slices)
    order = np.argsort(along, kind="stable")
    numbers = np.empty(len(slices), int)
    numbers[order] = np.cumsum(np.diff(along[order], prepend=along[order[0]]) > SAME_PLACE * _pixel(slices))
    return numbers


def lay_out(slices: Sequence[SliceHeader], min_slices: int = 2) -> Layout:
    """Order the slices of one stack and give their affine.

    Raises:
        RefusedScan: they are not one volume of evenly spaced slices; nothing is guessed.
    """
    if len(slices) == 1:
        raise RefusedScan("expected several slices, got one: a single slice is no volume, leave it out")
    check_planes(slices)
    if len(slices) < min_slices:
        raise RefusedScan(f"expected at least {min_slices} slices, got {len(slices)}: use a thicker volume")
    if (voxels := len(slices) * slices[0].rows * slices[0].columns) > LARGEST_VOLUME:
        raise RefusedScan(f"expected at most {LARGEST_VOLUME} voxels, got {voxels}: split or shrink the volume")
    along = distances(slices)
    order = np.argsort(along, kind="stable")
    slices, along = [slices[i] for i in order], along[order]
    if (count := len(set(places(slices)))) < len(slices):
        raise RefusedScan(
            f"expected one slice at each position, got {len(slices)} slices at {count} positions and no tag "
            f"that tells them apart: keep the slices of one volume"
        )
    _check_gaps(slices, np.diff(along))
    positions = np.array([part.position for part in slices])
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    off = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1).max()
    if off > SPACING_TOLERANCE * np.linalg.norm(step):
        raise RefusedScan(
            f"expected slices on an even, straight line, got one {off:.3g} mm beside its place: export the series again"
        )
    x, y = np.array(slices[0].orientation).reshape(2, 3)
    between_rows, between_columns = slices[0].pixel_spacing or ()
    affine = np.eye(4)
    affine[:3] = np.stack([x * between_columns, y * between_rows, step, positions[0]], axis=1)
    normal = np.cross(x, y)
    sideways = np.linalg.norm(step - (step @ normal) * normal) / (step @ normal)
    tilt = float(np.degrees(np.arctan(sideways))) if sideways > TILT_TOLERANCE else 0.0
    return Layout(tuple(slices), LPS_TO_RAS @ affine, tilt)


def check_planes(slices: Sequence[SliceHeader]) -> None:
    """Refuse slices whose place in space is not told.

    Raises:
        RefusedScan: a position, an orientation or a pixel spacing is absent or no such thing.
    """
    named = {"position": "position", "orientation": "orientation", "pixel_spacing": "pixel spacing"}
    for attribute, words in named.items():
        if absent := sum(getattr(part, attribute) is None for part in slices):
            raise RefusedScan(
                f"expected the {words} of every slice, got none for {absent} of {len(slices)}: "
                f"export the original images, not pictures of them"
            )
    directions = np.array(slices[0].orientation).reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > DIRECTION_TOLERANCE:
        raise RefusedScan("expected directions of x and y at a right angle, got others: export the series again")
    if min(slices[0].pixel_spacing or (0,)) <= 0:
        raise RefusedScan("expected a pixel spacing above 0 mm, got another: export the series again")


def _check_gaps(slices: Sequence[SliceHeader], gaps: np.ndarray) -> None:
    usual = float(np.median(gaps[gaps < 1.5 * gaps.min()]))
    wide = np.flatnonzero(np.abs(gaps - usual) > SPACING_TOLERANCE * usual)
    if not len(wide):
        return
    steps = np.round(gaps / usual)
    if (np.abs(gaps - steps * usual) <= SPACING_TOLERANCE * steps * usual).all():
        first = wide[0]
        where = f"between {slices[first].path.name} and {slices[first + 1].path.name}"
        raise RefusedScan(
            f"expected slices {usual:.4g} mm apart, missing: {int(steps.sum()) - len(gaps)}, "
            f"{'the first ' if len(wide) > 1 else ''}{where} ({gaps[first]:.4g} mm): copy the whole series"
        )
    raise RefusedScan(
        f"expected slices at equal distances, got {gaps.min():.4g} to {gaps.max():.4g} mm: "
        f"resample the series to equal distances first"
    )


def _pixel(slices: Sequence[SliceHeader]) -> float:
    return min(slices[0].pixel_spacing or (1.0,))
