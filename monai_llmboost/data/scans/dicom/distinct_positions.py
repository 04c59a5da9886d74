# SPDX-License-Identifier: Apache-2.0
"""Separation of the slices of one plane into volumes, if all positions differ: interleaved or consecutive scans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from monai_llmboost.data.scans.dicom.geometry import (
    any_overlap,
    has_missing_slices,
    is_evenly_spaced,
    is_numbered_in_order,
    number_positions,
)
from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.dicom.tags import ACQUISITION_TAGS, find_separations, list_tags
from monai_llmboost.data.scans.dicom.volumes import (
    MIN_SLICES,
    Volumes,
    group_by_folder,
    refuse_unclear,
    separate_by_folder,
)

# Minimum number of slices that show an even spacing, because two are always evenly spaced.
MIN_EVEN_SLICES = 3
# Tags that are not evidence of interleaved scans: counters, and times of writing.
NOT_OF_PASSES = frozenset(("DimensionIndexValues", "StackID", "ContentTime", "FrameOfReferenceUID"))
# Tags that are equal in all slices of one volume.
COMMON_TAGS = ("EchoTime", "EffectiveEchoTime", "EchoNumbers", "ConvolutionKernel")
TAKEN_IN_TURNS = "its slices were taken in turns over the same extent: read as one volume"
IN_DISORDER = "its image numbers do not follow its slices"


def separate_distinct(plane: Sequence[SliceHeader], lacks_uid: bool) -> list[Volumes]:
    """Separate slices of one plane at different positions into volumes.

    Args:
        plane: the slices, in any order.
        lacks_uid: whether they have no SeriesInstanceUID.
    """
    if len(plane) < 2 * MIN_SLICES:
        return [Volumes(tuple(plane))]
    plane = [plane[i] for i in np.argsort(number_positions(plane))]
    even = is_evenly_spaced(plane)
    return (
        _separate_passes(plane, even)
        or _separate_by_common_tags(plane)
        or _refuse_interleaved_files(plane)
        or _separate_by_number(plane, even, lacks_uid)
        or _separate_by_frame_of_reference(plane, even)
    )


def _separate_passes(plane: Sequence[SliceHeader], even: bool) -> list[Volumes]:
    """Separate interleaved scans, each evenly spaced; the result is several volumes, one volume, or a refusal."""
    found = _find_passes(plane, ACQUISITION_TAGS) or _find_passes(plane, frozenset())
    if found is None or not any_overlap(found[1]):
        return []
    tags, stacks = found
    # A tag with more values than each scan has slices numbers slices instead of scans.
    known = min(map(len, stacks)) >= max(MIN_EVEN_SLICES, len(stacks))
    if ACQUISITION_TAGS.issuperset(tags):
        if plane[0].modality == "MR" and even:
            return [_join_passes(plane)]
        if plane[0].modality == "MR" and has_missing_slices(plane):
            return []
        separate = _are_in_blocks(stacks) and bool(plane[0].modality)
    else:
        separate = all(tag in own for own in list_tags(plane) for tag in tags)
    if known and separate:
        return [Volumes(stack, separated_by=tags) for stack in stacks]
    return [refuse_unclear(plane, f"{len(stacks)} that interleave, by {' and '.join(tags)}")]


def _find_passes(
    plane: Sequence[SliceHeader], ignored: frozenset[str]
) -> tuple[tuple[str, ...], list[tuple[SliceHeader, ...]]] | None:
    """Return the first tags that separate evenly spaced stacks, and the stacks; None if no tags do."""
    for tags, groups in find_separations(plane, NOT_OF_PASSES | ignored, MIN_SLICES):
        stacks = [tuple(plane[i] for i in group) for group in groups]
        if all(map(is_evenly_spaced, stacks)):
            return tags, stacks
    return None


def _join_passes(plane: Sequence[SliceHeader]) -> Volumes:
    """Return interleaved scans as one volume, with a warning if numbers or a single file do not show that it is one."""
    known = is_numbered_in_order(plane) or len({header.path for header in plane}) == 1
    return Volumes(tuple(plane), warnings=() if known else (TAKEN_IN_TURNS,))


def _are_in_blocks(stacks: Sequence[Sequence[SliceHeader]]) -> bool:
    """Return whether all instance numbers of one stack come before the numbers of the next stack."""
    numbers = [sorted(header.instance_number or 0 for header in stack) for stack in stacks]
    return all(one[-1] < other[0] for one, other in pairwise(sorted(numbers)))


def _separate_by_common_tags(plane: Sequence[SliceHeader]) -> list[Volumes]:
    """Separate consecutive scans on one line by a tag that is equal in all slices of one volume."""
    tags = list_tags(plane, rounded=True)
    for tag in COMMON_TAGS:
        values = [own[tag] for own in tags if tag in own]
        if len(values) == len(plane) and len(set(values)) > 1:
            groups = [tuple(h for h, v in zip(plane, values) if v == value) for value in dict.fromkeys(values)]
            if all(len(group) >= MIN_EVEN_SLICES and is_evenly_spaced(group) for group in groups):
                return [Volumes(group, separated_by=(tag,)) for group in groups]
            return [refuse_unclear(plane, f"slices with several values of {tag}")]
    return []


def _refuse_interleaved_files(plane: Sequence[SliceHeader]) -> list[Volumes]:
    """Refuse interleaved files of several slices each; return an empty list for consecutive files."""
    files: dict[object, list[SliceHeader]] = {}
    for header in plane:
        files.setdefault(header.path, []).append(header)
    several = [own for own in files.values() if len(own) >= MIN_SLICES]
    if several and any_overlap(several):
        return [refuse_unclear(plane, f"files of several slices that interleave, {len(several)} of them")]
    return []


def _separate_by_number(plane: Sequence[SliceHeader], even: bool, lacks_uid: bool) -> list[Volumes]:
    """Separate scans by InstanceNumber and folders; return an empty list if the numbers fit one volume."""
    numbers = [header.instance_number for header in plane if header.instance_number is not None]
    often = Counter(numbers)
    folders = group_by_folder(plane)
    if len(often) > 1 and sum(count for count in often.values() if count > 1) * 2 >= len(plane):
        return (not even and separate_by_folder(plane)) or [refuse_unclear(plane, "image numbers that start again")]
    if lacks_uid and len(folders) > 1 and even and not is_numbered_in_order(plane):
        return [
            refuse_unclear(plane, f"slices in {len(folders)} folders, no SeriesInstanceUID and no numbers in a row")
        ]
    return _separate_even_by_number(plane, numbers, folders) if even else []


def _separate_even_by_number(
    plane: Sequence[SliceHeader], numbers: Sequence[int], folders: Sequence[list[SliceHeader]]
) -> list[Volumes]:
    """Separate evenly spaced slices by InstanceNumber; return an empty list if numbers and folders fit one volume."""
    numbered = len(numbers) == len(plane)
    even_folders = len(folders) > 1 and all(len(own) >= MIN_EVEN_SLICES and is_evenly_spaced(own) for own in folders)
    if not numbered and even_folders:
        return [refuse_unclear(plane, f"slices in {len(folders)} folders, and no numbers that count them through")]
    if numbered and (passes := _count_passes(numbers)):
        if plane[0].modality == "MR" and not (even_folders and len(folders) == passes):
            return [Volumes(tuple(plane), warnings=(TAKEN_IN_TURNS,))]
        return [refuse_unclear(plane, f"{passes} that interleave, by their image numbers")]
    return []


def _count_passes(numbers: Sequence[int]) -> int:
    """Return the number of interleaved passes by the instance numbers of sorted slices; 0 if there is only one."""
    for passes in range(2, len(numbers) // MIN_EVEN_SLICES + 1):
        groups = sorted(sorted(numbers[start::passes]) for start in range(passes))
        if all(one[-1] < other[0] for one, other in pairwise(groups)):
            return passes
    return 0


def _separate_by_frame_of_reference(plane: Sequence[SliceHeader], even: bool) -> list[Volumes]:
    """Return one volume if slices are evenly spaced or have one frame of reference; else one volume for each frame."""
    frames: dict[str, list[SliceHeader]] = {}
    for header in plane:
        frames.setdefault(header.identity.frame_of_reference, []).append(header)
    several = len(frames.keys() - {""}) > 1
    separate = several and not even and not any_overlap(list(frames.values()))
    if separate and all(len(group) >= MIN_SLICES and is_evenly_spaced(group) for group in frames.values()):
        return [Volumes(tuple(group), separated_by=("FrameOfReferenceUID",)) for group in frames.values()]
    warnings = []
    if several and even:
        warnings.append(
            f"its slices name {len(frames)} frames of reference, but are one even stack: read as one volume"
        )
    numbers = {header.instance_number for header in plane} - {None}
    if plane[0].modality != "MR" and len(numbers) > 1 and not is_numbered_in_order(plane):
        warnings.append(IN_DISORDER)
    return [Volumes(tuple(plane), warnings=tuple(warnings))]
