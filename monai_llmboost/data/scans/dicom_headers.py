# SPDX-License-Identifier: Apache-2.0
"""DICOM files as slices: what the header says of every image, and why a file is no image to be predicted."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.uid import (
    RE_VALID_UID,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    UID_dictionary,
)

from monai_llmboost.data.scans.scan import SkippedFile

# Made from scans and not scans themselves, though they hold pixels in planes.
DERIVED = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
}
DICOMDIR = "1.2.840.10008.1.3.10"
DEFLATED = "1.2.840.10008.1.2.1.99"
# What tells volumes of one series apart, where they lie at the same place; the most telling ones first.
TELLING = (
    "EchoTime",
    "EchoNumbers",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "TriggerTime",
    "NominalPercentageOfCardiacPhase",
    "InversionTime",
    "FlipAngle",
    "ImageType",
    "AcquisitionNumber",
)
# The same in the functional groups of an enhanced multi-frame file: sequence, attribute.
TELLING_OF_FRAMES = (
    ("MREchoSequence", "EffectiveEchoTime"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("FrameContentSequence", "StackID"),
    ("FrameContentSequence", "FrameAcquisitionNumber"),
)
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
GEOMETRY_OF_FRAMES = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
# Dimensions along which the slices of one volume are numbered.
ALONG_THE_STACK = {0x00209057, 0x00200032, 0x00209113}
IMAGE = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "NumberOfFrames",
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionIndexSequence",
)  # fmt: skip
MODALITY = re.compile(r"[A-Z]{2,10}")
LONGEST_UID = 64
# Value representations of the first elements of a file.
FIRST_VRS = (b"UL", b"UI", b"CS", b"OB", b"SH", b"DA", b"TM")
LARGEST_FIRST_VALUE = 1 << 10


@dataclass(frozen=True)
class SliceHeader:
    """One image plane: a file, or one frame of it; positions and directions in the patient's frame (LPS), in mm.

    Args:
        path: the file.
        frame: number of the frame in the file, from 0.
        frames: frames in the file.
        series_uid: SeriesInstanceUID, and ``sop_uid``: SOPInstanceUID; empty if absent.
        frame_of_reference: FrameOfReferenceUID; empty if absent.
        modality: ``"CT"``, ``"MR"`` ...
        rows: voxels along y of the image, and ``columns``: along x.
        position: centre of the first voxel (x, y, z); None if absent.
        orientation: direction of x, then of y of the image; None if absent.
        pixel_spacing: distance of rows, then of columns.
        slope: stored value to value, with ``intercept``.
        inverted: whether low values are meant to be bright (MONOCHROME1).
        telling: what may tell volumes of a series apart, of what is there: (keyword, value), the most telling first.
        problem: why its values or its place cannot be trusted; empty if they can.
    """

    path: Path
    frame: int
    frames: int
    series_uid: str
    sop_uid: str
    frame_of_reference: str
    modality: str
    rows: int
    columns: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    slope: float
    intercept: float
    inverted: bool
    telling: tuple[tuple[str, Any], ...]
    problem: str


def looks_like_dicom(path: Path) -> bool:
    """Whether the content begins as DICOM does: with its mark, or, as older files do, with a first element."""
    with Path(path).open("rb") as file:
        return _begins_as_dicom(file.read(132))


def _begins_as_dicom(head: bytes) -> bool:
    if head[128:132] == b"DICM":
        return True
    if len(head) < 132 or head[:2] not in (b"\x08\x00", b"\x02\x00") or head[3] != 0:
        return False
    implicit = int.from_bytes(head[4:8], "little") <= LARGEST_FIRST_VALUE
    return head[4:6] in FIRST_VRS or implicit


@contextmanager
def quiet() -> Iterator[None]:
    """Without pydicom's warnings and log entries, which quote values; those that matter here are checked."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def read_header(path: Path) -> tuple[SliceHeader, ...] | SkippedFile:
    """The slices of a DICOM file, one for each frame, or why it holds none that could be part of a scan.

    No tag that could name a patient is read. Never raises over what the file holds.
    """
    path = Path(path)
    try:
        with quiet():
            return _read(path)
    except OSError as error:
        return SkippedFile(path, f"expected a DICOM file, it cannot be read: {error.strerror or 'cut short'}")
    except Exception as error:  # whatever a damaged file leads to; its text may quote the patient's tags
        return SkippedFile(path, f"expected a DICOM file, it is damaged ({type(error).__name__})")


