# SPDX-License-Identifier: Apache-2.0
"""Headers of the slices in DICOM files, and reasons why a file is not an image to predict."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    UID_dictionary,
)

from monai_llmboost.data.scans.dicom.mosaic import GRID_UIH, is_grid, is_mosaic, split_mosaic
from monai_llmboost.data.scans.dicom.pixel_data import find_pixel_data_problem
from monai_llmboost.data.scans.dicom.plain import find_plain_pixels
from monai_llmboost.data.scans.dicom.slices import (
    DISCRIMINATING,
    GEOMETRY,
    IDENTITY,
    SCALING,
    UNITS,
    SliceHeader,
    read_slice,
    read_slice_without_size,
)
from monai_llmboost.data.scans.dicom.values import get_photometric, read_value, to_uid
from monai_llmboost.data.scans.scan import SkippedFile

# Objects derived from scans that contain planes of pixels but are not scans.
DERIVED = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
}
DICOMDIR = "1.2.840.10008.1.3.10"
DEFLATED = "1.2.840.10008.1.2.1.99"
IMAGE = (
    "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Modality", "NumberOfFrames", "Manufacturer",
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DimensionIndexSequence",
)  # fmt: skip
TAGS: list[Any] = [Tag(tag) for tag in (*IMAGE, *IDENTITY, *GEOMETRY, *SCALING, *UNITS, *DISCRIMINATING, GRID_UIH)]
HEAD_BYTES = 1 << 15
PIXEL_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # little-endian, big-endian
# Value representations of the first elements of a file.
FIRST_VRS = (b"UL", b"UI", b"CS", b"OB", b"SH", b"DA", b"TM")
MAX_FIRST_VALUE_BYTES = 1 << 10


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file begins with a DICOM preamble or, in older files, with a first element."""
    with Path(path).open("rb") as file:
        return _begins_as_dicom(file.read(132))


def _begins_as_dicom(head: bytes) -> bool:
    if head[128:132] == b"DICM":
        return True
    if len(head) < 132 or head[:2] not in (b"\x08\x00", b"\x02\x00") or head[3] != 0:
        return False
    implicit = int.from_bytes(head[4:8], "little") <= MAX_FIRST_VALUE_BYTES
    return head[4:6] in FIRST_VRS or implicit


