# SPDX-License-Identifier: Apache-2.0
"""One image plane of a DICOM file: where it lies, what its values mean, what tells it from others of its series."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import RE_VALID_UID

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
MODALITY = re.compile(r"[A-Z]{2,10}")
LONGEST_UID = 64


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


def slice_of(path: Path, data: Dataset, frame: int, frames: int, photometric: str, problem: str) -> SliceHeader:
    """One frame of a file; ``problem``: what is wrong with the file as a whole."""
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
        series_uid=uid(data.get("SeriesInstanceUID")),
        sop_uid=uid(data.get("SOPInstanceUID")),
        frame_of_reference=uid(data.get("FrameOfReferenceUID")),
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


def uid(value: Any) -> str:
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
