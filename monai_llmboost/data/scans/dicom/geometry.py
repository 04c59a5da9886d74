# SPDX-License-Identifier: Apache-2.0
"""Geometry of slices: their planes, their order along the normal, and the evenly spaced line through them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.dicom.tolerances import (
    FIT_TOLERANCE,
    FIT_TOLERANCE_MM,
    MAX_ROUNDING,
    NEARLY_PARALLEL,
    SAME_PLANE_PIXELS,
    SAME_POSITION_PIXELS,
    SINGLE_GAP,
    SPACING_TOLERANCE,
    WHOLE_NUMBER_ROUNDING,
)
from monai_llmboost.data.scans.scan import RefusedScan


def project_positions(slices: Sequence[SliceHeader]) -> np.ndarray:
    """Return the positions of slices along the normal of the first one, in mm."""
    x, y = get_directions(slices[0])
    return np.array([header.position for header in slices]) @ np.cross(x, y)


def number_positions(slices: Sequence[SliceHeader]) -> np.ndarray:
    """Return the index of each slice's position along the normal, from 0; slices at the same position share it."""
    along = project_positions(slices)
    order = np.argsort(along, kind="stable")
    numbers = np.empty(len(slices), int)
    numbers[order] = np.cumsum(
        np.diff(along[order], prepend=along[order[0]]) > SAME_POSITION_PIXELS * _get_pixel_mm(slices)
    )
    return numbers


def group_by_plane(slices: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Group slices of one size by directions and pixel spacings, to a part of a pixel over the whole image."""
    kinds = {(header.orientation, header.pixel_spacing) for header in slices}
    corners, pixels = np.empty((len(kinds), 2, 3)), np.empty(len(kinds))
    planes: list[list[SliceHeader]] = []
    of_kind: dict[tuple, list[SliceHeader]] = {}
    for header in slices:
        kind = header.orientation, header.pixel_spacing
        if kind not in of_kind:
            count = len(planes)
            own, pixel = _get_steps(header) * [[header.columns], [header.rows]], _get_pixel_mm([header])
            off = np.linalg.norm(corners[:count] - own, axis=2).max(axis=1)
            same = np.flatnonzero(off <= SAME_PLANE_PIXELS * np.minimum(pixels[:count], pixel))
            if not len(same):
                corners[count], pixels[count] = own, pixel
                planes.append([])
            of_kind[kind] = planes[same[0] if len(same) else count]
        of_kind[kind].append(header)
    return planes


def are_nearly_parallel(one: SliceHeader, other: SliceHeader) -> bool:
    """Return whether two slices of one size have about the same directions and pixel spacings."""
    cosines = np.abs(get_directions(one) - get_directions(other)).max()
    first, second = (np.array(header.pixel_spacing) for header in (one, other))
    return bool(cosines <= NEARLY_PARALLEL and (np.abs(first - second) <= NEARLY_PARALLEL * np.abs(second)).all())


def is_evenly_spaced(slices: Sequence[SliceHeader]) -> bool:
    """Return whether slices are evenly spaced on a straight line, one at each position."""
    return not _find_line_problem(slices)


def has_missing_slices(slices: Sequence[SliceHeader]) -> bool:
    """Return whether slices are evenly spaced on a straight line, except that some are missing between them."""
    return _find_line_problem(slices) == "missing-slices"


def _find_line_problem(slices: Sequence[SliceHeader]) -> str:
    """Return the kind of refusal of slices that are not evenly spaced on a line; empty if they are."""
    try:
        fit_line(*sort_slices(slices))
    except RefusedScan as refused:
        return refused.kind
    return ""


def is_numbered_in_order(slices: Sequence[SliceHeader]) -> bool:
    """Return whether InstanceNumber strictly increases, or decreases, from slice to slice along the normal."""
    numbers = [header.instance_number for header in sort_slices(slices)[0]]
    steps = {b > a for a, b in pairwise(numbers) if a is not None and b is not None and a != b}
    return None not in numbers and len(set(numbers)) == len(numbers) and len(steps) == 1


def overlaps(one: Sequence[SliceHeader], other: Sequence[SliceHeader]) -> bool:
    """Return whether two nearly parallel stacks overlap along their normal, not only at one end."""
    normal = np.cross(*get_directions(one[0]))
    first, second = (np.array([header.position for header in stack]) @ normal for stack in (one, other))
    return bool(first.min() < second.max() and second.min() < first.max())


def any_overlap(stacks: Sequence[Sequence[SliceHeader]]) -> bool:
    """Return whether any two of several nearly parallel stacks overlap."""
    normal = np.cross(*get_directions(stacks[0][0]))
    extents = sorted(
        (along.min(), along.max()) for along in (np.array([p.position for p in stack]) @ normal for stack in stacks)
    )
    furthest = np.maximum.accumulate([end for _, end in extents])
    return any(start < end for (start, _), end in zip(extents[1:], furthest))


def sort_slices(slices: Sequence[SliceHeader]) -> tuple[list[SliceHeader], np.ndarray]:
    """Return the slices sorted along their normal, and their positions on it, in mm."""
    along = project_positions(slices)
    order = np.argsort(along, kind="stable")
    return [slices[i] for i in order], along[order]


def fit_line(slices: Sequence[SliceHeader], along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first position of an evenly spaced line through sorted slices, and the step along it, in mm.

    Positions may be rounded by half a unit of their last written digit.

    Raises:
        RefusedScan: the slices are not on an evenly spaced line.
    """
    if (count := len(set(number_positions(slices)))) < len(slices):
        raise RefusedScan(
            f"expected one slice at each position, got {len(slices)} slices at {count} positions and no tag "
            f"that separates them: keep the slices of one volume",
            kind="several-volumes",
        )
    positions = np.array([header.position for header in slices])
    gaps = np.diff(along)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    distance = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1).max()
    if _are_even(gaps) and distance <= SPACING_TOLERANCE * np.linalg.norm(step):
        return positions[0], step
    rounding_mm = get_rounding_mm(slices)
    if (fitted := _fit_rounded(positions, rounding_mm)) is not None:
        _check_missing(slices, gaps, 0.0)
        return fitted
    if not _are_even(gaps):
        _check_missing(slices, gaps, 2 * float(np.linalg.norm(rounding_mm)))
        raise RefusedScan(
            f"expected slices at equal distances, got {gaps.min():.4g} to {gaps.max():.4g} mm: "
            f"resample the series to equal distances first",
            kind="uneven-slices",
        )
    raise RefusedScan(
        f"expected slices on an even, straight line, got one {distance:.3g} mm off its place: export the series again",
        kind="uneven-slices",
    )