@contextmanager
def silence_pydicom() -> Iterator[None]:
    """Suppress pydicom's warnings and log entries, which quote values; relevant problems are checked separately."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    if level > logging.CRITICAL:  # silenced already, as around many files
        yield
        return
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), disable_value_validation():
            warnings.simplefilter("ignore")
            # An RLE segment that is too long contains the first bytes of the next one: some are missing.
            warnings.filterwarnings("error", "The decoded RLE segment contains non-conformant padding")
            yield
    finally:
        logger.setLevel(level)


def read_header(path: Path) -> tuple[SliceHeader, ...] | SkippedFile:
    """Return the headers of the slices of a DICOM file, one for each frame, or why it has no slices of a scan.

    Only keyed digests of tags that name a patient are kept. No content of a file raises an error.
    """
    path = Path(path)
    try:
        with silence_pydicom():
            return _read(path)
    except OSError as error:
        reason = f"expected a DICOM file, it cannot be read: {error.strerror or 'cut short'}"
        return SkippedFile(path, reason, unread=True, may_pass=bool(error.strerror))
    except Exception as error:  # a damaged file may raise any error; its text may quote tags of the patient
        return SkippedFile(path, f"expected a DICOM file, it is damaged ({type(error).__name__})", True)


def _read(path: Path) -> tuple[SliceHeader, ...] | SkippedFile:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if not _begins_as_dicom(head):
            return SkippedFile(path, "expected a DICOM file, its content does not begin as one")
        # A small deflated file may decompress to more than the memory.
        if DEFLATED.encode() in head[: 1 << 10]:
            reason = "expected a file that is not deflated as a whole: save it in another syntax"
            return SkippedFile(path, reason, unread=True)
        data = _parse(file, head)
        if skipped := _skip_other_object(path, data):
            return skipped
        if absent := _list_absent(data):
            return (
                read_slice_without_size(
                    path, data, f"expected {', '.join(absent)} of an image, got none: it is damaged"
                ),
            )
        frames = int(read_value(data, "NumberOfFrames") or 1)
        described = len(read_value(data, "PerFrameFunctionalGroupsSequence") or [])
        problem = _find_problem(data)
        if described != frames and (described or frames != 1):
            problem = (
                f"expected the place of each of {frames} frames, got {described}: export it as enhanced or as slices"
            )
        syntax = get_transfer_syntax(data)
        problem = find_pixel_data_problem(file, data, syntax, frames) or problem
        plain = None if problem else find_plain_pixels(file, data, syntax)
    # Frames without a description are not listed: their number in a damaged file may be anything.
    slices = tuple(read_slice(path, data, frame, frames, problem, plain) for frame in range(described or 1))
    return split_mosaic(path, slices[0]) if is_mosaic(data) and len(slices) == 1 else slices


def _parse(file: BinaryIO, head: bytes) -> Dataset:
    """Return the header of a file, which is then at its pixel data, or at its end.

    Args:
        file: the file.
        head: its first bytes; most headers end there, and are parsed faster than from the file.
    """
    memory = BytesIO(head)
    with suppress(Exception):  # such as of a value that is cut at the end of these bytes
        data = dcmread(memory, stop_before_pixels=True, force=True, specific_tags=TAGS)
        if head[(end := memory.tell()) :].startswith(PIXEL_TAGS):
            file.seek(end)
            return data
    file.seek(0)
    return dcmread(file, stop_before_pixels=True, force=True, specific_tags=TAGS)


def _skip_other_object(path: Path, data: Dataset) -> SkippedFile | None:
    """Return a DICOM object that cannot be part of a scan as a skipped file with its series; None if it can."""
    sop_class = to_uid(read_value(data, "SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID"))
    skipped = _find_skip_reason(path, data, sop_class)
    if skipped is None:
        return None
    is_plane = read_value(data, "Rows") or read_value(
        data, "ImagePositionPatient"
    )  # unlike a report or a presentation state
    return replace(skipped, series_uid=to_uid(read_value(data, "SeriesInstanceUID")) if is_plane else "")


def _find_skip_reason(path: Path, data: Dataset, sop_class: str) -> SkippedFile | None:
    """Return a DICOM object that cannot be part of a scan as a skipped file with its reason; None if it can."""
    if sop_class == DICOMDIR:
        return SkippedFile(path, "a DICOMDIR: files are found by looking at them, not by this list")
    if sop_class in DERIVED:
        return SkippedFile(path, f"expected a scan, got {DERIVED[sop_class]}")
    if _list_absent(data):
        lost = sop_class not in UID_dictionary and not to_uid(read_value(data, "SeriesInstanceUID"))
        kind = UID_dictionary[sop_class][0] if sop_class in UID_dictionary else "of no known kind"
        if "Image Storage" in kind and to_uid(read_value(data, "SeriesInstanceUID")):
            return None  # it is refused later, and with it the series that lacks this image
        if "Image Storage" in kind:
            reason = f"expected rows, columns and bits of an image ({kind}), got none: it is damaged"
            return SkippedFile(path, reason, unread=True)
        return SkippedFile(path, f"expected an image, got another DICOM object ({kind})", unread=lost)
    if int(read_value(data, "SamplesPerPixel") or 1) != 1 or get_photometric(data) not in (
        "MONOCHROME1",
        "MONOCHROME2",
    ):
        return SkippedFile(path, "expected one grey value per voxel, got colours")
    if (bits := read_value(data, "BitsAllocated")) not in (8, 16):
        return SkippedFile(path, f"expected 8 or 16 bits per voxel, got {bits}")
    return None


def _list_absent(data: Dataset) -> list[str]:
    """Return the keywords that describe an image's size and are absent."""
    keywords = ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
    return [keyword for keyword in keywords if not read_value(data, keyword)]


def get_transfer_syntax(data: Dataset) -> UID:
    """Return the transfer syntax; for old files without a preamble, the syntax in which they were read."""
    implicit, little = data.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return data.file_meta.get("TransferSyntaxUID") or (ImplicitVRLittleEndian if implicit else explicit)


def _find_problem(data: Dataset) -> str:
    """Return why the values of an image cannot be read; empty if they can."""
    if read_value(data, "ModalityLUTSequence"):
        return "expected values with slope and intercept, got a table of values: save it without"
    if read_value(data, "PixelRepresentation") not in (0, 1):
        return "expected PixelRepresentation, signed or unsigned, got none: export it again"
    bits, high = read_value(data, "BitsAllocated"), read_value(data, "HighBit")
    stored = data.get("BitsStored", bits)
    if not 0 < stored <= bits or (high is not None and high != stored - 1):
        return f"expected values in the lowest bits, got {stored} bits up to bit {high}: save it in another syntax"
    if is_grid(data):
        return "expected one slice in each picture, got a grid of slices (UIH): export it as separate slices"
    return ""
