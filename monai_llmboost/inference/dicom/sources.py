# SPDX-License-Identifier: Apache-2.0
"""The source images of DICOM objects: read without pixels, checked, and adapted to highdicom.

No pixel is read, and no message contains a patient's values: messages of highdicom and pydicom are cut before the first
quoted value.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from monai_llmboost.inference.dicom.maker import silenced

# Attributes that the standard requires of every image (type 1).
NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns")
# Attributes that the standard requires but that may be empty if unknown (type 2); many files leave them out.
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
# Largest cosine between rows and columns that counts as a right angle.
SQUARE = 1e-4
# Largest difference of direction cosines of slices that count as parallel to the map.
PARALLEL = 1e-3


@dataclass(frozen=True)
class SourceImages:
    """The source images of a scan.

    Args:
        files: DICOM files of one series, or their data sets.
        frames: frames of a multi-frame image that form the scan, from 1; empty for all.
    """

    files: Sequence[str | Path | Dataset]
    frames: Sequence[int] = ()


def read_sources(files: Sequence[str | Path | Dataset], needed: Sequence[str] = NEEDED) -> list[Dataset]:
    """Return the images of one series without their pixels; missing attributes of type 2 are added as empty.

    Raises:
        ValueError: a file that is not DICOM or lacks a required attribute, no files, or files of several series.
    """
    sources = [file if isinstance(file, Dataset) else _read(Path(file)) for file in files]
    if not sources:
        raise ValueError("there are no DICOM files of a scan: give at least one")
    with silenced():  # pydicom decodes values on access
        for source in sources:
            missing = [keyword for keyword in needed if source.get(keyword) in (None, "")]
            if missing:
                raise ValueError(
                    f"a DICOM image lacks {', '.join(missing)}, which the standard requires: correct the file, or run "
                    "without DICOM objects"
                )
            for keyword in MAY_BE_EMPTY:
                if source.get(keyword) is None:
                    setattr(source, keyword, None)
    series = {(source.StudyInstanceUID, source.SeriesInstanceUID) for source in sources}
    if len(series) > 1:
        raise ValueError(f"the images belong to {len(series)} series: give the files of one scan")
    return sources


def _read(path: Path) -> Dataset:
    try:
        with silenced():
            return dcmread(path, stop_before_pixels=True)
    except InvalidDicomError as error:
        raise ValueError(f"{path.name} is no DICOM file: give the files of one scan") from error


def with_shared_geometry(source: Dataset, orientation: Sequence[Dataset], measures: Sequence[Dataset]) -> Dataset:
    """Return a source in the form that highdicom requires: exactly parallel slices, and shared geometry if enhanced."""
    result = copy.copy(source)
    if "SharedFunctionalGroupsSequence" in result:
        shared = Dataset()
        shared.update(result.SharedFunctionalGroupsSequence[0])
        for keyword, default in (("PlaneOrientationSequence", orientation), ("PixelMeasuresSequence", measures)):
            if keyword not in shared:
                setattr(shared, keyword, default)
        result.SharedFunctionalGroupsSequence = [shared]
        return result
    cosines = orientation[0].ImageOrientationPatient
    if np.allclose(result.get("ImageOrientationPatient") or np.inf, cosines, atol=PARALLEL):
        result.ImageOrientationPatient = cosines
    if "SliceThickness" not in result:
        result.SliceThickness = measures[0].SliceThickness
    return result


def lps_planes(affine: np.ndarray, depth: int) -> tuple[list[float], list[float], np.ndarray]:
    """Return the geometry of the planes k of a volume (i, j, k) in DICOM's terms.

    Args:
        affine: (4, 4), voxels (i, j, k) to RAS+ mm.
        depth: number of planes.

    Returns:
        Distances in mm of neighbouring voxels along i and j and of neighbouring planes; the directions of i and j
        (6,); the positions (depth, 3) of voxels (0, 0, k), in LPS+ mm.

    Raises:
        ValueError: the affine is invalid, or i and j are not at right angles.
    """
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError(f"an affine is no (4, 4) matrix that can be inverted: {affine.tolist()}; give the scan's")
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    distances = np.linalg.norm(lps[:3, :2], axis=0)
    along_i, along_j = (lps[:3, :2] / distances).T
    if abs(along_i @ along_j) > SQUARE:
        raise ValueError(
            f"rows and columns are not at right angles, the cosine is {along_i @ along_j:.4f}: DICOM has no such "
            "images; run without DICOM objects"
        )
    between = abs(np.cross(along_i, along_j) @ lps[:3, 2])
    return (
        [*distances.tolist(), float(between)],
        [*along_i, *along_j],
        (lps[:3, 2:3] * np.arange(depth) + lps[:3, 3:]).T,
    )
