# SPDX-License-Identifier: Apache-2.0
"""Discriminating tags of slices, and the separation of slices into volumes by these tags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.dicom.tolerances import MEASURED_TOLERANCE

# Maximum number of tags that are combined to separate volumes of a series, such as echo and time.
MAX_TAGS = 3
# Tags of the time of acquisition; they also differ within MR volumes that are acquired interleaved.
ACQUISITION_TAGS = frozenset((
    "AcquisitionNumber", "FrameAcquisitionNumber", "TriggerTime", "NominalCardiacTriggerDelayTime",
    "AcquisitionTime", "AcquisitionDateTime", "FrameAcquisitionDateTime", "FrameReferenceDateTime",
    "FrameReferenceTime", "TemporalPositionTimeOffset", "IrradiationEventUID",
))  # fmt: skip
# Values that scanners measure or compute for each slice; small differences have no meaning.
MEASURED_TAGS = frozenset((
    "EchoTime", "EffectiveEchoTime", "InversionTime", "FlipAngle", "KVP", "ReconstructionDiameter",
))  # fmt: skip


def list_tags(plane: Sequence[SliceHeader], rounded: bool = False) -> list[dict[str, object]]:
    """Return the present tags of each slice that may separate volumes, by keyword.

    Args:
        plane: the slices.
        rounded: whether to merge measured values that differ by rounding.
    """
    tags: list[dict[str, object]] = []
    for part in plane:
        frame = part.identity.frame_of_reference
        tags.append({**({"FrameOfReferenceUID": frame} if frame else {}), **dict(part.discriminating)})
    for keyword in MEASURED_TAGS if rounded else ():
        values = {own[keyword] for own in tags if keyword in own}
        if len(values) > 1:
            merged = _merge_rounded(values)
            for own in tags:
                if keyword in own:
                    own[keyword] = merged[own[keyword]]
    return tags


def _merge_rounded(values: set[object]) -> dict[object, object]:
    """Map each value to the smallest value of its group of values that differ by rounding."""
    try:
        numbers = sorted((float(str(value)), value) for value in values)
    except ValueError:
        return {value: value for value in values}
    merged: dict[object, object] = {}
    before, first = numbers[0]
    for number, value in numbers:
        if number - before > MEASURED_TOLERANCE * max(abs(number), abs(before)):
            first = value
        merged[value] = first
        before = number
    return merged


def find_separations(
    plane: Sequence[SliceHeader],
    ignored: frozenset[str],
    fewest: int,
    position_index: np.ndarray | None = None,
) -> Iterator[tuple[tuple[str, ...], list[np.ndarray]]]:
    """Yield the separations of slices into groups by tags, first with the fewest tags, then with the fewest groups.

    Measured values that differ by rounding are merged, unless slices are at the same position and nothing else
    separates them.

    Args:
        plane: the slices.
        ignored: tags that are not used.
        fewest: minimum number of slices in a group.
        position_index: index of each slice's position, if no two slices of a group may share one.

    Yields:
        The tags, and the indices of the slices of each group.
    """
    rounded, exact = list_tags(plane, rounded=True), list_tags(plane)
    found = False
    for tags in (rounded, exact) if position_index is not None and rounded != exact else (rounded,):
        for split in _find_separations(tags, ignored, fewest, position_index):
            found = True
            yield split
        if found:
            return


def _find_separations(
    tags: Sequence[dict[str, object]], ignored: frozenset[str], fewest: int, position_index: np.ndarray | None
) -> Iterator[tuple[tuple[str, ...], list[np.ndarray]]]:
    codes: dict[str, np.ndarray] = {}
    for keyword in dict.fromkeys(keyword for own in tags for keyword in own):
        code_of: dict[object, int] = {}
        code = np.array([code_of.setdefault(own.get(keyword), len(code_of)) for own in tags])
        if keyword not in ignored and 1 < len(code_of) <= len(tags) // fewest:
            codes[keyword] = code
    for count in range(1, MAX_TAGS + 1):
        found = []
        for chosen in combinations(codes, count):
            group = np.zeros(len(tags), int)  # the index of each slice's group
            for keyword in chosen:
                group = np.unique(group * len(tags) + codes[keyword], return_inverse=True)[1]
            sizes = np.bincount(group)
            if sizes.min() < fewest:
                continue
            if position_index is not None:
                keys = group * (position_index.max() + 1) + position_index
                if len(np.unique(keys)) < len(tags):
                    continue
            found.append((chosen, group, len(sizes)))
        for chosen, group, count in sorted(found, key=lambda split: split[2]):
            yield chosen, [np.flatnonzero(group == index) for index in range(count)]
