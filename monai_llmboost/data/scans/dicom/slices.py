# SPDX-License-Identifier: Apache-2.0
"""One image plane of a DICOM file: whom it belongs to, where it lies, what its values mean, what may set it apart."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydicom import Dataset

from monai_llmboost.data.scans.dicom.values import (
    find_number_problem,
    get_photometric,
    get_rounding,
    get_value,
    is_unreadable,
    to_number,
    to_numbers,
    to_plain,
    to_uid,
    to_whole,
)

# What may set volumes of one series apart where they lie at the same place; what does so best comes first.
DISCRIMINATING = (
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
    "ConvolutionKernel",
    "ContrastBolusAgent",
    "KVP",
    "FilterType",
    "ReconstructionDiameter",
    "SequenceName",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "FrameReferenceTime",
    "IrradiationEventUID",
    "ContentTime",
)
# The same in the functional groups of an enhanced multi-frame file: sequence, attribute.
DISCRIMINATING_OF_FRAMES = (
    ("MREchoSequence", "EffectiveEchoTime"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("FrameContentSequence", "StackID"),
    ("FrameContentSequence", "FrameAcquisitionNumber"),
    ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    ("MRModifierSequence", "InversionTimes"),
    ("MRArterialSpinLabelingSequence", "ASLContext"),
    ("MRVelocityEncodingSequence", "VelocityEncodingDirection"),
    ("CTReconstructionSequence", "ConvolutionKernel"),
    ("CTReconstructionSequence", "ReconstructionDiameter"),
    ("CTXRayDetailsSequence", "KVP"),
    ("CTXRayDetailsSequence", "FilterType"),
    ("ContrastBolusUsageSequence", "ContrastBolusAgentPhase"),
    ("TemporalPositionSequence", "TemporalPositionTimeOffset"),
    ("FrameContentSequence", "FrameAcquisitionDateTime"),
    ("FrameContentSequence", "FrameReferenceDateTime"),
)
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
GEOMETRY_OF_FRAMES = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
SCALING = ("RescaleSlope", "RescaleIntercept")
UNITS = ("Units", "RescaleType")
IDENTITY = ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "FrameOfReferenceUID")
# Dimensions along which the slices of one volume are numbered.
ALONG_THE_STACK = {0x00209057, 0x00200032, 0x00209113}
MODALITY = re.compile(r"[A-Z]{2,10}")
# A key of this process: digests of names can be compared here, and nowhere else be looked up.
SECRET = secrets.token_bytes(16)


@dataclass(frozen=True)
class Identity:
    """Whom a slice belongs to; each is empty where the header says nothing.

    Args:
        patient_id: digest of PatientID with a key that is drawn again in each process; the ID itself is never kept.
        patient_name: the same of PatientName.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        series_number: SeriesNumber.
        frame_of_reference: FrameOfReferenceUID.
    """

    patient_id: str = ""
    patient_name: str = ""
    study_uid: str = ""
    series_uid: str = ""
    series_number: str = ""
    frame_of_reference: str = ""


@dataclass(frozen=True)
class SliceHeader:
    """One image plane: a file, one frame of it, or one tile of a mosaic; in the patient's frame (LPS), in mm.

    Args:
        path: the file.
        frame: number of the frame or tile in the file, from 0.
        frames: frames or tiles in the file.
        identity: whom it belongs to.
        sop_uid: SOPInstanceUID; empty if absent.
        number: InstanceNumber; None if absent, or of a file of several frames.
        modality: ``"CT"``, ``"MR"`` ...
        rows: voxels along y of the image, and ``columns``: along x.
        position: centre of the first voxel (x, y, z); None if absent.
        unit: half a unit of the last written digit of each coordinate of ``position``, in mm; 0 where it is exact.
        orientation: direction of x, then of y of the image; None if absent.
        pixel_spacing: distance of rows, then of columns.
        slope: stored value to value, with ``intercept``; None if the header gives neither.
        intercept: see ``slope``.
        units: what values are measured in, as far as the header says so.
        bits_stored: bits of a stored value, and ``signed``: whether it is signed.
        inverted: whether low values are meant to be bright (MONOCHROME1).
        padding: lowest and highest stored value that fills what lies outside of the image; None if there is none.
        corner: of a tile, its first row and column in the stored picture; None if it is the picture.
        discriminating: what may set volumes of a series apart, of what is there: (keyword, value), the best first.
        problem: why its values or its place cannot be trusted; empty if they can.
    """

    path: Path
    frame: int
    frames: int
    identity: Identity
    sop_uid: str
    number: int | None
    modality: str
    rows: int
    columns: int
    position: tuple[float, ...] | None
    unit: tuple[float, ...]
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    slope: float | None
    intercept: float | None
    units: tuple[str, ...]
    bits_stored: int
    signed: bool
    inverted: bool
    padding: tuple[int, int] | None
    corner: tuple[int, int] | None
    discriminating: tuple[tuple[str, Any], ...]
    problem: str

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID; empty if absent."""
        return self.identity.series_uid

    @property
    def has_size(self) -> bool:
        """Whether the header says how large the image is."""
        return self.rows > 0

    @property
    def is_placed(self) -> bool:
        """Whether position, orientation and pixel spacing are all there."""
        return self.position is not None and self.orientation is not None and self.pixel_spacing is not None


