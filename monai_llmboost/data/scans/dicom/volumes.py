# SPDX-License-Identifier: Apache-2.0
"""Slices of one plane that are several volumes: by their tags, folders and numbers, or not to be separated at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, pairwise

import numpy as np

from monai_llmboost.data.scans.dicom.geometry import (
    any_overlap,
    has_missing_slices,
    is_evenly_spaced,
    is_numbered_in_order,
    number_positions,
    overlaps,
)
from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.dicom.tags import OF_ACQUISITION, find_separations, list_tags

# A tag that leaves fewer slices than this together numbers slices rather than volumes.
FEWEST = 2
# Two slices are always an even stack; so many at least show that they are one.
FEWEST_IN_PASS = 3
# What separates volumes at one place only where nothing else does.
LAST_RESORT = frozenset((
    "AcquisitionTime", "AcquisitionDateTime", "FrameAcquisitionDateTime", "FrameReferenceDateTime",
    "FrameReferenceTime", "IrradiationEventUID", "ContentTime",
))  # fmt: skip
# What says nothing of passes over one extent: counters, and times of writing.
NOT_OF_PASSES = frozenset(("DimensionIndexValues", "StackID", "ContentTime", "FrameOfReferenceUID"))
# What volumes in time have in common.
OF_KIND = (
    "EchoTime", "EffectiveEchoTime", "EchoNumbers", "ImageType", "InversionTime", "FlipAngle", "FrameOfReferenceUID",
)  # fmt: skip
# What all slices of one volume have in common, wherever they lie.
OF_ONE_VOLUME = ("EchoTime", "EffectiveEchoTime", "EchoNumbers", "ConvolutionKernel")
TAKEN_IN_TURNS = "its slices were taken in turns over the same extent: read as one volume"
IN_DISORDER = "its image numbers do not follow its slices"


@dataclass(frozen=True)
class Volumes:
    """One volume, or several in time, or slices that cannot be separated.

    Args:
        slices: volume by volume if there are several.
        count: number of volumes in time, each of as many slices.
        separated_by: tags that set it apart from others at its place.
        warnings: what is odd about it.
        refused: why it is not clear what it is; empty if it is.
    """

    slices: tuple[SliceHeader, ...]
    count: int = 1
    separated_by: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    refused: str = ""


def separate_volumes(plane: Sequence[SliceHeader], lacks_uid: bool = False) -> list[Volumes]:
    """The volumes among placed slices of one series, size, direction and pixel spacing.

    Args:
        plane: the slices, in any order.
        lacks_uid: whether they have no SeriesInstanceUID that says that they are of one series.
    """
    number = number_positions(plane)
    if len(set(number)) == len(plane):
        return _at_places_of_their_own(plane, lacks_uid)
    found = []
    for outer in _at_one_place(plane, number):
        if outer.count > 1 or not outer.separated_by:
            found.append(outer)
            continue
        found += [
            replace(
                inner,
                separated_by=(*outer.separated_by, *inner.separated_by),
                warnings=(*outer.warnings, *inner.warnings),
            )
            for inner in _at_places_of_their_own(outer.slices, lacks_uid)
        ]
    return found


def _at_one_place(plane: Sequence[SliceHeader], number: np.ndarray) -> list[Volumes]:
    """Volumes of which several lie at one place: by the fewest tags, by folder, or by the order of their numbers."""
    of_time = OF_ACQUISITION | {"TemporalPositionIdentifier"} if plane[0].corner else frozenset()
    splits = []
    for split in find_separations(plane, LAST_RESORT | of_time, fewest=FEWEST, at=number):
        splits.append(split)
        if len({frozenset(number[part]) for part in split[1]}) == 1:
            return _split(plane, *split, number)
    if found := _by_folder(plane, at_one_place=True) or _by_sweeps(plane, number):
        return found
    for split in chain(splits, find_separations(plane, frozenset(), fewest=FEWEST, at=number)):
        if not _are_pieces(plane, split[1], number):
            return _split(plane, *split, number)
    return [Volumes(tuple(plane))]


def _split(
    plane: Sequence[SliceHeader], tags: tuple[str, ...], parts: Sequence[np.ndarray], number: np.ndarray
) -> list[Volumes]:
    """Volumes at one place, with a warning for those that lack slices of another one."""
    extents = [frozenset(number[part]) for part in parts]
    found = []
    for part, own in zip(parts, extents):
        lost = max(len(other - own) for other in extents if own <= other)
        warning = f"another volume at its place has {lost} more slices: some of it may be missing"
        found.append(Volumes(tuple(plane[i] for i in part), 1, tags, (warning,) if lost else ()))
    return found


def _are_pieces(plane: Sequence[SliceHeader], parts: Sequence[np.ndarray], number: np.ndarray) -> bool:
    """Whether some of the parts are pieces of one volume: they take turns, or make up a third one's extent."""
    extents = [frozenset(number[part]) for part in parts]
    for (i, one), (j, other) in combinations(enumerate(extents), 2):
        if one & other:
            continue
        first, second = ([plane[k] for k in parts[n]] for n in (i, j))
        if overlaps(first, second) or any(one | other <= third for third in extents):
            return True
    return False


