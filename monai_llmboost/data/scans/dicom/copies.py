# SPDX-License-Identifier: Apache-2.0
"""Copies of files, found by their headers and then by their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_llmboost.data.scans.dicom.pixels import digest_pixels
from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.scan import SkippedFile

File = tuple[SliceHeader, ...]


def remove_copies(files: Sequence[File]) -> tuple[list[File], dict[Path, Path], list[SkippedFile]]:
    """Return the files without copies of others.

    A copy agrees with another file in its SOPInstanceUID, identity, InstanceNumber, geometry, tags and values. A
    damaged file is a damaged copy if exactly one whole file of its series has its SOPInstanceUID and the positions do
    not differ. Pixels are read, once, only for files that agree in everything else.

    Returns:
        The remaining files, a map from each copy to its original, and both kinds of copies as skipped files.
    """
    whole: dict[tuple, list[File]] = {}
    damaged: list[File] = []
    for file in files:
        if file[0].problem:
            damaged.append(file)
        else:
            whole.setdefault(_get_key(file), []).append(file)
    kept: list[File] = []
    originals: dict[Path, Path] = {}
    for several in whole.values():
        if len(several) == 1:
            kept += several
            continue
        by_content: dict[str, Path] = {}
        for file in several:
            path = file[0].path
            # A file that cannot be decoded is not a copy; reading it later gives the reason.
            original = by_content.setdefault(digest_pixels(path) or str(path), path)
            if original == path:
                kept.append(file)
            else:
                originals[path] = original
    skipped = [SkippedFile(copy, f"a copy of {original.name}") for copy, original in originals.items()]
    named: dict[tuple, list[SliceHeader]] = {}
    for file in kept:
        named.setdefault(_get_image_key(file), []).append(file[0])
    for file in damaged:
        same = named.get(_get_image_key(file), []) if file[0].sop_uid else []
        if len(same) == 1 and file[0].position in (None, same[0].position):
            skipped.append(SkippedFile(file[0].path, f"a damaged copy of {same[0].path.name}"))
        else:
            kept.append(file)
    return kept, originals, skipped


def _get_image_key(file: File) -> tuple:
    """Return the UIDs that identify an image, which are also valid in a damaged file."""
    return file[0].sop_uid, file[0].series_uid


def _get_key(file: File) -> tuple:
    """Return all header values that must agree before pixels are compared."""
    first = file[0]
    frames = tuple(
        (
            header.position,
            header.orientation,
            header.pixel_spacing,
            header.slope,
            header.intercept,
            header.discriminating,
        )
        for header in file
    )
    return first.sop_uid, first.identity, first.instance_number, first.inverted, first.rows, first.columns, frames
