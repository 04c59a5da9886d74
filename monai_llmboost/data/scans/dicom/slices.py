# SPDX-License-Identifier: Apache-2.0
"""Header of one slice: its patient and series, geometry, scaling, and tags that may separate volumes."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydicom import Dataset

from monai_llmboost.data.scans.dicom.plain import PlainPixels
from monai_llmboost.data.scans.dicom.values import (
    find_number_problem,
    get_photometric,
    get_rounding,
    get_value,
    is_unreadable,
    read_value,
    to_number,
    to_numbers,
    to_plain,
    to_uid,
    to_whole,
)

# Tags that may separate volumes of one series at the same positions, in order of specificity.
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
# The same in the functional groups of enhanced multi-frame files: sequence, attribute.
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
# Dimension pointers that number the slices of one volume: InStackPositionNumber, ImagePositionPatient,
# PlanePositionSequence.
SLICE_DIMENSIONS = {0x00209057, 0x00200032, 0x00209113}
MODALITY = re.compile(r"[A-Z]{2,10}")
# Random key of this process, so that digests of names can be compared only within it.
SECRET = secrets.token_bytes(16)


@dataclass(frozen=True)
class Identity:
    """Patient, study and series of a slice; each is empty if absent.

    Args:
        patient_id: keyed digest of PatientID, with a new key in each process; the ID itself is never kept.
        patient_name: the same for PatientName.
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
    """Header of one slice: a file, a frame of it, or a tile of a mosaic; positions in mm, in the patient's LPS frame.

    Args:
        path: the file.
        frame: index of the frame or tile in the file.
        frames: number of frames or tiles in the file.
        identity: its patient, study and series.
        sop_uid: SOPInstanceUID; empty if absent.
        instance_number: InstanceNumber; None if absent, or if the file has several frames.
        modality: ``"CT"``, ``"MR"`` ...
        rows: voxels along y of the image.
        columns: voxels along x of the image.
        position: centre of the first voxel (x, y, z); None if absent.
        rounding_mm: half a unit of the last written digit of each coordinate of ``position``; 0 if exact.
        orientation: direction of x, then of y of the image; None if absent.
        pixel_spacing: distance of rows, then of columns, in mm.
        slope: value = slope * stored value + intercept; None if the header has neither.
        intercept: see ``slope``.
        units: units of the values, empty if absent.
        bits_stored: bits of a stored value.
        signed: whether stored values are signed.
        inverted: whether low values are displayed bright (MONOCHROME1).
        padding: lowest and highest stored value of padding outside the image; None if there is none.
        corner: first row and column of a tile in its mosaic; None if the slice is not a tile.
        discriminating: present tags that may separate volumes: (keyword, value), in order of specificity.
        problem: why the values or the geometry cannot be trusted; empty if they can.
        plain: place of the file's values if they need no decoder; None if they do.
    """

    path: Path
    frame: int
    frames: int
    identity: Identity
    sop_uid: str
    instance_number: int | None
    modality: str
    rows: int
    columns: int
    position: tuple[float, ...] | None
    rounding_mm: tuple[float, ...]
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
    plain: PlainPixels | None = field(default=None, compare=False)

    @property
    def series_uid(self) -> str:
        """Return SeriesInstanceUID; empty if absent."""
        return self.identity.series_uid

    @property
    def has_size(self) -> bool:
        """Return whether the header has the size of the image."""
        return self.rows > 0

    @property
    def is_placed(self) -> bool:
        """Return whether position, orientation and pixel spacing are all present."""
        return self.position is not None and self.orientation is not None and self.pixel_spacing is not None


def read_slice(
    path: Path, data: Dataset, frame: int, frames: int, problem: str, plain: PlainPixels | None = None
) -> SliceHeader:
    """Return the header of one frame of a file; ``problem`` and ``plain`` are those of the whole file."""
    groups = list(_iterate_functional_groups(data, frame))
    written, orientation, spacing = (
        _find_value(data, groups, sequence, keyword) for sequence, keyword in zip(GEOMETRY_OF_FRAMES, GEOMETRY)
    )
    scaling = [_find_value(data, groups, "PixelValueTransformationSequence", keyword) for keyword in SCALING]
    problem = problem or _find_numbers_problem(data, (written, orientation, spacing, *scaling))
    position = to_numbers(written, 3)
    slope, intercept = map(to_number, scaling)
    problem = problem or _find_scaling_problem(slope, intercept)
    return SliceHeader(
        path=path,
        frame=frame,
        frames=frames,
        identity=_read_identity(data),
        sop_uid=to_uid(get_value(data, "SOPInstanceUID")),
        instance_number=to_whole(get_value(data, "InstanceNumber")) if frames == 1 else None,
        modality=modality if MODALITY.fullmatch(modality := str(get_value(data, "Modality") or "")) else "",
        rows=int(read_value(data, "Rows")),
        columns=int(read_value(data, "Columns")),
        position=position,
        rounding_mm=(0.0, 0.0, 0.0) if position is None else tuple(get_rounding(number) for number in written),
        orientation=to_numbers(orientation, 6),
        pixel_spacing=to_numbers(spacing, 2),
        slope=slope,
        intercept=intercept,
        units=tuple(str(get_value(data, keyword) or "").strip() for keyword in UNITS),
        bits_stored=int(read_value(data, "BitsStored") or read_value(data, "BitsAllocated")),
        signed=bool(read_value(data, "PixelRepresentation")),
        inverted=get_photometric(data) == "MONOCHROME1",
        padding=_read_padding(data),
        corner=None,
        discriminating=tuple({key: value for key, value in _iterate_discriminating(data, groups) if value}.items()),
        problem=problem,
        plain=plain,
    )


