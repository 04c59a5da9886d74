# SPDX-License-Identifier: Apache-2.0
"""What headers of slices say of how they were made, and the ways in which it separates them into volumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from monai_llmboost.data.scans.dicom.slices import SliceHeader

# So many tags at most are taken together to separate volumes of a series, such as echo and time.
MOST_TAGS = 3
# What differs where slices are taken at different times; slices of one MR volume are often taken in turns.
OF_ACQUISITION = frozenset((
    "AcquisitionNumber", "FrameAcquisitionNumber", "TriggerTime", "NominalCardiacTriggerDelayTime",
    "AcquisitionTime", "AcquisitionDateTime", "FrameAcquisitionDateTime", "FrameReferenceDateTime",
    "FrameReferenceTime", "TemporalPositionTimeOffset", "IrradiationEventUID",
))  # fmt: skip
# Numbers that scanners measure or compute for each slice, and of which small differences mean nothing.
MEASURED = frozenset((
    "EchoTime", "EffectiveEchoTime", "InversionTime", "FlipAngle", "KVP", "ReconstructionDiameter",
))  # fmt: skip
# Relative difference of such numbers up to which they are one number.
ROUNDING = 0.02


def list_tags(plane: Sequence[SliceHeader], rounded: bool = False) -> list[dict[str, object]]:
    """The tags of each slice that may set volumes apart, by keyword; of what is there.

    Args:
        plane: the slices.
        rounded: whether measured numbers that differ by rounding are made one.
    """
    tags: list[dict[str, object]] = []
    for part in plane:
        frame = part.identity.frame_of_reference
        tags.append({**({"FrameOfReferenceUID": frame} if frame else {}), **dict(part.discriminating)})
    for keyword in MEASURED if rounded else ():
        values = {own[keyword] for own in tags if keyword in own}
        if len(values) > 1:
            one = _rounded(values)
            for own in tags:
                if keyword in own:
                    own[keyword] = one[own[keyword]]
    return tags


def _rounded(values: set[object]) -> dict[object, object]:
    """Each value, and the first of those from which it differs by rounding."""
    try:
        numbers = sorted((float(str(value)), value) for value in values)
    except ValueError:
        return {value: value for value in values}
    one: dict[object, object] = {}
    before, first = numbers[0]
    for number, value in numbers:
        if number - before > ROUNDING * max(abs(number), abs(before)):
            first = value
        one[value] = first
        before = number
    return one


def find_separations(
    plane: Sequence[SliceHeader],
    ignored: frozenset[str],
    fewest: int,
    at: np.ndarray | None = None,
) -> Iterator[tuple[tuple[str, ...], list[np.ndarray]]]:
    """The ways in which tags separate slices into parts, by fewest tags first, then by fewest parts.

    Measured numbers that differ by rounding are one; each is its own only where slices have one place and nothing else
    separates them.

    Args:
        plane: the slices.
        ignored: tags that are not to be used.
        fewest: slices in each part.
        at: number of the place of each slice, if no two slices of a part may have one place.

    Yields:
        The tags, and the indices of the slices of each part.
    """
    rounded, exact = list_tags(plane, rounded=True), list_tags(plane)
    found = False
    for tags in (rounded, exact) if at is not None and rounded != exact else (rounded,):
        for split in _separations(tags, ignored, fewest, at):
            found = True
            yield split
        if found:
            return


def _separations(
    tags: Sequence[dict[str, object]], ignored: frozenset[str], fewest: int, at: np.ndarray | None
) -> Iterator[tuple[tuple[str, ...], list[np.ndarray]]]:
    codes: dict[str, np.ndarray] = {}
    for keyword in dict.fromkeys(keyword for own in tags for keyword in own):
        of_value: dict[object, int] = {}
        code = np.array([of_value.setdefault(own.get(keyword), len(of_value)) for own in tags])
        if keyword not in ignored and 1 < len(of_value) <= len(tags) // fewest:
            codes[keyword] = code
    for count in range(1, MOST_TAGS + 1):
        found = []
        for chosen in combinations(codes, count):
            part = np.zeros(len(tags), int)
            for keyword in chosen:
                part = np.unique(part * len(tags) + codes[keyword], return_inverse=True)[1]
            sizes = np.bincount(part)
            if sizes.min() < fewest:
                continue
            if at is not None and len(np.unique(part * (at.max() + 1) + at)) < len(tags):
                continue
            found.append((chosen, part, len(sizes)))
        for chosen, part, parts in sorted(found, key=lambda split: split[2]):
            yield chosen, [np.flatnonzero(part == number) for number in range(parts)]