def _by_sweeps(plane: Sequence[SliceHeader], number: np.ndarray) -> list[Volumes]:
    """Volumes in time by image number: each position as often, sweep after sweep or position after position."""
    by_place: dict[int, list[SliceHeader]] = {}
    for part, place in zip(plane, number):
        by_place.setdefault(int(place), []).append(part)
    rows = [sorted(parts, key=lambda part: (part.number is None, part.number)) for parts in by_place.values()]
    count = len(rows[0])
    if len(rows) < FEWEST or any(len(row) != count for row in rows):
        return []
    if any(part.number is None or (part.frames > 1 and part.corner is None) for part in plane):
        return []
    numbers = np.array([[part.number for part in row] for row in rows])  # (positions, times)
    if (np.diff(numbers, axis=1) <= 0).any() or not _are_counted_alike(numbers):
        return []
    tags = {(part.path, part.frame): own for part, own in zip(plane, list_tags(plane, rounded=True))}
    sweeps = [[row[time] for row in rows] for time in range(count)]
    kinds: dict[tuple, list[list[SliceHeader]]] = {}
    for sweep in sweeps:
        own = {tuple(tags[part.path, part.frame].get(tag) for tag in OF_KIND) for part in sweep}
        if len(own) > 1:
            return []
        kinds.setdefault(next(iter(own)), []).append(sweep)
    separated_by = tuple(tag for i, tag in enumerate(OF_KIND) if len({kind[i] for kind in kinds}) > 1)
    return [
        Volumes(tuple(part for sweep in several for part in sweep), len(several), separated_by)
        for several in kinds.values()
    ]


def _are_counted_alike(numbers: np.ndarray) -> bool:
    """Whether numbers (positions, times) count times at every position in the same way.

    They do where all of a time come before the next time's, all of a position before the next position's, or where
    from time to time they grow by the same at each position, as in any loop of loops.
    """
    by_time, by_position = (table[np.argsort(table[:, 0])] for table in (numbers.T, numbers))
    in_a_row = [(table[:-1].max(axis=1) < table[1:].min(axis=1)).all() for table in (by_time, by_position)]
    return any(in_a_row) or bool((np.diff(numbers, axis=1) == np.diff(numbers, axis=1)[0]).all())


def _at_places_of_their_own(plane: Sequence[SliceHeader], lacks_uid: bool) -> list[Volumes]:
    """The volumes among slices none of which lies where another one does."""
    if len(plane) < 2 * FEWEST:
        return [Volumes(tuple(plane))]
    plane = [plane[i] for i in np.argsort(number_positions(plane))]
    even = is_evenly_spaced(plane)
    return (
        _in_passes(plane, even)
        or _one_behind_another(plane)
        or _by_file(plane)
        or _by_number(plane, even, lacks_uid)
        or _by_frame_of_reference(plane, even)
    )


def _in_passes(plane: Sequence[SliceHeader], even: bool) -> list[Volumes]:
    """Scans that interleave, each even, over overlapping extents: separated, one volume after all, or refused."""

    def passes(ignored: frozenset[str]) -> Iterator[tuple[tuple[str, ...], list[tuple[SliceHeader, ...]]]]:
        for tags, parts in find_separations(plane, NOT_OF_PASSES | ignored, fewest=FEWEST):
            stacks = [tuple(plane[i] for i in part) for part in parts]
            if all(map(is_evenly_spaced, stacks)):
                yield tags, stacks

    found = next(passes(OF_ACQUISITION), None) or next(passes(frozenset()), None)
    if found is None or not any_overlap(found[1]):
        return []
    tags, stacks = found
    # A tag of more values than each has slices counts slices rather than scans.
    known = min(map(len, stacks)) >= max(FEWEST_IN_PASS, len(stacks))
    if OF_ACQUISITION.issuperset(tags):
        if plane[0].modality == "MR" and even:
            known = is_numbered_in_order(plane) or len({part.path for part in plane}) == 1
            return [Volumes(tuple(plane), warnings=() if known else (TAKEN_IN_TURNS,))]
        if plane[0].modality == "MR" and has_missing_slices(plane):
            return []
        numbers = [sorted(part.number or 0 for part in stack) for stack in stacks]
        apart = all(one[-1] < other[0] for one, other in pairwise(sorted(numbers))) and bool(plane[0].modality)
    else:
        apart = all(tag in own for own in list_tags(plane) for tag in tags)
    if known and apart:
        return [Volumes(stack, separated_by=tags) for stack in stacks]
    return [_unclear(plane, f"{len(stacks)} that interleave, by {' and '.join(tags)}")]


def _one_behind_another(plane: Sequence[SliceHeader]) -> list[Volumes]:
    """Scans that follow each other along one line and differ in what slices of one volume never differ in."""
    tags = list_tags(plane, rounded=True)
    for tag in OF_ONE_VOLUME:
        values = [own[tag] for own in tags if tag in own]
        if len(values) == len(plane) and len(set(values)) > 1:
            parts = [tuple(p for p, v in zip(plane, values) if v == value) for value in dict.fromkeys(values)]
            if all(len(part) >= FEWEST_IN_PASS and is_evenly_spaced(part) for part in parts):
                return [Volumes(part, separated_by=(tag,)) for part in parts]
            return [_unclear(plane, f"slices with several values of {tag}")]
    return []


