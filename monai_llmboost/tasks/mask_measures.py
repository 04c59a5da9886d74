# SPDX-License-Identifier: Apache-2.0
"""Measures of a mask against a label map on one grid, computed by MONAI: Dice, surface distances, volumes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from monai_llmboost.data.scans.nifti.tolerances import SHEAR_COSINE

PERCENTILE = 95  # of the surface distances


@dataclass(frozen=True)
class StructureMeasures:
    """The measures of one structure of a case. NaN: undefined.

    Args:
        dice: Dice coefficient, 0 to 1; 0 if the structure is only in one of mask and label map, undefined if in none.
        hd95_mm: the larger one of the 95th percentiles of the distances from each surface to the other one, mm;
            undefined unless the structure is in both, and on a sheared grid.
        nsd: normalized surface Dice, the part of both surfaces that is within the tolerance of the other one; 0 and
            undefined as the Dice, and undefined on a sheared grid.
        volume_mm3: volume in the mask.
        label_volume_mm3: volume in the label map.

    Example:
        >>> StructureMeasures(0.5, 2.0, 0.25, 100.0, 300.0).dice
        0.5
    """

    dice: float
    hd95_mm: float
    nsd: float
    volume_mm3: float
    label_volume_mm3: float


MEASURES = tuple(field.name for field in fields(StructureMeasures))


def measure_mask(
    mask: np.ndarray, label: np.ndarray, affine: np.ndarray, structures: int, tolerance_mm: float = 1.0
) -> list[StructureMeasures]:
    """Return the measures of each structure 1, 2, ... of a mask.

    Surfaces are closed: where a structure reaches the border of the volume, its surface is there.

    Args:
        mask: class numbers (i, j, k).
        label: class numbers (i, j, k) on the same grid.
        affine: (4, 4), voxels to RAS+ mm.
        structures: number of structures.
        tolerance_mm: tolerance of the normalized surface Dice.

    Raises:
        ValueError: mask and label map of different shapes.

    Example:
        >>> import numpy as np
        >>> label = np.zeros((8, 8, 8), np.uint8)
        >>> label[2:6, 2:6, 2:6] = 1
        >>> (found,) = measure_mask(np.roll(label, 1, axis=2), label, np.diag([1.0, 1.0, 3.0, 1.0]), 1)
        >>> found.dice, found.hd95_mm
        (0.75, 3.0)
    """
    if mask.shape != label.shape:
        raise ValueError(f"the mask has the shape {mask.shape}, its label map {label.shape}: give both on one grid")
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    voxel_mm3 = float(abs(np.linalg.det(affine[:3, :3])))
    axes = affine[:3, :3] / spacing_mm
    # MONAI measures distances along three axes at right angles.
    is_sheared = float(np.abs(axes.T @ axes - np.eye(3)).max()) > SHEAR_COSINE
    boxes = _boxes(mask, label, structures)
    found = []
    for number, box in enumerate(boxes, start=1):
        if box is None:
            found.append(StructureMeasures(np.nan, np.nan, np.nan, 0.0, 0.0))
            continue
        one, other = mask[box] == number, label[box] == number
        volumes = float(one.sum()) * voxel_mm3, float(other.sum()) * voxel_mm3
        dice, hd95, nsd = _compare(one, other, spacing_mm, tolerance_mm) if all(volumes) else (0.0, np.nan, 0.0)
        if is_sheared:
            hd95 = nsd = np.nan
        found.append(StructureMeasures(dice, hd95, nsd, *volumes))
    return found


def _boxes(mask: np.ndarray, label: np.ndarray, structures: int) -> Sequence[tuple[slice, ...] | None]:
    """Return for each structure the box that contains it in both volumes; ``None`` if it is in none."""
    of_both = [ndimage.find_objects(volume, max_label=structures) for volume in (mask, label)]
    boxes: list[tuple[slice, ...] | None] = []
    for pair in zip(*of_both):
        there = [box for box in pair if box is not None]
        ends = [(min(side.start for side in sides), max(side.stop for side in sides)) for sides in zip(*there)]
        boxes.append(tuple(slice(*end) for end in ends) or None)
    return boxes


def _compare(
    mask: np.ndarray, label: np.ndarray, spacing_mm: list[float], tolerance_mm: float
) -> tuple[float, float, float]:
    """Return Dice, HD95 and NSD of two masks that are not empty."""
    # A margin of background, so that no surface is lost where a structure reaches the border.
    y_pred, y = (torch.from_numpy(np.pad(volume, 1))[None, None] for volume in (mask, label))
    dice = compute_dice(y_pred.float(), y.float())
    with warnings.catch_warnings():  # MONAI calls its own function with a deprecated argument
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        hd95 = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=PERCENTILE, spacing=spacing_mm)
        # Areas of the surface elements, because voxels are no measure of a surface where they are anisotropic.
        nsd = compute_surface_dice(
            y_pred, y, [tolerance_mm], include_background=True, spacing=spacing_mm, use_subvoxels=True
        )
    return dice.item(), hd95.item(), nsd.item()
