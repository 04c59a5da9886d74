# SPDX-License-Identifier: Apache-2.0
"""Frames of a derived DICOM image: where they are, which images of the source they match, what highdicom gets wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import Dataset

from monai_llmboost.inference.dicom.maker import Uids, highdicom, silenced
from monai_llmboost.inference.dicom.sources import lps_planes

# Largest distance of a corner of a plane from that of its source image, as a part of the smallest spacing.
SAME_PLACE = 0.25


@dataclass(frozen=True)
class FrameGeometry:
    """Geometry of the planes k of a volume, as sequences of highdicom.

    Args:
        measures: spacings.
        orientation: directions of rows and columns.
        positions: position of each plane.
    """

    measures: Any
    orientation: Any
    positions: Sequence[Any]


def frame_geometry(affine: np.ndarray, depth: int, positions: np.ndarray | None = None) -> FrameGeometry:
    """Return the geometry of the planes of a volume (i, j, k).

    Args:
        affine: (4, 4), voxels (i, j, k) to RAS+ mm.
        depth: number of planes.
        positions: (depth, 3), exact positions in LPS+ mm; None takes those of the affine.

    Raises:
        ValueError: the affine is invalid, or i and j are not at right angles.
    """
    hd, _ = highdicom()
    spacing_mm, cosines, regular = lps_planes(affine, depth)
    patient = hd.CoordinateSystemNames.PATIENT
    return FrameGeometry(
        measures=hd.PixelMeasuresSequence(
            # Rows first.
            pixel_spacing=(spacing_mm[1], spacing_mm[0]),
            slice_thickness=spacing_mm[2],
            spacing_between_slices=spacing_mm[2],
        ),
        orientation=hd.PlaneOrientationSequence(patient, cosines),
        positions=[hd.PlanePositionSequence(patient, p) for p in (regular if positions is None else positions)],
    )


def complete_frames(result: Dataset, geometry: FrameGeometry, frames: Sequence[int], uid: Uids) -> None:
    """Correct what highdicom copies from the source or draws at random.

    Args:
        result: the derived image.
        geometry: its geometry.
        frames: frames of the source that form the scan; references to others, which have the same positions, go.
        uid: UIDs of the object.
    """
    for group in result.PerFrameFunctionalGroupsSequence if frames else ():
        for derivation in group.get("DerivationImageSequence", ()):
            images = derivation.SourceImageSequence
            derivation.SourceImageSequence = [image for image in images if image.ReferencedFrameNumber in frames]
    # highdicom copies these from the source if they agree in the plane, including its slice thickness and spacing.
    result.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = geometry.measures
    for item in (*result.DimensionIndexSequence, *result.DimensionOrganizationSequence):
        item.DimensionOrganizationUID = uid("dimensions")  # random by default


def source_positions(
    sources: Sequence[Dataset], frames: Sequence[int], affine: np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    """Return the positions (k, 3) in LPS+ mm of the source images that the planes of a volume (i, j, k) lie on.

    Args:
        sources: images of one series without pixels.
        frames: frames of a multi-frame image, from 1; empty for all.
        affine: (4, 4), voxels (i, j, k) to RAS+ mm.
        shape: voxels of the volume.

    Raises:
        ValueError: a plane lies on no source image, as if the volume is resampled; the geometry of an image is absent.
    """
    with silenced():
        corners = np.array([_corners(*plane) for source in sources for plane in _planes_of(source, frames)])
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)
    last_i, last_j = shape[0] - 1, shape[1] - 1
    of_plane = np.array([[0, 0, 0], [last_i, 0, 0], [0, last_j, 0]])
    found = []
    tolerance = SAME_PLACE * np.linalg.norm(lps[:3, :3], axis=0).min()
    for k in range(shape[2]):
        wanted = (of_plane + [0, 0, k]) @ lps[:3, :3].T + lps[:3, 3]
        distances = np.linalg.norm(corners - wanted, axis=2).max(axis=1)
        nearest = int(distances.argmin())
        if distances[nearest] > tolerance:
            raise ValueError(
                f"plane {k} of the volume ({' x '.join(map(str, shape))}) lies on no image of the series, as after "
                "resampling a gantry tilt or a mosaic: use the NIfTI file, or read tilted slices with "
                "gantry_tilt='shear'"
            )
        found.append(corners[nearest, 0])
    return np.array(found)


def _planes_of(source: Dataset, frames: Sequence[int]) -> list[tuple[Any, Any, Any, int, int]]:
    """Return position, orientation, pixel spacing, rows and columns of an image, or of each of its frames."""
    size = int(source.Rows), int(source.Columns)
    groups = source.get("PerFrameFunctionalGroupsSequence")
    if groups is None:
        keys = "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"
        position, orientation, spacing = (source.get(key) for key in keys)
        return [_checked(position, orientation, spacing, *size)]
    shared = source.get("SharedFunctionalGroupsSequence") or [Dataset()]

    def value(group: Dataset, sequence: str, keyword: str) -> Any:
        items = group.get(sequence) or shared[0].get(sequence) or [Dataset()]
        return items[0].get(keyword)

    return [
        _checked(
            value(groups[number - 1], "PlanePositionSequence", "ImagePositionPatient"),
            value(groups[number - 1], "PlaneOrientationSequence", "ImageOrientationPatient"),
            value(groups[number - 1], "PixelMeasuresSequence", "PixelSpacing"),
            *size,
        )
        for number in frames or range(1, len(groups) + 1)
    ]


def _checked(position: Any, orientation: Any, spacing: Any, rows: int, columns: int) -> tuple[Any, Any, Any, int, int]:
    if any(value is None or len(value) != length for value, length in ((position, 3), (orientation, 6), (spacing, 2))):
        raise ValueError(
            "an image of the series has no position, orientation or pixel spacing where the standard has them: run "
            "without DICOM objects"
        )
    return position, orientation, spacing, rows, columns


def _corners(position: Any, orientation: Any, spacing: Any, rows: int, columns: int) -> np.ndarray:
    """Return the first voxel, the last of its row and the last of its column, (3, 3) in LPS+ mm."""
    first, (along_i, along_j) = np.array(position, float), np.array(orientation, float).reshape(2, 3)
    between_rows, between_columns = map(float, spacing)
    return first + np.stack(
        [np.zeros(3), along_i * between_columns * (columns - 1), along_j * between_rows * (rows - 1)]
    )
