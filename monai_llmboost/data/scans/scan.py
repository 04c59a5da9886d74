# SPDX-License-Identifier: Apache-2.0
"""Records of scans on disk before their voxels are read, and refusals of scans that cannot be read correctly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_llmboost.arguments import check_whole

# Maximum number of voxels (4 GiB in float32); a header with more is refused before memory is allocated.
MAX_VOXELS = 1 << 30

# Kinds of refusals; users can accept refusals of a kind.
REFUSED_KINDS = (
    "single-slice", "several-volumes", "missing-slices", "uneven-slices", "no-geometry", "gantry-tilt", "mixed",
    "unclear", "damaged", "too-small", "too-large", "range", "label-map", "colour", "voxel-type", "channels",
    "constant", "not-finite", "units", "format", "incomplete", "transforms", "unread", "memory", "crashed",
)  # fmt: skip


class RefusedScan(ValueError):
    """A scan that cannot be read correctly; the message says what was expected, what was found, and what to do.

    Args:
        message: the message.
        may_pass: whether another attempt may succeed, for example after a lack of memory.
        kind: one of ``REFUSED_KINDS``, such as ``"single-slice"``; empty if none fits.

    Example:
        >>> RefusedScan("expected several slices, got one", kind="single-slice").kind
        'single-slice'
    """

    def __init__(self, message: str = "", *, may_pass: bool = False, kind: str = "") -> None:
        super().__init__(message)
        self.may_pass = may_pass
        self.kind = kind


def get_refused_kind(error: BaseException, default: str = "damaged") -> str:
    """Return the kind of a reading error as one of ``REFUSED_KINDS``; ``default`` if the error does not show it."""
    if isinstance(error, RefusedScan) and error.kind:
        return error.kind
    if isinstance(error, MemoryError):
        return "memory"
    return "unread" if isinstance(error, OSError) and error.errno is not None else default


def describe_error(error: Exception) -> str:
    """Return a sentence on why a file cannot be read; errors of the operating system without their number."""
    if isinstance(error, FileNotFoundError) and error.strerror:
        return "expected a file that is there, got none: correct the path"
    if isinstance(error, OSError) and error.strerror:
        return f"expected a file that can be read, got: {error.strerror}: see to its permissions, or copy it again"
    return str(error)


def to_refusal(error: Exception) -> RefusedScan:
    """Return any reading error as a refusal, without its traceback, which would keep memory."""
    if isinstance(error, RefusedScan):
        return error.with_traceback(None)
    if isinstance(error, MemoryError):
        message = "expected a volume that fits the memory, but there is not enough: use a larger machine"
        return RefusedScan(message, may_pass=True, kind="memory")
    by_system = isinstance(error, OSError) and error.errno is not None  # unlike BadGzipFile and the like
    return RefusedScan(describe_error(error) or type(error).__name__, may_pass=by_system, kind=get_refused_kind(error))


@dataclass(frozen=True)
class Scan:
    """One volume on disk: a NIfTI file, or the files of one DICOM stack.

    Args:
        name: name of the case: the path below the searched folder, with the stack's digest if several share the path.
        files: the NIfTI file, or the DICOM files in the order of their slices.
        format: ``"NIfTI"`` or ``"DICOM"``.
        shape: voxels along (i, j, k), and the number of volumes if there are several; empty if unknown.
        spacing_mm: distance between voxels along (i, j, k).
        orientation: anatomical directions of i, j, k, such as ``"LPS"``.
        modality: ``"CT"``, ``"MR"`` ...; DICOM only.
        series_uid: SeriesInstanceUID; DICOM only.
        stack: eight hexadecimal digits that identify the slices of the volume; DICOM only.
        warnings: oddities that do not prevent reading.
        refused: why the scan cannot be read correctly; empty if the header shows no such reason.
        refused_kind: kind of that reason, one of ``REFUSED_KINDS``; empty if there is none.

    Example:
        >>> from pathlib import Path
        >>> Scan("brain.nii.gz", (Path("brain.nii.gz"),), "NIfTI", shape=(181, 217, 181)).refused
        ''
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
    """A file that is not a volume to predict, such as a report, a text, a picture or a link out of the folder.

    Args:
        path: the file.
        reason: why it is skipped.
        unread: whether it may still be part of a scan, because its content is unknown.
        may_pass: whether another attempt may read it.
        series_uid: SeriesInstanceUID of a DICOM image; empty for other files, or if unknown.

    Example:
        >>> from pathlib import Path
        >>> SkippedFile(Path("README.txt"), "a text file").unread
        False
    """

    path: Path
    reason: str
    unread: bool = False
    may_pass: bool = False
    series_uid: str = ""


def check_volume_index(volume: int | None) -> None:
    """Check that ``volume`` is None or the index of a volume, from 0.

    Raises:
        ValueError: ``volume`` is not a whole number from 0.
    """
    if volume is not None:
        check_whole("volume", volume, 0, advice="give the index of the volume to read")


def choose_volume(volume: int | None, shape: tuple[int, ...]) -> int:
    """Return the index of the volume to read from a scan of shape (i, j, k) or (i, j, k, volumes).

    Raises:
        RefusedScan: there are several volumes and none is chosen, or the chosen one does not exist.
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


def check_size(shape: Sequence[int], min_size: Sequence[int]) -> None:
    """Check the voxels of a scan along (i, j, k), which are known from the header.

    Raises:
        RefusedScan: too few voxels.
    """
    if any(size < least for size, least in zip(shape, min_size)):
        raise RefusedScan(
            f"expected at least {' x '.join(map(str, min_size))} voxels, got "
            f"{' x '.join(map(str, shape))}: too small to be predicted, give the whole scan",
            kind="too-small",
        )
