# SPDX-License-Identifier: Apache-2.0
"""Layout of slices as one volume: their order and affine, or the reason why they are not one volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monai_llmboost.data.scans.dicom.geometry import fit_line, get_directions, get_rounding_mm, sort_slices
from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.dicom.tolerances import DIRECTION_TOLERANCE, TILT_TOLERANCE
from monai_llmboost.data.scans.scan import MAX_VOXELS, RefusedScan

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Layout:
    """Sorted slices, and their affine, voxel (i, j, k) -> RAS+ mm, with i along x of the images and j along y.

    Args:
        slices: slices in the order of k, along the cross product of the images' x and y.
        affine: (4, 4) float64; sheared if the slices are tilted.
        tilt_deg: angle between the step from slice to slice and the normal of the slices; 0 within the tolerance.
    """

    slices: tuple[SliceHeader, ...]
    affine: np.ndarray
    tilt_deg: float


def lay_out(slices: Sequence[SliceHeader], min_slices: int = 2) -> Layout:
    """Sort the slices of one stack and compute their affine.

    Raises:
        RefusedScan: the slices are not one volume of evenly spaced slices.
    """
    if len(slices) == 1:
        raise RefusedScan(
            "expected several slices, got one: a single slice is no volume, leave it out", kind="single-slice"
        )
    check_planes(slices)
    if len(slices) < min_slices:
        raise RefusedScan(
            f"expected at least {min_slices} slices, got {len(slices)}: use a thicker volume", kind="too-small"
        )
    if (voxels := len(slices) * slices[0].rows * slices[0].columns) > MAX_VOXELS:
        raise RefusedScan(
            f"expected at most {MAX_VOXELS} voxels, got {voxels}: split or shrink the volume", kind="too-large"
        )
    slices, along = sort_slices(slices)
    origin, step = fit_line(slices, along)
    x, y = get_directions(slices[0])
    between_rows, between_columns = slices[0].pixel_spacing or ()
    affine = np.eye(4)
    affine[:3] = np.stack([x * between_columns, y * between_rows, step, origin], axis=1)
    normal = np.cross(x, y)
    shift = step - (step @ normal) * normal
    sideways = float(np.linalg.norm(shift))
    # The shift from slice to slice that rounding of the first and last position may cause.
    rounding = 2 * get_rounding_mm(slices) @ np.abs(shift) / max(sideways, 1e-12) / (len(slices) - 1)
    tilted = sideways > TILT_TOLERANCE * (step @ normal) and sideways > rounding
    tilt = float(np.degrees(np.arctan(sideways / (step @ normal)))) if tilted else 0.0
    return Layout(tuple(slices), LPS_TO_RAS @ affine, tilt)


def check_planes(slices: Sequence[SliceHeader]) -> None:
    """Check that the geometry of slices is known.

    Raises:
        RefusedScan: a position, an orientation or a pixel spacing is absent or invalid.
    """
    names = {"position": "position", "orientation": "orientation", "pixel_spacing": "pixel spacing"}
    for attribute, name in names.items():
        if absent := sum(getattr(header, attribute) is None for header in slices):
            raise RefusedScan(
                f"expected the {name} of every slice, got none for {absent} of {len(slices)}: "
                f"export the original images, not pictures of them",
                kind="no-geometry",
            )
    directions = get_directions(slices[0])
    if np.abs(directions @ directions.T - np.eye(2)).max() > DIRECTION_TOLERANCE:
        raise RefusedScan(
            "expected directions of x and y at a right angle, got others: export the series again", kind="no-geometry"
        )
    if min(slices[0].pixel_spacing or (0,)) <= 0:
        raise RefusedScan(
            "expected a pixel spacing above 0 mm, got another: export the series again", kind="no-geometry"
        )
