# SPDX-License-Identifier: Apache-2.0
"""Search for stacks that are pieces of one scan although their headers differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from monai_llmboost.data.scans.dicom.geometry import (
    are_nearly_parallel,
    is_evenly_spaced,
    is_numbered_in_order,
    overlaps,
)
from monai_llmboost.data.scans.dicom.identity import find_contradictions
from monai_llmboost.data.scans.dicom.slices import SliceHeader

# The slices of a stack, and the tags that separated it from others of its series.
Piece = tuple[tuple[SliceHeader, ...], tuple[str, ...]]
# Minimum number of slices that show an even spacing, because two are always evenly spaced.
MIN_SLICES = 3


def find_pieces(stacks: Sequence[Piece]) -> list[list[int]]:
    """Find groups of stacks that together are one evenly spaced stack, as indices into ``stacks``.

    Stacks of several series form a group if their instance numbers form one sequence, or if they interleave within one
    study with the same SeriesNumber or without numbers. Stacks of one series form a group if neither a tag nor their
    numbers separate them.
    """
    placed = [i for i, (slices, _) in enumerate(stacks) if all(header.is_placed for header in slices)]
    groups = []
    for group in _iterate_linked(stacks, placed):
        slices = [header for i in group for header in stacks[i][0]]
        if len(slices) >= MIN_SLICES and is_numbered_in_order(slices) and is_evenly_spaced(slices):
            groups.append(group)
    taken = {i for group in groups for i in group}
    # Two slices at one position are never evenly spaced; in a study of very many series, this saves most of the time.
    positions = [{header.position for header in slices} for slices, _ in stacks]
    for i, j, one_series in _iterate_neighbours(stacks, placed):
        apart = positions[i].isdisjoint(positions[j])
        if apart and not {i, j} & taken and _are_halves(stacks[i], stacks[j], one_series):
            groups.append([i, j])
            taken |= {i, j}
    return groups


def _iterate_linked(stacks: Sequence[Piece], placed: Sequence[int]) -> Iterator[list[int]]:
    """Yield groups of stacks linked by instance numbers: one stack continues at a gap or the end of another."""
    links = _find_links(stacks, placed)
    if links:
        from scipy.sparse import coo_array  # takes a tenth of a second, and most searches do without it
        from scipy.sparse.csgraph import connected_components

        ends = np.array(list(links)).T
        table = coo_array((np.ones(len(links)), (ends[0], ends[1])), shape=(len(stacks), len(stacks)))
        labels = connected_components(table, directed=False)[1]
        for label in dict.fromkeys(labels[ends[0]].tolist()):
            yield np.flatnonzero(labels == label).tolist()


def _find_links(stacks: Sequence[Piece], placed: Sequence[int]) -> set[tuple[int, int]]:
    """Find pairs of stacks of which the second continues the first by instance number."""
    by_number: dict[int, list[tuple[int, SliceHeader]]] = {}
    numbers = {i: {header.instance_number for header in stacks[i][0]} for i in placed}
    for i in placed:
        for header in stacks[i][0]:
            if header.instance_number is not None:
                by_number.setdefault(header.instance_number, []).append((i, header))
    links: set[tuple[int, int]] = set()
    for number, headers in by_number.items():
        before = [(i, header) for i, header in headers if number + 1 not in numbers[i]]
        after = [(i, header) for i, header in by_number.get(number + 1, []) if number not in numbers[i]]
        for i, header in before:
            links |= {(i, j) for j, following in after if _may_follow(stacks[i], header, stacks[j], following)}
    return links


def _may_follow(one: Piece, header: SliceHeader, other: Piece, following: SliceHeader) -> bool:
    """Return whether a slice of a stack may be followed by a slice of another stack in the same scan."""
    (slices, by), (others, by_other) = one, other
    if header.series_uid == following.series_uid and {*by} & {*by_other} & _get_tags(slices):
        return False
    if not are_nearly_parallel(header, following):
        return False
    x, y = np.array(header.orientation).reshape(2, 3)
    step = np.array(following.position) - np.array(header.position)
    along = abs(step @ np.cross(x, y))
    if along == 0 or max(abs(step @ x), abs(step @ y)) > along:
        return False
    if len(slices) == len(others) == 1 or not {*find_contradictions(header.identity, following.identity)} - {
        "series_uid"
    }:
        return True
    return overlaps(slices, others)


def _get_tags(slices: Sequence[SliceHeader]) -> set[str]:
    return {tag for tag, _ in slices[0].discriminating} | {"folder"}


def _iterate_neighbours(stacks: Sequence[Piece], placed: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """Yield pairs of stacks that may be halves of one scan, and whether they are of one series.

    Such stacks share SeriesInstanceUID, or study and SeriesNumber, or, without instance numbers, study or folder.
    """
    owners: dict[tuple[str, ...], list[int]] = {}
    for i in placed:
        own = stacks[i][0][0].identity
        if own.series_uid:
            owners.setdefault((own.series_uid,), []).append(i)
        if own.study_uid:
            owners.setdefault((own.study_uid, own.series_number), []).append(i)
        if all(header.instance_number is None for header in stacks[i][0]):
            owners.setdefault((own.study_uid or str(stacks[i][0][0].path.parent), "", ""), []).append(i)
    for owner, several in owners.items():
        one_series = len(owner) == 1 or bool(owner[1])
        for i, j in combinations(several, 2):
            if len(stacks[i][0]) + len(stacks[j][0]) >= MIN_SLICES:
                yield i, j, one_series


def _are_halves(one: Piece, other: Piece, one_series: bool) -> bool:
    """Return whether two stacks are halves of one evenly spaced stack that neither a tag nor their numbers separate."""
    (slices, by), (others, by_other) = one, other
    first, second = slices[0], others[0]
    if (first.rows, first.columns) != (second.rows, second.columns) or _get_tags(slices) & {*by} & {*by_other}:
        return False
    if not are_nearly_parallel(first, second):
        return False
    numbers = [{header.instance_number for header in own} - {None} for own in (slices, others)]
    start_again = all(len(own) > 1 for own in numbers) and bool(numbers[0] & numbers[1])
    return (overlaps(slices, others) or (one_series and not start_again)) and is_evenly_spaced((*slices, *others))
