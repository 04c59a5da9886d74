# SPDX-License-Identifier: Apache-2.0
"""Files that are there twice: found by what they hold, and only where they are of one image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_llmboost.data.scans.dicom.pixels import digest_pixels
from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.scan import SkippedFile

File = tuple[SliceHeader, ...]


def remove_copies(files: Sequence[File]) -> tuple[list[File], dict[Path, Path], list[SkippedFile]]:
    """The files without those that hold what another one holds.

    A copy agrees with another file in its SOPInstanceUID, identity, number, place, tags and values. A damaged file is
    a damaged copy of the one whole file of its series under its SOPInstanceUID, unless it lies at another place.
    Pixels are read only of files that agree in all else, and of each of these once.

    Returns:
        The files that stay, copy -> the file that stays, and both kinds of copies as skipped files.
    """
    whole: dict[tuple, list[File]] = {}
    damaged: list[File] = []
    for file in files:
        if file[0].problem:
            damaged.append(file)
        else:
            whole.setdefault(_key(file), []).append(file)
    kept: list[File] = []
    originals: dict[Path, Path] = {}
    for several in whole.values():
        if len(several) == 1:
            kept += several
            continue
        by_content: dict[str, Path] = {}
        for file in several:
            path = file[0].path
            # One that cannot be unpacked is like no other; the reason comes when it is read.
            original = by_content.setdefault(digest_pixels(path) or str(path), path)
            if original == path:
                kept.append(file)
            else:
                originals[path] = original
    skipped = [SkippedFile(copy, f"a copy of {original.name}") for copy, original in originals.items()]
    named: dict[tuple, list[SliceHeader]] = {}
    for file in kept:
        named.setdefault(_name(file), []).append(file[0])
    for file in damaged:
        same = named.get(_name(file), []) if file[0].sop_uid else []
        if len(same) == 1 and file[0].position in (None, same[0].position):
            skipped.append(SkippedFile(file[0].path, f"a damaged copy of {same[0].path.name}"))
        else:
            kept.append(file)
    return kept, originals, skipped


def _name(file: File) -> tuple:
    """What names an image, as far as a damaged header is to be trusted."""
    return file[0].sop_uid, file[0].series_uid


def _key(file: File) -> tuple:
    """All that must agree before pixels are compared."""
    first = file[0]
    frames = tuple(
        (part.position, part.orientation, part.pixel_spacing, part.slope, part.intercept, part.discriminating)
        for part in file
    )
    return first.sop_uid, first.identity, first.number, first.inverted, first.rows, first.columns, frames