def read_slice(path: Path, data: Dataset, frame: int, frames: int, problem: str) -> SliceHeader:
    """One frame of a file; ``problem``: what is wrong with the file as a whole."""
    groups = list(_functional_groups(data, frame))

    def value_of(sequence: str, keyword: str) -> Any:
        """An attribute of this frame, of all frames, or of the file."""
        for group in groups:
            for item in group.get(sequence) or []:
                if item.get(keyword) not in (None, ""):
                    return item.get(keyword)
        return get_value(data, keyword)

    written, orientation, spacing = (
        value_of(sequence, keyword) for sequence, keyword in zip(GEOMETRY_OF_FRAMES, GEOMETRY)
    )
    scaling = [value_of("PixelValueTransformationSequence", keyword) for keyword in SCALING]
    for keyword, number in zip((*GEOMETRY, *SCALING), (written, orientation, spacing, *scaling)):
        found = b"" if number is None and is_unreadable(data, keyword) else number
        problem = problem or find_number_problem(keyword, found, one=keyword in SCALING)
    position = to_numbers(written, 3)
    slope, intercept = map(to_number, scaling)
    if not all(number is None or math.isfinite(number) for number in (slope, intercept)) or slope == 0:
        problem = problem or "expected a finite slope and intercept, got others: export it again"
    if (slope is None) != (intercept is None):
        problem = problem or "expected RescaleSlope and RescaleIntercept, got one of them: export it again"
    return SliceHeader(
        path=path,
        frame=frame,
        frames=frames,
        identity=_identity(data),
        sop_uid=to_uid(get_value(data, "SOPInstanceUID")),
        number=to_whole(get_value(data, "InstanceNumber")) if frames == 1 else None,
        modality=modality if MODALITY.fullmatch(modality := str(get_value(data, "Modality") or "")) else "",
        rows=int(data.Rows),
        columns=int(data.Columns),
        position=position,
        unit=(0.0, 0.0, 0.0) if position is None else tuple(get_rounding(number) for number in written),
        orientation=to_numbers(orientation, 6),
        pixel_spacing=to_numbers(spacing, 2),
        slope=slope,
        intercept=intercept,
        units=tuple(str(get_value(data, keyword) or "").strip() for keyword in UNITS),
        bits_stored=int(data.get("BitsStored") or data.BitsAllocated),
        signed=bool(data.get("PixelRepresentation")),
        inverted=get_photometric(data) == "MONOCHROME1",
        padding=_padding(data),
        corner=None,
        discriminating=tuple({key: value for key, value in _discriminating(data, groups, value_of) if value}.items()),
        problem=problem,
    )


def read_slice_without_size(path: Path, data: Dataset, problem: str) -> SliceHeader:
    """An image whose header does not say how large it is: no slice, but its series lacks it."""
    size = Dataset()
    size.update(data)
    size.Rows = size.Columns = 0
    size.BitsAllocated = 16
    size.PhotometricInterpretation = "MONOCHROME2"
    return read_slice(path, size, 0, 1, problem)


def _identity(data: Dataset) -> Identity:
    def digest(keyword: str) -> str:
        text = str(get_value(data, keyword) or "").strip().rstrip("^").casefold()
        return blake2b(text.encode(errors="replace"), key=SECRET, digest_size=8).hexdigest() if text else ""

    number = to_whole(get_value(data, "SeriesNumber"))
    return Identity(
        patient_id=digest("PatientID"),
        patient_name=digest("PatientName"),
        study_uid=to_uid(get_value(data, "StudyInstanceUID")),
        series_uid=to_uid(get_value(data, "SeriesInstanceUID")),
        series_number="" if number is None else str(number),
        frame_of_reference=to_uid(get_value(data, "FrameOfReferenceUID")),
    )


def _padding(data: Dataset) -> tuple[int, int] | None:
    first, last = (to_whole(get_value(data, keyword)) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if first is None:
        return None
    bits = data.BitsAllocated
    bounds = [first, first if last is None else last]
    if data.get("PixelRepresentation"):  # some writers note it as an unsigned number all the same
        bounds = [n - (1 << bits) if n >= 1 << (bits - 1) else n for n in bounds]
    return min(bounds), max(bounds)


def _functional_groups(data: Dataset, frame: int) -> Iterator[Dataset]:
    if per_frame := get_value(data, "PerFrameFunctionalGroupsSequence"):
        yield per_frame[frame]
    yield from get_value(data, "SharedFunctionalGroupsSequence") or []


def _discriminating(data: Dataset, groups: list[Dataset], value_of: Any) -> Iterator[tuple[str, Any]]:
    if not groups:
        for keyword in DISCRIMINATING:
            yield keyword, to_plain(get_value(data, keyword))
        return
    content = next((item for group in groups for item in group.get("FrameContentSequence") or []), Dataset())
    pointers = [int(item.get("DimensionIndexPointer") or 0) for item in data.get("DimensionIndexSequence") or []]
    indices = content.get("DimensionIndexValues")
    indices = [] if indices is None else [indices] if isinstance(indices, int) else list(indices)
    if pointers and len(indices) == len(pointers):
        yield "DimensionIndexValues", tuple(i for i, p in zip(indices, pointers) if p not in ALONG_THE_STACK)
    for sequence, keyword in DISCRIMINATING_OF_FRAMES:
        yield keyword, to_plain(value_of(sequence, keyword))
    directions = [item for group in groups for part in group.get("MRDiffusionSequence") or []
                  for item in part.get("DiffusionGradientDirectionSequence") or []]  # fmt: skip
    if directions:
        yield "DiffusionGradientOrientation", to_plain(directions[0].get("DiffusionGradientOrientation"))
    for keyword in DISCRIMINATING:
        yield keyword, to_plain(get_value(data, keyword))
