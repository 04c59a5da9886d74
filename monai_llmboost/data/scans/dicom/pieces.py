# SPDX-License-Identifier: Apache-2.0
"""Stacks that their headers set apart, and that are pieces of one scan all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from monai_llmboost.data.scans.dicom.geometry import (
    are_nearly_parallel,
    is_evenly_spaced,
    is_numbered_in_order,
    overlaps,
)
from monai_llmboost.data.scans.dicom.identity import find_contradictions
from monai_llmboost.data.scans.dicom.slices import SliceHeader

# The slices of a stack, and what separated it from others of its series.
Piece = tuple[tuple[SliceHeader, ...], tuple[str, ...]]
# Two slices are always an even stack.
FEWEST = 3


def find_pieces(stacks: Sequence[Piece]) -> list[list[int]]:
    """The groups of stacks that together are one even stack; of each stack its number in ``stacks``.

    Stacks of several series are where image numbers count through all of them, or where they take turns in one study
    under one SeriesNumber or without numbers; stacks of one series where neither a tag nor their numbers say that they
    are several.
    """
    placed = [i for i, (slices, _) in enumerate(stacks) if all(part.is_placed for part in slices)]
    groups = []
    for group in _linked(stacks, placed):
        slices = [part for i in group for part in stacks[i][0]]
        if len(slices) >= FEWEST and is_numbered_in_order(slices) and is_evenly_spaced(slices):
            groups.append(group)
    taken = {i for group in groups for i in group}
    for i, j, one_series in _neighbours(stacks, placed):
        if not {i, j} & taken and _are_halves(stacks[i], stacks[j], one_series):
            groups.append([i, j])
            taken |= {i, j}
    return groups


def _linked(stacks: Sequence[Piece], placed: Sequence[int]) -> Iterator[list[int]]:
    """Groups of stacks one of which has the image number that follows one of another's, which lacks it."""
    by_number: dict[int, list[tuple[int, SliceHeader]]] = {}
    numbers = {i: {part.number for part in stacks[i][0]} for i in placed}
    for i in placed:
        for part in stacks[i][0]:
            if part.number is not None:
                by_number.setdefault(part.number, []).append((i, part))
    links = set()
    for number, parts in by_number.items():
        before = [(i, part) for i, part in parts if number + 1 not in numbers[i]]
        after = [(i, part) for i, part in by_number.get(number + 1, []) if number not in numbers[i]]
        for i, part in before:
            links |= {(i, j) for j, following in after if _may_follow(stacks[i], part, stacks[j], following)}
    if links:
        ends = np.array(list(links)).T
        table = coo_array((np.ones(len(links)), (ends[0], ends[1])), shape=(len(stacks), len(stacks)))
        labels = connected_components(table, directed=False)[1]
        for label in dict.fromkeys(labels[ends[0]].tolist()):
            yield np.flatnonzero(labels == label).tolist()


def _may_follow(one: Piece, part: SliceHeader, other: Piece, following: SliceHeader) -> bool:
    """Whether a slice of a stack may be followed by a slice of another one in the same scan."""
    (slices, by), (others, by_other) = one, other
    if part.series_uid == following.series_uid and {*by} & {*by_other} & _tags(slices):
        return False
    if not are_nearly_parallel(part, following):
        return False
    x, y = np.array(part.orientation).reshape(2, 3)
    step = np.array(following.position) - np.array(part.position)
    along = abs(step @ np.cross(x, y))
    if along == 0 or max(abs(step @ x), abs(step @ y)) > along:
        return False
    if len(slices) == len(others) == 1 or not {*find_contradictions(part.identity, following.identity)} - {
        "series_uid"
    }:
        return True
    return overlaps(slices, others)


def _tags(slices: Sequence[SliceHeader]) -> set[str]:
    return {tag for tag, _ in slices[0].discriminating} | {"folder"}


def _neighbours(stacks: Sequence[Piece], placed: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """Pairs of stacks that may be halves of one scan, and whether they are of one series.

    They have one SeriesInstanceUID, or one study and SeriesNumber, or no image numbers and one study or folder.
    """
    owners: dict[tuple[str, ...], list[int]] = {}
    for i in placed:
        own = stacks[i][0][0].identity
        if own.series_uid:
            owners.setdefault((own.series_uid,), []).append(i)
        if own.study_uid:
            owners.setdefault((own.study_uid, own.series_number), []).append(i)
        if all(part.number is None for part in stacks[i][0]):
            owners.setdefault((own.study_uid or str(stacks[i][0][0].path.parent), "", ""), []).append(i)
    for owner, several in owners.items():
        one_series = len(owner) == 1 or bool(owner[1])
        for i, j in combinations(several, 2):
            if len(stacks[i][0]) + len(stacks[j][0]) >= FEWEST:
                yield i, j, one_series


def _are_halves(one: Piece, other: Piece, one_series: bool) -> bool:
    """Whether two stacks are halves of one even stack, and neither a tag nor their numbers say that they are two."""
    (slices, by), (others, by_other) = one, other
    first, second = slices[0], others[0]
    if (first.rows, first.columns) != (second.rows, second.columns) or _tags(slices) & {*by} & {*by_other}:
        return False
    if not are_nearly_parallel(first, second):
        return False
    numbers = [{part.number for part in own} - {None} for own in (slices, others)]
    start_again = all(len(own) > 1 for own in numbers) and bool(numbers[0] & numbers[1])
    return (overlaps(slices, others) or (one_series and not start_again)) and is_evenly_spaced((*slices, *others))