def _find_value(data: Dataset, groups: list[Dataset], sequence: str, keyword: str) -> Any:
    """Return an attribute of this frame, of all frames, or of the file."""
    for group in groups:
        for item in group.get(sequence) or []:
            if item.get(keyword) not in (None, ""):
                return item.get(keyword)
    return get_value(data, keyword)


def _find_numbers_problem(data: Dataset, numbers: tuple[Any, ...]) -> str:
    """Return the first problem with the numbers of the geometry and the scaling; empty if there is none."""
    for keyword, number in zip((*GEOMETRY, *SCALING), numbers):
        found = b"" if number is None and is_unreadable(data, keyword) else number
        if problem := find_number_problem(keyword, found, one=keyword in SCALING):
            return problem
    return ""


def _find_scaling_problem(slope: float | None, intercept: float | None) -> str:
    """Return why values cannot be computed with a slope and an intercept; empty if they can."""
    if not all(number is None or math.isfinite(number) for number in (slope, intercept)) or slope == 0:
        return "expected a finite slope and intercept, got others: export it again"
    if (slope is None) != (intercept is None):
        return "expected RescaleSlope and RescaleIntercept, got one of them: export it again"
    return ""


def read_slice_without_size(path: Path, data: Dataset, problem: str) -> SliceHeader:
    """Return the header of an image without a size, so that its series is known to lack an image."""
    size = Dataset()
    size.update(data)
    size.Rows = size.Columns = 0
    size.BitsAllocated = 16
    size.PhotometricInterpretation = "MONOCHROME2"
    return read_slice(path, size, 0, 1, problem)


def _read_identity(data: Dataset) -> Identity:
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


def _read_padding(data: Dataset) -> tuple[int, int] | None:
    first, last = (to_whole(get_value(data, keyword)) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if first is None:
        return None
    bits = read_value(data, "BitsAllocated")
    bounds = [first, first if last is None else last]
    if read_value(data, "PixelRepresentation"):  # some writers still write it as an unsigned number
        bounds = [n - (1 << bits) if n >= 1 << (bits - 1) else n for n in bounds]
    return min(bounds), max(bounds)


def _iterate_functional_groups(data: Dataset, frame: int) -> Iterator[Dataset]:
    if per_frame := get_value(data, "PerFrameFunctionalGroupsSequence"):
        yield per_frame[frame]
    yield from get_value(data, "SharedFunctionalGroupsSequence") or []


def _iterate_discriminating(data: Dataset, groups: list[Dataset]) -> Iterator[tuple[str, Any]]:
    if groups:
        yield from _iterate_discriminating_of_frames(data, groups)
    for keyword in DISCRIMINATING:
        yield keyword, to_plain(get_value(data, keyword))


def _iterate_discriminating_of_frames(data: Dataset, groups: list[Dataset]) -> Iterator[tuple[str, Any]]:
    """Yield the tags of a frame in the functional groups that may separate volumes."""
    yield "DimensionIndexValues", _list_dimension_indices(data, groups)
    for sequence, keyword in DISCRIMINATING_OF_FRAMES:
        yield keyword, to_plain(_find_value(data, groups, sequence, keyword))
    directions = [item for group in groups for part in group.get("MRDiffusionSequence") or []
                  for item in part.get("DiffusionGradientDirectionSequence") or []]  # fmt: skip
    if directions:
        yield "DiffusionGradientOrientation", to_plain(directions[0].get("DiffusionGradientOrientation"))


def _list_dimension_indices(data: Dataset, groups: list[Dataset]) -> tuple[Any, ...]:
    """Return the indices of a frame in the dimensions that separate volumes; empty if they are not described."""
    content = next((item for group in groups for item in group.get("FrameContentSequence") or []), Dataset())
    pointers = [int(item.get("DimensionIndexPointer") or 0) for item in data.get("DimensionIndexSequence") or []]
    indices = content.get("DimensionIndexValues")
    indices = [] if indices is None else [indices] if isinstance(indices, int) else list(indices)
    if not pointers or len(indices) != len(pointers):
        return ()
    return tuple(i for i, p in zip(indices, pointers) if p not in SLICE_DIMENSIONS)
