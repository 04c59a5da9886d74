# SPDX-License-Identifier: Apache-2.0
"""Where slices lie: in which plane, in which order, and on which line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.optimize import linprog

from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.scan import RefusedScan

# A slice may lie so far from its place on an even line, in parts of the distance of slices.
SPACING_TOLERANCE = 0.01
# Where half a unit of the last digit is more than this part of the distance of slices, positions cannot show gaps.
COARSEST = 0.25
# Half a unit of the last digit of a whole number.
HALF_OF_ONE = 0.5
# Slices closer than this part of a pixel lie at the same place.
SAME_PLACE = 0.01
# Slices are of one volume if nowhere in the image their directions and pixel spacings shift a pixel by more than this
# part of itself.
SAME_PLANE = 0.1
# Slices that differ more, but by no more than this (as cosines, and relatively), may be of one volume that was written
# badly.
NEARLY_PARALLEL = 0.02


def project_positions(slices: Sequence[SliceHeader]) -> np.ndarray:
    """Places (mm) of the slices along the normal of the first one; all need a position and an orientation."""
    x, y = get_directions(slices[0])
    return np.array([part.position for part in slices]) @ np.cross(x, y)


def number_positions(slices: Sequence[SliceHeader]) -> np.ndarray:
    """Number of the place of every slice, counted from 0; slices at the same place have the same number."""
    along = project_positions(slices)
    order = np.argsort(along, kind="stable")
    numbers = np.empty(len(slices), int)
    numbers[order] = np.cumsum(np.diff(along[order], prepend=along[order[0]]) > SAME_PLACE * _pixel(slices))
    return numbers


def group_by_plane(slices: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Placed slices of one size by directions and pixel spacings, to a part of a pixel all over the image."""
    kinds = {(part.orientation, part.pixel_spacing) for part in slices}
    corners, pixels = np.empty((len(kinds), 2, 3)), np.empty(len(kinds))
    planes: list[list[SliceHeader]] = []
    of_kind: dict[tuple, list[SliceHeader]] = {}
    for part in slices:
        kind = part.orientation, part.pixel_spacing
        if kind not in of_kind:
            count = len(planes)
            own, pixel = _steps(part) * [[part.columns], [part.rows]], _pixel([part])
            off = np.linalg.norm(corners[:count] - own, axis=2).max(axis=1)
            same = np.flatnonzero(off <= SAME_PLANE * np.minimum(pixels[:count], pixel))
            if not len(same):
                corners[count], pixels[count] = own, pixel
                planes.append([])
            of_kind[kind] = planes[same[0] if len(same) else count]
        of_kind[kind].append(part)
    return planes


def are_nearly_parallel(one: SliceHeader, other: SliceHeader) -> bool:
    """Whether two slices of one size have about the same directions and pixel spacings."""
    turned = np.abs(get_directions(one) - get_directions(other)).max()
    first, second = (np.array(part.pixel_spacing) for part in (one, other))
    return bool(turned <= NEARLY_PARALLEL and (np.abs(first - second) <= NEARLY_PARALLEL * np.abs(second)).all())


def is_evenly_spaced(slices: Sequence[SliceHeader]) -> bool:
    """Whether placed slices lie on an even, straight line, each at a place of its own."""
    return not _why_uneven(slices)


def has_missing_slices(slices: Sequence[SliceHeader]) -> bool:
    """Whether placed slices lie on an even, straight line but for some that are missing between them."""
    return _why_uneven(slices) == "missing-slices"


def _why_uneven(slices: Sequence[SliceHeader]) -> str:
    """The kind of refusal of slices that are on no even line; empty if they are on one."""
    try:
        fit_line(*sort_slices(slices))
    except RefusedScan as refused:
        return refused.kind
    return ""


def is_numbered_in_order(slices: Sequence[SliceHeader]) -> bool:
    """Whether placed slices have image numbers that grow, or fall, from slice to slice along their normal."""
    numbers = [part.number for part in sort_slices(slices)[0]]
    steps = {b > a for a, b in pairwise(numbers) if a is not None and b is not None and a != b}
    return None not in numbers and len(set(numbers)) == len(numbers) and len(steps) == 1


def overlaps(one: Sequence[SliceHeader], other: Sequence[SliceHeader]) -> bool:
    """Whether the extents of two nearly parallel stacks along their common normal have more than an end in common."""
    normal = np.cross(*get_directions(one[0]))
    first, second = (np.array([part.position for part in stack]) @ normal for stack in (one, other))
    return bool(first.min() < second.max() and second.min() < first.max())


def any_overlap(stacks: Sequence[Sequence[SliceHeader]]) -> bool:
    """Whether any two of several nearly parallel stacks overlap."""
    normal = np.cross(*get_directions(stacks[0][0]))
    extents = sorted(
        (along.min(), along.max()) for along in (np.array([p.position for p in stack]) @ normal for stack in stacks)
    )
    furthest = np.maximum.accumulate([end for _, end in extents])
    return any(start < end for (start, _), end in zip(extents[1:], furthest))


