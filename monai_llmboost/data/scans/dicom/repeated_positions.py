# SPDX-License-Identifier: Apache-2.0
"""Separation of the slices of one plane into volumes, if positions repeat: by tags, folders and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, combinations

import numpy as np

from monai_llmboost.data.scans.dicom.distinct_positions import separate_distinct
from monai_llmboost.data.scans.dicom.geometry import number_positions, overlaps
from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.dicom.tags import ACQUISITION_TAGS, find_separations, list_tags
from monai_llmboost.data.scans.dicom.volumes import MIN_SLICES, Volumes, separate_by_folder

# Tags that separate volumes at the same positions only if nothing else does.
LAST_RESORT_TAGS = frozenset((
    "AcquisitionTime", "AcquisitionDateTime", "FrameAcquisitionDateTime", "FrameReferenceDateTime",
    "FrameReferenceTime", "IrradiationEventUID", "ContentTime",
))  # fmt: skip
# Tags that volumes in time have in common.
TIME_SERIES_TAGS = (
    "EchoTime", "EffectiveEchoTime", "EchoNumbers", "ImageType", "InversionTime", "FlipAngle", "FrameOfReferenceUID",
)  # fmt: skip


def separate_volumes(plane: Sequence[SliceHeader], lacks_uid: bool = False) -> list[Volumes]:
    """Separate the slices of one series, size, direction and pixel spacing into volumes.

    Args:
        plane: the slices, in any order; all have a position.
        lacks_uid: whether they have no SeriesInstanceUID.
    """
    position_index = number_positions(plane)
    if len(set(position_index)) == len(plane):
        return separate_distinct(plane, lacks_uid)
    found = []
    for outer in _separate_repeated(plane, position_index):
        if outer.count > 1 or not outer.separated_by:
            found.append(outer)
            continue
        found += [
            replace(
                inner,
                separated_by=(*outer.separated_by, *inner.separated_by),
                warnings=(*outer.warnings, *inner.warnings),
            )
            for inner in separate_distinct(outer.slices, lacks_uid)
        ]
    return found


def _separate_repeated(plane: Sequence[SliceHeader], position_index: np.ndarray) -> list[Volumes]:
    """Separate volumes with common positions by the fewest tags, by folders, or by the order of instance numbers."""
    time_tags = ACQUISITION_TAGS | {"TemporalPositionIdentifier"} if plane[0].corner else frozenset()
    splits = []
    for split in find_separations(plane, LAST_RESORT_TAGS | time_tags, MIN_SLICES, position_index):
        splits.append(split)
        if len({frozenset(position_index[group]) for group in split[1]}) == 1:
            return _split(plane, *split, position_index)
    if found := separate_by_folder(plane, same_positions=True) or _separate_by_sweeps(plane, position_index):
        return found
    for split in chain(splits, find_separations(plane, frozenset(), MIN_SLICES, position_index)):
        if not _are_pieces(plane, split[1], position_index):
            return _split(plane, *split, position_index)
    return [Volumes(tuple(plane))]


def _split(
    plane: Sequence[SliceHeader], tags: tuple[str, ...], groups: Sequence[np.ndarray], position_index: np.ndarray
) -> list[Volumes]:
    """Return the volumes of a separation, with a warning for volumes that lack slices of another volume."""
    extents = [frozenset(position_index[group]) for group in groups]
    found = []
    for group, own in zip(groups, extents):
        missing = max(len(other - own) for other in extents if own <= other)
        warning = f"another volume at its place has {missing} more slices: some of it may be missing"
        found.append(Volumes(tuple(plane[i] for i in group), 1, tags, (warning,) if missing else ()))
    return found


def _are_pieces(plane: Sequence[SliceHeader], groups: Sequence[np.ndarray], position_index: np.ndarray) -> bool:
    """Return whether some groups are pieces of one volume: they interleave, or together are part of a third group."""
    extents = [frozenset(position_index[group]) for group in groups]
    for (i, one), (j, other) in combinations(enumerate(extents), 2):
        if one & other:
            continue
        first, second = ([plane[k] for k in groups[n]] for n in (i, j))
        if overlaps(first, second) or any(one | other <= third for third in extents):
            return True
    return False


def _separate_by_sweeps(plane: Sequence[SliceHeader], position_index: np.ndarray) -> list[Volumes]:
    """Separate volumes in time by InstanceNumber, if all positions repeat equally often and are numbered alike."""
    rows = _collect_rows(plane, position_index)
    count = len(rows[0])
    if len(rows) < MIN_SLICES or any(len(row) != count for row in rows):
        return []
    if any(header.instance_number is None or (header.frames > 1 and header.corner is None) for header in plane):
        return []
    numbers = np.array([[header.instance_number for header in row] for row in rows])  # (positions, times)
    if (np.diff(numbers, axis=1) <= 0).any() or not _are_counted_alike(numbers):
        return []
    return _group_by_kind(plane, [[row[time] for row in rows] for time in range(count)])


def _collect_rows(plane: Sequence[SliceHeader], position_index: np.ndarray) -> list[list[SliceHeader]]:
    """Return the slices of each position, sorted by InstanceNumber."""
    by_position: dict[int, list[SliceHeader]] = {}
    for header, index in zip(plane, position_index):
        by_position.setdefault(int(index), []).append(header)
    return [
        sorted(headers, key=lambda header: (header.instance_number is None, header.instance_number))
        for headers in by_position.values()
    ]


def _group_by_kind(plane: Sequence[SliceHeader], sweeps: Sequence[list[SliceHeader]]) -> list[Volumes]:
    """Group sweeps into volumes in time by tags; return an empty list if the tags of one sweep differ."""
    tags = {(header.path, header.frame): own for header, own in zip(plane, list_tags(plane, rounded=True))}
    kinds: dict[tuple, list[list[SliceHeader]]] = {}
    for sweep in sweeps:
        own = {tuple(tags[header.path, header.frame].get(tag) for tag in TIME_SERIES_TAGS) for header in sweep}
        if len(own) > 1:
            return []
        kinds.setdefault(next(iter(own)), []).append(sweep)
    separated_by = tuple(tag for i, tag in enumerate(TIME_SERIES_TAGS) if len({kind[i] for kind in kinds}) > 1)
    return [
        Volumes(tuple(header for sweep in several for header in sweep), len(several), separated_by)
        for several in kinds.values()
    ]


def _are_counted_alike(numbers: np.ndarray) -> bool:
    """Return whether instance numbers (positions, times) count times in the same way at every position.

    This is true if all numbers of one time come before the numbers of the next time, if all numbers of one position
    come before the numbers of the next position, or if numbers increase from time to time equally at each position.
    """
    by_time, by_position = (table[np.argsort(table[:, 0])] for table in (numbers.T, numbers))
    in_a_row = [(table[:-1].max(axis=1) < table[1:].min(axis=1)).all() for table in (by_time, by_position)]
    return any(in_a_row) or bool((np.diff(numbers, axis=1) == np.diff(numbers, axis=1)[0]).all())
