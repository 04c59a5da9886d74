# SPDX-License-Identifier: Apache-2.0
"""Three planes of a volume through one point, in the radiological convention, and the choice of the point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel
import numpy as np

# RAS axes across and down a picture. Across runs to the left (sagittal: back), down to the feet (axial: back),
# as seen from the feet, from the front and from the patient's left.
PLANES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
# A direction with a larger cosine to a second anatomical axis is named by both.
OBLIQUE = 0.34
# Approximate number of voxels from which the grey window is computed.
WINDOW_SAMPLES = 200_000


@dataclass(frozen=True)
class Plane:
    """One plane of a volume as a picture.

    Args:
        name: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        pixels: (rows, columns), from the top left.
        pixel_mm: height and width of a pixel.
        edges: anatomical directions of the left, right, upper and lower edge, such as ``("R", "L", "A", "P")``.
        cross: row and column of the point that all three planes contain.
    """

    name: str
    pixels: np.ndarray
    pixel_mm: tuple[float, float]
    edges: tuple[str, str, str, str]
    cross: tuple[int, int]


def planes(volume: np.ndarray, affine: np.ndarray, at: Sequence[int]) -> list[Plane]:
    """Return the axial, coronal and sagittal plane of a volume (i, j, k) through voxel ``at``, along its voxel axes.

    In the radiological convention, the patient's right, and in sagittal planes the front, is on the left of a picture.
    An oblique volume is not resampled; its planes are the nearest to the anatomical ones, and their edges are named by
    their real directions.

    Args:
        volume: (i, j, k).
        affine: (4, 4), voxels to RAS+ mm.
        at: a voxel (i, j, k).

    Example:
        >>> axial, _, _ = planes(np.zeros((4, 5, 6)), np.eye(4), at=(0, 0, 0))
        >>> axial.pixels.shape, axial.edges
        ((5, 4), ('R', 'L', 'A', 'P'))
    """
    nearest = nibabel.io_orientation(affine)  # for each voxel axis: the RAS axis and the sign
    axis_of = {int(ras): axis for axis, (ras, _) in enumerate(nearest)}
    mm = np.linalg.norm(affine[:3, :3], axis=0)
    found = []
    for name, (across, down) in PLANES.items():
        rows, columns = axis_of[down], axis_of[across]
        (fixed,) = {0, 1, 2} - {rows, columns}
        pixels = np.moveaxis(volume, fixed, 0)[at[fixed]]  # a view: the volume may be large
        pixels = pixels if rows < columns else pixels.T  # (rows, columns)
        cross, directions = [at[rows], at[columns]], []
        for place, axis in enumerate((rows, columns)):
            grows = nearest[axis, 1] > 0  # to the right, front or head, opposite to the picture's direction
            if grows:
                pixels = np.flip(pixels, axis=place)
                cross[place] = volume.shape[axis] - 1 - cross[place]
            directions.append(affine[:3, axis] * (-1 if grows else 1))
        downwards, rightwards = directions
        edges = (_letters(-rightwards), _letters(rightwards), _letters(-downwards), _letters(downwards))
        found.append(Plane(name, pixels, (mm[rows], mm[columns]), edges, (int(cross[0]), int(cross[1]))))
    return found


def _letters(direction: np.ndarray) -> str:
    """Return the anatomical name of a direction (x, y, z) in RAS, with the largest component first."""
    cosines = direction / np.linalg.norm(direction)
    order = np.argsort(-np.abs(cosines), kind="stable")
    return "".join("RAS"[axis] if cosines[axis] > 0 else "LPI"[axis] for axis in order if abs(cosines[axis]) > OBLIQUE)


def peak_of(values: np.ndarray) -> tuple[int, int, int]:
    """Return a voxel where a map (i, j, k) is largest, if possible the centre of all such voxels.

    The peak of a constant map is its centre.
    """
    transposed = values.T  # (k, j, i), as maps are ordered in memory
    top = transposed == values.max()
    middle = []
    for axis in range(3):
        counts = np.count_nonzero(top, axis=tuple({0, 1, 2} - {axis}))
        middle.append(round(float(np.average(np.arange(len(counts)), weights=counts))))
    k, j, i = middle if top[tuple(middle)] else np.unravel_index(int(top.argmax()), top.shape)
    return int(i), int(j), int(k)


def grey_window(volume: np.ndarray) -> tuple[float, float]:
    """Return the 1st and 99th percentile of a volume's finite values; of a sample if there are many."""
    step = max(1, round((volume.size / WINDOW_SAMPLES) ** (1 / 3)))
    some = np.asarray(volume[::step, ::step, ::step], dtype=np.float32)
    some = some[np.isfinite(some)]
    low, high = np.percentile(some, (1, 99)) if some.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1
