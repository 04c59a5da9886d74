# SPDX-License-Identifier: Apache-2.0
"""What one volume on disk is, before its voxels are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

# Words for kinds of refusals, by which a run knows which ones are usual.
REFUSED_KINDS = (
    "single-slice", "several-volumes", "missing-slices", "uneven-slices", "no-geometry", "gantry-tilt", "mixed",
    "unclear", "damaged", "too-small", "too-large", "range", "label-map", "colour", "voxel-type", "channels",
    "constant", "not-finite", "units", "format", "incomplete", "transforms", "unread", "memory",
)  # fmt: skip


class RefusedScan(ValueError):
    """A scan that cannot be read rightly; the message says what was expected, what came, and what to do.

    Args:
        message: the sentence.
        may_pass: whether the reason may be gone when the same is tried again, such as a lack of memory.
        kind: a short word for the kind of reason, such as ``"single-slice"``; empty if it has none.
    """

    def __init__(self, message: str = "", *, may_pass: bool = False, kind: str = "") -> None:
        super().__init__(message)
        self.may_pass = may_pass
        self.kind = kind


def get_refused_kind(error: BaseException, other: str = "damaged") -> str:
    """Return the kind of whatever kept a scan from being read; ``other`` if nothing tells."""
    if isinstance(error, RefusedScan) and error.kind:
        return error.kind
    if isinstance(error, MemoryError):
        return "memory"
    return "unread" if isinstance(error, OSError) and error.errno is not None else other


@dataclass(frozen=True)
class Scan:
    """One volume on disk: a NIfTI file, or the files of one DICOM stack.

    Args:
        name: its case's name: the path below the folder that was searched, and for DICOM which stack of it.
        files: the NIfTI file, or the DICOM files in the order of their slices.
        format: ``"NIfTI"`` or ``"DICOM"``.
        shape: voxels along (i, j, k), and volumes if there are several; empty where it could not be told.
        spacing_mm: distance of neighbouring voxels along (i, j, k).
        orientation: the anatomical directions in which i, j, k grow, such as ``"LPS"``.
        modality: ``"CT"``, ``"MR"`` ...; of DICOM only.
        series_uid: SeriesInstanceUID; of DICOM only.
        stack: eight characters that stand for its slices among those of its files; of DICOM only.
        warnings: what is odd about it and does not keep it from being read.
        refused: why it cannot be read rightly; empty if it can, as far as its header tells.
        refused_kind: the kind of that reason, a short word; empty if it has none.
    """

    name: str
    files: tuple[Path, ...]
    format: str
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    orientation: str = ""
    modality: str = ""
    series_uid: str = ""
    stack: str = ""
    warnings: tuple[str, ...] = ()
    refused: str = ""
    refused_kind: str = ""


@dataclass(frozen=True)
class SkippedFile:
    """A file that is no volume to be predicted, and why: a report, a text, a picture, a link that leads away.

    Args:
        path: the file.
        reason: why it is none.
        unread: whether it may be part of a scan all the same, for what it holds cannot be told.
        may_pass: whether the reason may be gone when it is read again.
        series_uid: SeriesInstanceUID of a DICOM image plane; empty if it is none, or unknown.
    """

    path: Path
    reason: str
    unread: bool = False
    may_pass: bool = False
    series_uid: str = ""


def check_volume(volume: int | None) -> None:
    """Raise ValueError unless it may be the number of a volume among several, from 0, or None."""
    if volume is not None and (not isinstance(volume, int) or isinstance(volume, bool) or volume < 0):
        raise ValueError(f"expected volume to be a whole number from 0, got {volume!r}: give the one to be read")


def choose_volume(volume: int | None, shape: tuple[int, ...]) -> int:
    """Which of the volumes of a scan of this shape, (i, j, k) or (i, j, k, volumes), is to be read.

    Raises:
        RefusedScan: there are several and none is chosen, or the chosen one is not there.
    """
    count = math.prod(shape[3:])
    if volume is None and count > 1:
        raise RefusedScan(
            f"expected one volume, got {count} (shape {shape}): choose one with --volume K (volume=K in Python), "
            f"from 0 to {count - 1}",
            kind="several-volumes",
        )
    if volume is not None and volume >= count:
        raise RefusedScan(
            f"expected volume to be from 0 to {count - 1}, got {volume}: choose one that is there",
            kind="several-volumes",
        )
    return volume or 0