def sort_slices(slices: Sequence[SliceHeader]) -> tuple[list[SliceHeader], np.ndarray]:
    """The slices along their normal, and their places on it."""
    along = project_positions(slices)
    order = np.argsort(along, kind="stable")
    return [slices[i] for i in order], along[order]


def fit_line(slices: Sequence[SliceHeader], along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first position of an even line through the slices, and the step from slice to slice, in mm.

    Positions are believed to half a unit of their last written digit.

    Raises:
        RefusedScan: they are on none.
    """
    if (count := len(set(number_positions(slices)))) < len(slices):
        raise RefusedScan(
            f"expected one slice at each position, got {len(slices)} slices at {count} positions and no tag "
            f"that separates them: keep the slices of one volume",
            kind="several-volumes",
        )
    positions = np.array([part.position for part in slices])
    gaps = np.diff(along)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    off = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1).max()
    if _same_gaps(gaps) and off <= SPACING_TOLERANCE * np.linalg.norm(step):
        return positions[0], step
    units = get_rounding_mm(slices)
    if (fitted := _fitted_to_rounded(positions, units)) is not None:
        _check_missing(slices, gaps, 0.0)
        return fitted
    if not _same_gaps(gaps):
        _check_missing(slices, gaps, 2 * float(np.linalg.norm(units)))
        raise RefusedScan(
            f"expected slices at equal distances, got {gaps.min():.4g} to {gaps.max():.4g} mm: "
            f"resample the series to equal distances first",
            kind="uneven-slices",
        )
    raise RefusedScan(
        f"expected slices on an even, straight line, got one {off:.3g} mm off its place: export the series again",
        kind="uneven-slices",
    )


def get_rounding_mm(slices: Sequence[SliceHeader]) -> np.ndarray:
    """Half a unit of the last digit that positions are written with, in mm, for each coordinate.

    Some writers leave out trailing zeros, so the finest unit of all slices counts; of a coordinate that is whole in all
    slices, the finest of the others.
    """
    units = np.array([part.unit for part in slices]).min(axis=0)
    return np.where(units >= HALF_OF_ONE, units.min(), units)


def _fitted_to_rounded(positions: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """An even line that rounds to these positions: its first position and its step; None if there is none.

    For each coordinate p the line a + b k whose largest distance to p_k is smallest (Chebyshev).
    """
    if not (units > 0).any():
        return None
    count = len(positions)
    k = np.arange(count, dtype=float)
    origin, step, off = np.empty(3), np.empty(3), np.empty(3)
    for axis in range(3):
        p = positions[:, axis]
        above = np.stack([-np.ones(count), -k, -np.ones(count)], axis=1)  # p_k - (a + b k) <= e
        below = np.stack([np.ones(count), k, -np.ones(count)], axis=1)
        solved = linprog(
            [0, 0, 1],
            np.concatenate([above, below]),
            np.concatenate([-p, p]),
            bounds=[(None, None), (None, None), (0, None)],
        )
        if solved.x is None or solved.x[2] > units[axis] * (1 + 1e-6) + 1e-9:
            return None
        origin[axis], step[axis], off[axis] = solved.x
    distance = np.linalg.norm(step)
    coarse = max(np.linalg.norm(off), units @ np.abs(step) / distance)
    return (origin, step) if coarse <= COARSEST * distance else None


def _same_gaps(gaps: np.ndarray) -> bool:
    usual = _usual(gaps)
    return bool((np.abs(gaps - usual) <= SPACING_TOLERANCE * usual).all())


def _check_missing(slices: Sequence[SliceHeader], gaps: np.ndarray, rounding: float) -> None:
    """Refuse slices whose gaps are all whole numbers of the usual one, some of them several, but for ``rounding``."""
    usual = _usual(gaps)
    wide = np.flatnonzero(np.abs(gaps - usual) > SPACING_TOLERANCE * usual + rounding)
    steps = np.round(gaps / usual)
    if len(wide) and (np.abs(gaps - steps * usual) <= SPACING_TOLERANCE * steps * usual + rounding).all():
        first = wide[0]
        where = f"between {slices[first].path.name} and {slices[first + 1].path.name}"
        raise RefusedScan(
            f"expected slices {usual:.4g} mm apart, missing: {int(steps.sum()) - len(gaps)}, "
            f"{'the first ' if len(wide) > 1 else ''}{where} ({gaps[first]:.4g} mm): copy the whole series",
            kind="missing-slices",
        )


def _usual(gaps: np.ndarray) -> float:
    return float(np.median(gaps[gaps < 1.5 * gaps.min()]))


def get_directions(part: SliceHeader) -> np.ndarray:
    """Directions of x and of y of the image, (2, 3)."""
    return np.array(part.orientation).reshape(2, 3)


def _steps(part: SliceHeader) -> np.ndarray:
    """Steps in mm to the next voxel along x and along y of the image, (2, 3)."""
    between_rows, between_columns = part.pixel_spacing or (1.0, 1.0)
    return get_directions(part) * [[between_columns], [between_rows]]


def _pixel(slices: Sequence[SliceHeader]) -> float:
    return min(slices[0].pixel_spacing or (1.0,))