def _by_file(plane: Sequence[SliceHeader]) -> list[Volumes]:
    """A refusal of files of several slices each that interleave; none of files that follow each other."""
    files: dict[object, list[SliceHeader]] = {}
    for part in plane:
        files.setdefault(part.path, []).append(part)
    several = [own for own in files.values() if len(own) >= FEWEST]
    if several and any_overlap(several):
        return [_unclear(plane, f"files of several slices that interleave, {len(several)} of them")]
    return []


def _by_number(plane: Sequence[SliceHeader], even: bool, lacks_uid: bool) -> list[Volumes]:
    """Scans that only their image numbers, or these and their folders, show; none if the numbers are of one volume."""
    numbers = [part.number for part in plane if part.number is not None]
    numbered = len(numbers) == len(plane)
    often = Counter(numbers)
    folders: dict[object, list[SliceHeader]] = {}
    for part in plane:
        folders.setdefault(part.path.parent, []).append(part)
    if len(often) > 1 and sum(count for count in often.values() if count > 1) * 2 >= len(plane):
        return (not even and _by_folder(plane)) or [_unclear(plane, "image numbers that start again")]
    if lacks_uid and len(folders) > 1 and even and not is_numbered_in_order(plane):
        return [_unclear(plane, f"slices in {len(folders)} folders, no SeriesInstanceUID and no numbers in a row")]
    of_folders = len(folders) > 1 and all(
        len(own) >= FEWEST_IN_PASS and is_evenly_spaced(own) for own in folders.values()
    )
    if even and not numbered and of_folders:
        return [_unclear(plane, f"slices in {len(folders)} folders, and no numbers that count them through")]
    if even and numbered and (passes := _passes_by_number(numbers)):
        if plane[0].modality == "MR" and not (of_folders and len(folders) == passes):
            return [Volumes(tuple(plane), warnings=(TAKEN_IN_TURNS,))]
        return [_unclear(plane, f"{passes} that interleave, by their image numbers")]
    return []


def _passes_by_number(numbers: Sequence[int]) -> int:
    """How many sweeps of numbers take turns from slice to slice; 0 if there is one."""
    for passes in range(2, len(numbers) // FEWEST_IN_PASS + 1):
        parts = sorted(sorted(numbers[start::passes]) for start in range(passes))
        if all(one[-1] < other[0] for one, other in pairwise(parts)):
            return passes
    return 0


def _by_folder(plane: Sequence[SliceHeader], at_one_place: bool = False) -> list[Volumes]:
    """Scans by the folders that they lie in, if each is even and their image numbers do not contradict it."""
    folders: dict[object, list[SliceHeader]] = {}
    for part in plane:
        folders.setdefault(part.path.parent, []).append(part)
    parts = list(folders.values())
    if len(parts) < 2 or not all(len(part) >= FEWEST and is_evenly_spaced(part) for part in parts):
        return []
    sets = [{part.number for part in own if part.number is not None} for own in parts]
    numbered = all(len(own) == len(part) for own, part in zip(sets, parts))
    start_again = numbered and all(2 * len(a & b) >= min(len(a), len(b)) for a, b in combinations(sets, 2))
    in_blocks = numbered and all(max(a) < min(b) for a, b in pairwise(sorted(sets, key=min)))
    unnumbered = all(len(own) < 2 for own in sets)
    if not (start_again or (at_one_place and (in_blocks or unnumbered))):
        return []
    return [Volumes(tuple(part), separated_by=("folder",)) for part in parts]


def _by_frame_of_reference(plane: Sequence[SliceHeader], even: bool) -> list[Volumes]:
    """One volume, whatever frames of reference its slices name if they are even; else one for each frame."""
    frames: dict[str, list[SliceHeader]] = {}
    for part in plane:
        frames.setdefault(part.identity.frame_of_reference, []).append(part)
    several = len(frames.keys() - {""}) > 1
    apart = several and not even and not any_overlap(list(frames.values()))
    if apart and all(len(part) >= FEWEST and is_evenly_spaced(part) for part in frames.values()):
        return [Volumes(tuple(part), separated_by=("FrameOfReferenceUID",)) for part in frames.values()]
    warnings = []
    if several and even:
        warnings.append(
            f"its slices name {len(frames)} frames of reference, but are one even stack: read as one volume"
        )
    if (
        plane[0].modality != "MR"
        and len({part.number for part in plane} - {None}) > 1
        and not is_numbered_in_order(plane)
    ):
        warnings.append(IN_DISORDER)
    return [Volumes(tuple(plane), warnings=tuple(warnings))]


def _unclear(plane: Sequence[SliceHeader], what: str) -> Volumes:
    refused = f"expected the slices of one scan, got {what}: keep those of one scan, or correct the headers"
    return Volumes(tuple(plane), refused=refused)