def get_rounding_mm(slices: Sequence[SliceHeader]) -> np.ndarray:
    """Return half a unit of the last written digit of positions, in mm, for each coordinate.

    Some writers drop trailing zeros, so the smallest value of all slices is used. For a coordinate that is whole in all
    slices, the smallest value of the other coordinates is used.
    """
    rounding = np.array([header.rounding_mm for header in slices]).min(axis=0)
    return np.where(rounding >= WHOLE_NUMBER_ROUNDING, rounding.min(), rounding)


def _fit_rounded(positions: np.ndarray, rounding_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the origin and step of an evenly spaced line that rounds to these positions; None if there is none.

    For each coordinate p, this is the line a + b k with the smallest maximum distance to p_k (Chebyshev).
    """
    if not (rounding_mm > 0).any():
        return None
    from scipy.optimize import linprog  # takes half a second, and a search for NIfTI files does without it

    count = len(positions)
    k = np.arange(count, dtype=float)
    origin, step, errors = np.empty(3), np.empty(3), np.empty(3)
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
        if solved.x is None or solved.x[2] > rounding_mm[axis] * (1 + FIT_TOLERANCE) + FIT_TOLERANCE_MM:
            return None
        origin[axis], step[axis], errors[axis] = solved.x
    distance = np.linalg.norm(step)
    error = max(np.linalg.norm(errors), rounding_mm @ np.abs(step) / distance)
    return (origin, step) if error <= MAX_ROUNDING * distance else None


def _are_even(gaps: np.ndarray) -> bool:
    usual = _get_usual_gap(gaps)
    return bool((np.abs(gaps - usual) <= SPACING_TOLERANCE * usual).all())


def _check_missing(slices: Sequence[SliceHeader], gaps: np.ndarray, rounding: float) -> None:
    """Refuse slices if all gaps are multiples of the usual gap, to ``rounding`` in mm, and some gaps are larger."""
    usual = _get_usual_gap(gaps)
    too_large = np.flatnonzero(np.abs(gaps - usual) > SPACING_TOLERANCE * usual + rounding)
    steps = np.round(gaps / usual)
    if len(too_large) and (np.abs(gaps - steps * usual) <= SPACING_TOLERANCE * steps * usual + rounding).all():
        first = too_large[0]
        where = f"between {slices[first].path.name} and {slices[first + 1].path.name}"
        raise RefusedScan(
            f"expected slices {usual:.4g} mm apart, missing: {int(steps.sum()) - len(gaps)}, "
            f"{'the first ' if len(too_large) > 1 else ''}{where} ({gaps[first]:.4g} mm): copy the whole series",
            kind="missing-slices",
        )


def _get_usual_gap(gaps: np.ndarray) -> float:
    return float(np.median(gaps[gaps < SINGLE_GAP * gaps.min()]))


def get_directions(header: SliceHeader) -> np.ndarray:
    """Return the directions of x and y of the image, (2, 3)."""
    return np.array(header.orientation).reshape(2, 3)


def _get_steps(header: SliceHeader) -> np.ndarray:
    """Return the steps to the next voxel along x and y of the image, in mm, (2, 3)."""
    between_rows, between_columns = header.pixel_spacing or (1.0, 1.0)
    return get_directions(header) * [[between_columns], [between_rows]]


def _get_pixel_mm(slices: Sequence[SliceHeader]) -> float:
    return min(slices[0].pixel_spacing or (1.0,))
