# SPDX-License-Identifier: Apache-2.0
"""A label map as a DICOM Segmentation on the images of its scan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_llmboost import __version__
from monai_llmboost.inference.dicom.codes import Segment
from monai_llmboost.inference.dicom.frames import complete_frames, frame_geometry, source_positions
from monai_llmboost.inference.dicom.maker import (
    DISCLAIMER,
    MAKER,
    Uids,
    equipment,
    highdicom,
    parameters,
    refused_by_highdicom,
    save_atomically,
)
from monai_llmboost.inference.dicom.sources import NEEDED, SourceImages, read_sources, with_shared_geometry

# Series number of segmentations, after those of reports and maps.
SERIES_NUMBER = 9003
LONGEST_LABEL = 64


def write_seg(
    path: str | Path,
    source: SourceImages,
    label_map: np.ndarray,
    affine: np.ndarray,
    segments: Sequence[Segment],
    algorithm: Mapping[str, str],
    labelmap: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a label map as a DICOM Segmentation in the source's frame of reference.

    Each frame lies on an image of the source, whose position it has and to which it refers; planes without structures
    have no frame. Segments are numbered from 1 in the order of ``segments``; all are described, also absent ones.

    Args:
        path: the file to write, atomically.
        source: the images of the scan: single slices, or one multi-frame image.
        label_map: (i, j, k), whole numbers, 0 is background; i along the rows of the image (from column to column), k
            from slice to slice.
        affine: (4, 4), voxels (i, j, k) to RAS+ mm.
        segments: the structures of the label map.
        algorithm: as in :func:`monai_llmboost.inference.dicom.report.write_structured_report`.
        labelmap: write a Label Map Segmentation, one frame per plane, which many programs do not read yet; else a
            binary one, one frame per plane and segment.
        overwrite: replace an existing file.

    Raises:
        ValueError: the file exists; the source files are not images of one series or lack required attributes; the
            label map is not on their grid, or has values that are none of ``segments``.
        ImportError: highdicom is not installed.

    Example:
        >>> segments = segments_of({1: "liver"}, {1: "#e69f00"})  # doctest: +SKIP
        >>> write_seg("seg.dcm", SourceImages(files), label_map, affine, segments, algorithm)  # doctest: +SKIP
    """
    hd, codes = highdicom()
    planes = _number(label_map, segments)
    sources, frames = read_sources(source.files, (*NEEDED, "FrameOfReferenceUID")), list(source.frames)
    positions = source_positions(sources, frames, affine, label_map.shape)
    geometry = frame_geometry(affine, len(planes), positions)
    kind = "LABELMAP" if labelmap else "BINARY"
    described = [[each.value, each.name, each.category, each.kind, each.colour] for each in segments]
    digest = hashlib.sha256(planes.data).hexdigest()
    uid = Uids(sources, algorithm, "segmentation", kind, described, digest, np.round(affine, 6).tolist(), frames)
    made_by = equipment(algorithm)
    with refused_by_highdicom():
        algorithm_id = hd.AlgorithmIdentificationSequence(
            name=MAKER,
            family=codes.DCM.ArtificialIntelligence,
            version=__version__,
            source=MAKER,
            parameters=_parameters(algorithm),
        )
        result = hd.seg.Segmentation(
            source_images=[with_shared_geometry(each, geometry.orientation, geometry.measures) for each in sources],
            pixel_array=planes,
            segmentation_type=kind,
            segment_descriptions=[
                _describe(number, segment, algorithm_id, uid) for number, segment in enumerate(segments, 1)
            ],
            series_instance_uid=uid("series"),
            series_number=SERIES_NUMBER,
            sop_instance_uid=uid("instance"),
            instance_number=1,
            content_description=DISCLAIMER,
            content_label="SEGMENTATION",
            pixel_measures=geometry.measures,
            plane_orientation=geometry.orientation,
            plane_positions=geometry.positions,
            series_description=f"{MAKER} segmentation",
            specific_character_set="ISO_IR 192",
            **made_by,
        )
        complete_frames(result, geometry, frames, uid)
    save_atomically(result, Path(path), overwrite)


def _number(label_map: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """Return the planes (k, j, i) of a label map, with the numbers of segments, from 1."""
    if label_map.ndim != 3 or not label_map.size or label_map.dtype.kind not in "ui":
        raise ValueError(
            f"an array of shape {label_map.shape} and type {label_map.dtype} is no label map (i, j, k) of whole numbers"
        )
    values = np.array([0, *(segment.value for segment in segments)])
    if not segments or len(set(values)) < len(values):
        raise ValueError(f"the segments have the values {values[1:].tolist()}: give different ones from 1")
    order = np.argsort(values)
    planes = np.empty(label_map.shape[::-1], np.uint8 if len(segments) < 256 else np.uint16)
    for k in range(len(planes)):
        plane = label_map[:, :, k].T
        at = np.searchsorted(values, plane, sorter=order).clip(max=len(values) - 1)
        planes[k] = order[at]
        wrong = values[planes[k]] != plane
        if wrong.any():
            raise ValueError(
                f"the label map has the value {plane[wrong][0]}, the segments {values[1:].tolist()}: describe all of "
                "its structures"
            )
    return planes


def _describe(number: int, segment: Segment, algorithm_id: Any, uid: Uids) -> Any:
    hd, _ = highdicom()
    label = " ".join(segment.name.replace("\\", "/").split())  # a backslash separates values
    red, green, blue = bytes.fromhex(segment.colour.lstrip("#"))
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 3]}...",
        segmented_property_category=segment.category,
        segmented_property_type=segment.kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm_id,
        tracking_uid=uid("segment", number),
        tracking_id=f"segment {number}",
        display_color=hd.color.CIELabColor.from_rgb(red, green, blue),
    )


def _parameters(algorithm: Mapping[str, str]) -> dict[str, str]:
    """Return what identifies the weights, as parameters of the algorithm."""
    digests = dict(text.split(": ", 1) for text in parameters(algorithm))
    return {"bundle": f"{algorithm['name']} {algorithm['version']}", **digests}
