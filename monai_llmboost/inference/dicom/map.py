# SPDX-License-Identifier: Apache-2.0
"""A relevance map as a DICOM Parametric Map on the grid of its scan."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from monai_llmboost.inference.dicom.frames import complete_frames, frame_geometry
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

# Series number of the maps, after the report's.
SERIES_NUMBER = 9002


def write_parametric_map(
    path: str | Path,
    source: SourceImages,
    relevance: np.ndarray,
    affine: np.ndarray,
    label: str,
    algorithm: Mapping[str, str],
    quantity: str = "Saliency",
    overwrite: bool = False,
) -> None:
    """Write a relevance map as a DICOM Parametric Map, a float32 image without unit in the source's frame of reference.

    Each frame is a plane ``relevance[:, :, k]``, placed by ``affine``; if planes coincide with the source's, each frame
    refers to its image.

    Args:
        path: the file to write, atomically.
        source: the images of the scan: single slices, or one multi-frame image.
        relevance: (i, j, k), i along the rows of the image (from column to column), k from slice to slice.
        affine: (4, 4), voxels (i, j, k) to RAS+ mm; i and j at right angles, k may be sheared.
        label: name of the map, such as ``"network"``.
        algorithm: as in :func:`write_structured_report`.
        quantity: the code's name in pydicom's DCM dictionary: ``"Saliency"``, ``"GradientWeightedClassActivation"``.
        overwrite: replace an existing file.

    Raises:
        ValueError: as in :func:`write_structured_report`; also an invalid map or affine.
        ImportError: highdicom is not installed.
    """
    hd, codes = highdicom()
    relevance = np.asarray(relevance, dtype=np.float32)
    if relevance.ndim != 3 or not relevance.size or not np.isfinite(relevance).all():
        raise ValueError(
            f"an array of shape {relevance.shape} is no map of finite numbers (i, j, k): give that of a volume"
        )
    geometry = frame_geometry(affine, relevance.shape[2])
    sources, frames = read_sources(source.files, (*NEEDED, "FrameOfReferenceUID")), list(source.frames)
    planes = np.ascontiguousarray(relevance.transpose(2, 1, 0))  # (k, j, i) = (frames, rows, columns)
    digest = hashlib.sha256(planes.data).hexdigest()
    uid = Uids(sources, algorithm, "map", label, quantity, digest, np.round(affine, 6).tolist(), frames)
    code = getattr(codes.DCM, quantity)
    made_by = equipment(algorithm)
    with refused_by_highdicom():
        result = hd.pm.ParametricMap(
            source_images=[with_shared_geometry(source, geometry.orientation, geometry.measures) for source in sources],
            pixel_array=planes,
            series_number=SERIES_NUMBER,
            series_instance_uid=uid("series"),
            sop_instance_uid=uid("instance"),
            instance_number=1,
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[
                hd.pm.RealWorldValueMapping(
                    lut_label=label[:16],
                    lut_explanation=f"{code.meaning} ({label})"[:64],
                    unit=codes.UCUM.NoUnits,
                    value_range=(min(0.0, float(planes.min())), max(1.0, float(planes.max()))),
                    quantity_definition=code,
                )
            ],
            voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
            content_label=re.sub(r"[^A-Z0-9]", "_", label.upper())[:16],
            content_description=DISCLAIMER,
            pixel_measures=geometry.measures,
            plane_orientation=geometry.orientation,
            plane_positions=geometry.positions,
            derivation=code,
            series_description=f"{MAKER} {label}"[:64],
            specific_character_set="ISO_IR 192",
            **made_by,
        )
        complete_frames(result, geometry, frames, uid)
        result.DerivationDescription = "; ".join((DISCLAIMER, algorithm["name"], *parameters(algorithm)))[:1024]
    save_atomically(result, Path(path), overwrite)