def _read(path: Path) -> tuple[SliceHeader, ...] | SkippedFile:
    with path.open("rb") as file:
        head = file.read(1 << 10)
        if not _begins_as_dicom(head):
            return SkippedFile(path, "expected a DICOM file, its content does not begin as one")
        # Unpacking the whole file for its header is an invitation to fill the memory.
        if DEFLATED.encode() in head:
            return SkippedFile(path, "expected a file that is not deflated as a whole: save it in another syntax")
        file.seek(0)
        tags: list[Any] = [*IMAGE, *GEOMETRY, *TELLING]
        data = dcmread(file, stop_before_pixels=True, force=True, specific_tags=tags)
        before_pixels = 8 if data.original_encoding[0] else 12  # tag and length, and in explicit syntaxes the type
        rest = path.stat().st_size - file.tell() - before_pixels
    sop_class = _uid(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID"))
    if sop_class == DICOMDIR:
        return SkippedFile(path, "a DICOMDIR: files are found by looking at them, not by this list")
    if sop_class in DERIVED:
        return SkippedFile(path, f"expected a scan, got {DERIVED[sop_class]}")
    if not all(data.get(keyword) for keyword in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")):
        kind = UID_dictionary[sop_class][0] if sop_class in UID_dictionary else "of no known kind"
        return SkippedFile(path, f"expected an image, got another DICOM object ({kind})")
    photometric = str(data.PhotometricInterpretation)
    if int(data.get("SamplesPerPixel") or 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return SkippedFile(path, "expected one grey value per voxel, got colours")
    if data.BitsAllocated not in (8, 16):
        return SkippedFile(path, f"expected 8 or 16 bits per voxel, got {data.BitsAllocated}")
    frames = int(data.get("NumberOfFrames") or 1)
    described = len(data.get("PerFrameFunctionalGroupsSequence") or [])
    needed = frames * data.Rows * data.Columns * data.BitsAllocated // 8
    problem = _problem(data)
    if described != frames and (described or frames != 1):
        problem = f"expected the place of each of {frames} frames, got {described}: export it as enhanced or as slices"
    if not transfer_syntax(data).is_encapsulated and rest < needed:
        problem = f"expected {needed} bytes of pixels, got at most {rest}: the file is cut short, copy it again"
    # Of frames that are not described there is nothing to tell, and their number may be anything.
    return tuple(_slice(path, data, frame, frames, photometric, problem) for frame in range(described or 1))


def transfer_syntax(data: Dataset) -> UID:
    """How a file is written; what old files without a preamble do not name is how they were read."""
    implicit, little = data.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return data.file_meta.get("TransferSyntaxUID") or (ImplicitVRLittleEndian if implicit else explicit)


def _problem(data: Dataset) -> str:
    if data.get("ModalityLUTSequence"):
        return "expected values with slope and intercept, got a table of values: save it without"
    stored, high = data.get("BitsStored", data.BitsAllocated), data.get("HighBit")
    if not 0 < stored <= data.BitsAllocated or (high is not None and high != stored - 1):
        return f"expected values in the lowest bits, got {stored} bits up to bit {high}: save it in another syntax"
    return ""


def _slice(path: Path, data: Dataset, frame: int, frames: int, photometric: str, problem: str) -> SliceHeader:
    groups = list(_functional_groups(data, frame))

    def of(sequence: str, keyword: str) -> Any:
        """An attribute of this frame, of all frames, or of the file."""
        for group in groups:
            for item in group.get(sequence) or []:
                if item.get(keyword) not in (None, ""):
                    return item.get(keyword)
        return data.get(keyword)

    position, orientation, spacing = (
        _numbers(of(sequence, keyword), count)
        for sequence, keyword, count in zip(GEOMETRY_OF_FRAMES, GEOMETRY, (3, 6, 2))
    )
    slope = _number(of("PixelValueTransformationSequence", "RescaleSlope"), 1.0)
    intercept = _number(of("PixelValueTransformationSequence", "RescaleIntercept"), 0.0)
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        problem = problem or "expected a finite slope and intercept, got others: export it again"
    return SliceHeader(
        path=path,
        frame=frame,
        frames=frames,
        series_uid=_uid(data.get("SeriesInstanceUID")),
        sop_uid=_uid(data.get("SOPInstanceUID")),
        frame_of_reference=_uid(data.get("FrameOfReferenceUID")),
        modality=modality if MODALITY.fullmatch(modality := str(data.get("Modality") or "")) else "",
        rows=int(data.Rows),
        columns=int(data.Columns),
        position=position,
        orientation=orientation,
        pixel_spacing=spacing,
        slope=slope,
        intercept=intercept,
        inverted=photometric == "MONOCHROME1",
        telling=tuple({keyword: value for keyword, value in _telling(data, groups, of) if value}.items()),
        problem=problem,
    )


def _functional_groups(data: Dataset, frame: int) -> Iterator[Dataset]:
    if data.get("PerFrameFunctionalGroupsSequence"):
        yield data.PerFrameFunctionalGroupsSequence[frame]
    yield from data.get("SharedFunctionalGroupsSequence") or []


def _telling(data: Dataset, groups: list[Dataset], of: Any) -> Iterator[tuple[str, Any]]:
    content = next((item for group in groups for item in group.get("FrameContentSequence") or []), Dataset())
    pointers = [int(item.get("DimensionIndexPointer") or 0) for item in data.get("DimensionIndexSequence") or []]
    indices = content.get("DimensionIndexValues")
    indices = [] if indices is None else [indices] if isinstance(indices, int) else list(indices)
    if pointers and len(indices) == len(pointers):
        yield "DimensionIndexValues", tuple(i for i, p in zip(indices, pointers) if p not in ALONG_THE_STACK)
    for sequence, keyword in TELLING_OF_FRAMES:
        yield keyword, _plain(of(sequence, keyword))
    directions = [item for group in groups for part in group.get("MRDiffusionSequence") or []
                  for item in part.get("DiffusionGradientDirectionSequence") or []]  # fmt: skip
    if directions:
        yield "DiffusionGradientOrientation", _plain(directions[0].get("DiffusionGradientOrientation"))
    for keyword in TELLING:
        yield keyword, _plain(data.get(keyword))


def _plain(value: Any) -> Any:
    """A value that can be compared and sorted: text, or a tuple of texts."""
    if value is None or isinstance(value, (str, int, float)):
        return "" if value is None else str(value)
    return tuple(str(part) for part in value)


def _uid(value: Any) -> str:
    """A UID, or nothing: where a length is damaged there may be anything, such as the next tags with a name in them."""
    text = str(value or "")
    return text if len(text) <= LONGEST_UID and re.fullmatch(RE_VALID_UID, text) else ""


def _number(value: Any, absent: float) -> float:
    return absent if value in (None, "") else float(value)


def _numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """So many finite numbers, or None."""
    if values in (None, "") or isinstance(values, (int, float, str)) or len(values) != count:
        return None
    numbers = tuple(float(value) for value in values)
    return numbers if all(math.isfinite(number) for number in numbers) else None
