# SPDX-License-Identifier: Apache-2.0
"""Slices of one plane that are several volumes: by their tags, folders and numbers, or not to be separated at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from monai_llmboost.data.scans.dicom.geometry import is_even, overlap, places
from monai_llmboost.data.scans.dicom.slices import SliceHeader

# So many tags at most are taken together to separate volumes of a series, such as echo and time.
MOST_TAGS = 3
# A tag that leaves fewer slices than this together numbers slices rather than volumes.
FEWEST = 2
# What differs where slices are taken at different times; slices of one MR volume are often taken in turns.
OF_ACQUISITION = frozenset((
    "AcquisitionNumber", "FrameAcquisitionNumber", "TriggerTime", "NominalCardiacTriggerDelayTime",
    "AcquisitionTime", "AcquisitionDateTime", "IrradiationEventUID",
))  # fmt: skip
# What separates volumes at one place only where nothing else does.
LAST_RESORT = frozenset(("AcquisitionTime", "AcquisitionDateTime", "IrradiationEventUID", "ContentTime"))
# What says nothing of passes over one extent: counters, and times of writing.
NOT_OF_PASSES = frozenset(("DimensionIndexValues", "StackID", "ContentTime", "FrameOfReferenceUID"))
# What volumes in time have in common.
OF_KIND = ("EchoTime", "EchoNumbers", "ImageType", "InversionTime", "FlipAngle", "FrameOfReferenceUID")
# What all slices of one volume have in common, wherever they lie.
OF_ONE_VOLUME = ("EchoTime", "EchoNumbers", "ConvolutionKernel")
# Relative difference of numbers in headers up to which they are one number.
ROUNDING = 0.02
# Passes over one extent, and slices in each of them, that image numbers alone can show.
MOST_PASSES, FEWEST_IN_PASS = 4, 3
TAKEN_IN_TURNS = "its slices were taken in turns over the same extent: read as one volume"


@dataclass(frozen=True)
class Volumes:
    """One volume, or several in time, or slices that cannot be separated.

    Args:
        slices: volume by volume if there are several.
        count: number of volumes in time, each of as many slices.
        separated_by: tags that set it apart from others at its place.
        warning: what is odd about it.
        refused: why it is not clear what it is; empty if it is.
    """

    slices: tuple[SliceHeader, ...]
    count: int = 1
    separated_by: tuple[str, ...] = ()
    warning: str = ""
    refused: str = ""


def volumes_of(plane: Sequence[SliceHeader], nameless: bool = False) -> list[Volumes]:
    """The volumes among placed slices of one series, size, direction and pixel spacing.

    Args:
        plane: the slices, in any order.
        nameless: whether they have no SeriesInstanceUID that says that they are of one series.
    """
    number = places(plane)
    if len(set(number)) < len(plane):
        return _at_one_place(plane, number)
    if len(plane) < 2 * FEWEST:
        return [Volumes(tuple(plane))]
    order = np.argsort(number)
    plane = [plane[i] for i in order]
    even = is_even(plane)
    return (
        _in_passes(plane, even)
        or _one_behind_another(plane)
        or _by_number(plane, even, nameless)
        or _by_frame_of_reference(plane, even)
    )


def _at_one_place(plane: Sequence[SliceHeader], number: np.ndarray) -> list[Volumes]:
    """Volumes of which several lie at one place: by the fewest tags, by folder, or by the order of their numbers."""

    def is_volume(part: list[int]) -> bool:
        return len(part) >= FEWEST and len(set(number[part])) == len(part)

    of_time = OF_ACQUISITION | {"TemporalPositionIdentifier"} if plane[0].corner else frozenset()
    if found := _separated(plane, is_volume, LAST_RESORT | of_time):
        return found
    if found := _by_folder(plane, at_one_place=True) or _by_sweeps(plane, number):
        return found
    return _separated(plane, is_volume, frozenset()) or [Volumes(tuple(plane))]


def _separated(
    plane: Sequence[SliceHeader], is_volume: Callable[[list[int]], bool], ignored: frozenset[str]
) -> list[Volumes]:
    """The volumes that the fewest tags separate; none if no few tags do."""
    tags = [_tags(part) for part in plane]
    varying = [tag for tag in dict.fromkeys(tag for own in tags for tag in own) if tag not in ignored]
    counts = {tag: len({own.get(tag) for own in tags}) for tag in varying}
    varying = [tag for tag in varying if 1 < counts[tag] <= len(plane) // FEWEST]
    for count in range(1, MOST_TAGS + 1):
        splits = []
        for chosen in combinations(varying, count):
            parts: dict[tuple, list[int]] = {}
            for i, own in enumerate(tags):
                parts.setdefault(tuple(own.get(tag) for tag in chosen), []).append(i)
            if all(map(is_volume, parts.values())):
                splits.append((chosen, list(parts.values())))
        if splits:
            chosen, found = min(splits, key=lambda split: len(split[1]))
            return [Volumes(tuple(plane[i] for i in part), separated_by=chosen) for part in found]
    return []


def _tags(part: SliceHeader) -> dict[str, object]:
    frame = part.identity.frame_of_reference
    return {**({"FrameOfReferenceUID": frame} if frame else {}), **dict(part.discriminating)}


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
    sweeps = [[row[time] for row in rows] for time in range(count)]
    kinds: dict[tuple, list[list[SliceHeader]]] = {}
    for sweep in sweeps:
        own = {tuple(_tags(part).get(tag) for tag in OF_KIND) for part in sweep}
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


def _in_passes(plane: Sequence[SliceHeader], even: bool) -> list[Volumes]:
    """Scans that interleave, each even, over overlapping extents: separated, one volume after all, or refused."""

    def is_pass(part: list[int]) -> bool:
        return len(part) >= FEWEST and is_even([plane[i] for i in part])

    found = _separated(plane, is_pass, NOT_OF_PASSES | OF_ACQUISITION) or _separated(plane, is_pass, NOT_OF_PASSES)
    if not found or not any(overlap(one.slices, other.slices) for one, other in combinations(found, 2)):
        return []
    (tags,) = {volume.separated_by for volume in found}
    words = " and ".join(tags)
    if OF_ACQUISITION.issuperset(tags):
        if even and plane[0].modality == "MR":
            return [Volumes(tuple(plane), warning="" if _numbered_along(plane) else TAKEN_IN_TURNS)]
        known = all(len(volume.slices) >= FEWEST_IN_PASS for volume in found)
        numbers = [sorted(part.number or 0 for part in volume.slices) for volume in found]
        apart = all(one[-1] < other[0] for one, other in pairwise(sorted(numbers)))
    else:
        known = apart = all(_tags(part).get(tag) is not None for part in plane for tag in tags)
    if known and apart:
        return found
    return [_unclear(plane, f"{len(found)} that interleave, by {words}")]


def _one_behind_another(plane: Sequence[SliceHeader]) -> list[Volumes]:
    """Scans that follow each other along one line and differ in what slices of one volume never differ in."""
    tags = [_tags(part) for part in plane]
    for tag in OF_ONE_VOLUME:
        values = [own[tag] for own in tags if tag in own]
        if len(values) == len(plane) and not _about_equal(values):
            parts = [tuple(p for p, v in zip(plane, values) if v == value) for value in dict.fromkeys(values)]
            if all(len(part) >= FEWEST and is_even(part) for part in parts):
                return [Volumes(part, separated_by=(tag,)) for part in parts]
            return [_unclear(plane, f"slices with several values of {tag}")]
    return []


def _about_equal(values: Sequence[object]) -> bool:
    """Whether values are one text, or numbers that differ by rounding."""
    try:
        numbers = [float(str(value)) for value in values]
    except ValueError:
        return len(set(values)) == 1
    return max(numbers) - min(numbers) <= ROUNDING * max(map(abs, numbers))


def _by_number(plane: Sequence[SliceHeader], even: bool, nameless: bool) -> list[Volumes]:
    """Scans that only their image numbers, or these and their folders, show; none if the numbers are of one volume."""
    numbers = [part.number for part in plane if part.number is not None]
    often = Counter(numbers)
    folders = len({part.path.parent for part in plane})
    if len(often) > 1 and sum(count for count in often.values() if count > 1) * 2 >= len(plane):
        return (not even and _by_folder(plane)) or [_unclear(plane, "image numbers that begin anew")]
    if nameless and folders > 1 and even and not _numbered_along(plane):
        return [_unclear(plane, f"slices in {folders} folders and neither a SeriesInstanceUID nor numbers in a row")]
    if even and len(numbers) == len(plane) and (passes := _passes_by_number(numbers)):
        if plane[0].modality == "MR":
            return [Volumes(tuple(plane), warning=TAKEN_IN_TURNS)]
        return [_unclear(plane, f"{passes} that interleave, by their image numbers")]
    return []


def _numbered_along(plane: Sequence[SliceHeader]) -> bool:
    """Whether image numbers grow, or fall, from slice to slice in the order of places."""
    numbers = [part.number for part in plane]
    steps = {b > a for a, b in pairwise(numbers) if a is not None and b is not None and a != b}
    return None not in numbers and len(set(numbers)) == len(numbers) and len(steps) == 1


def _passes_by_number(numbers: Sequence[int]) -> int:
    """How many sweeps of numbers take turns from slice to slice; 0 if there is one."""
    for passes in range(2, min(MOST_PASSES, len(numbers) // FEWEST_IN_PASS) + 1):
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
    if len(parts) < 2 or not all(len(part) >= FEWEST and is_even(part) for part in parts):
        return []
    sets = [{part.number for part in own if part.number is not None} for own in parts]
    numbered = all(len(own) == len(part) for own, part in zip(sets, parts))
    begin_anew = numbered and all(2 * len(a & b) >= min(len(a), len(b)) for a, b in combinations(sets, 2))
    in_blocks = numbered and all(max(a) < min(b) for a, b in pairwise(sorted(sets, key=min)))
    unnumbered = all(len(own) < 2 for own in sets)
    if not (begin_anew or (at_one_place and (in_blocks or unnumbered))):
        return []
    return [Volumes(tuple(part), separated_by=("folder",)) for part in parts]


def _by_frame_of_reference(plane: Sequence[SliceHeader], even: bool) -> list[Volumes]:
    """One volume, whatever frames of reference its slices name if they are even; else one for each frame."""
    frames: dict[str, list[SliceHeader]] = {}
    for part in plane:
        frames.setdefault(part.identity.frame_of_reference, []).append(part)
    if len(frames.keys() - {""}) < 2:
        return [Volumes(tuple(plane))]
    if even:
        warning = f"its slices name {len(frames)} frames of reference, but are one even stack: read as one volume"
        return [Volumes(tuple(plane), warning=warning)]
    apart = not any(overlap(one, other) for one, other in combinations(frames.values(), 2))
    if apart and all(len(part) >= FEWEST and is_even(part) for part in frames.values()):
        return [Volumes(tuple(part), separated_by=("FrameOfReferenceUID",)) for part in frames.values()]
    return [Volumes(tuple(plane))]


def _unclear(plane: Sequence[SliceHeader], what: str) -> Volumes:
    refused = f"expected the slices of one scan, got {what}: keep those of one scan, or correct the headers"
    return Volumes(tuple(plane), refused=refused)
