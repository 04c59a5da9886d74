# SPDX-License-Identifier: Apache-2.0
"""Mosaics: all slices of a volume as tiles of one image, in functional and diffusion MR of Siemens scanners.

Tiles are in a square grid, row by row. The position in the header belongs to an image of one slice with the size of the
whole grid and the same centre. Direction and distance of the slices are in private elements:
https://nipy.org/nibabel/dicom/dicom_mosaic.html
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread

from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.dicom.tolerances import NORMAL_COSINE, SAME_CENTRE, SAME_DISTANCE
from monai_llmboost.data.scans.dicom.values import get_value

# Private element of United Imaging scanners: number of slices in a grid, whose geometry is not supported.
GRID_UIH = (0x0065, 0x1050)
SLICE_POSITION = re.compile(
    r"sSliceArray\.asSlice\[(\d+)\]\.sPosition\.d(Sag|Cor|Tra)\s*=\s*([-+.\deE]+)",
)
EXPORT = "export it as enhanced or as separate slices"


def is_mosaic(data: Dataset) -> bool:
    """Return whether a file is a mosaic of slices in the format of Siemens."""
    return "MOSAIC" in str(get_value(data, "ImageType") or "").upper()


def is_grid(data: Dataset) -> bool:
    """Return whether a file is a grid of slices in the format of United Imaging."""
    count = data.get(GRID_UIH)
    if count is None:
        return False
    text = count.value.decode("ascii", "replace") if isinstance(count.value, bytes) else str(count.value)
    return text.strip("\0 ") not in ("", "0", "1")


def split_mosaic(path: Path, mosaic: SliceHeader) -> tuple[SliceHeader, ...]:
    """Return the slices of a mosaic in the order of its tiles, or its header with a problem if they are unknown.

    Args:
        path: the file.
        mosaic: its header, read as one slice.
    """
    if mosaic.problem or not mosaic.is_placed:
        return (mosaic,)
    data = dcmread(path, stop_before_pixels=True, force=True)
    image, series = (_read_csa_header(data, kind) for kind in ("image", "series"))
    count = int(next(iter(image.get("NumberOfImagesInMosaic", [])), 0) or 0)
    if count < 1:
        return (_add_problem(mosaic, "the number of slices in a mosaic"),)
    side = math.ceil(math.sqrt(count))
    if mosaic.rows % side or mosaic.columns % side:
        return (replace(mosaic, problem=f"expected {side} x {side} tiles, got {mosaic.rows} rows and "
                        f"{mosaic.columns} columns: {EXPORT}"),)  # fmt: skip
    rows, columns = mosaic.rows // side, mosaic.columns // side
    along_rows, along_columns = np.array(mosaic.orientation).reshape(2, 3)
    between_rows, between_columns = mosaic.pixel_spacing or (0.0, 0.0)
    row, column = along_columns * between_rows, along_rows * between_columns  # one step down, one step to the right
    first = np.array(mosaic.position) + (mosaic.rows - rows) / 2 * row + (mosaic.columns - columns) / 2 * column
    centre = first + rows / 2 * row + columns / 2 * column
    step = _get_step(data, image, _read_planned_centres(series), np.cross(along_rows, along_columns), centre, count)
    if isinstance(step, str):
        return (_add_problem(mosaic, step),)
    return tuple(
        replace(
            mosaic,
            frame=tile,
            frames=count,
            rows=rows,
            columns=columns,
            position=tuple(float(x) for x in first + tile * step),
            rounding_mm=(0.0, 0.0, 0.0),
            corner=(tile // side * rows, tile % side * columns),
        )
        for tile in range(count)
    )


def _get_step(
    data: Dataset, image: Mapping[str, Any], protocol: np.ndarray, normal: np.ndarray, centre: np.ndarray, count: int
) -> np.ndarray | str:
    """Return the step between the slices of neighbouring tiles, in mm, or the name of what is unknown."""
    written = np.array(image.get("SliceNormalVector", []), dtype=float)
    sign = np.sign(written @ normal) if written.shape == (3,) and abs(written @ normal) > NORMAL_COSINE else 0.0
    spacing = float(get_value(data, "SpacingBetweenSlices") or 0)
    if len(protocol) == count > 1:
        mean = (protocol[-1] - protocol[0]) / (count - 1)
        spacing = spacing or float(np.linalg.norm(mean))
        ends = [np.linalg.norm(centre - end) < SAME_CENTRE * spacing for end in (protocol[0], protocol[-1])]
        if ends[0] != ends[1]:  # else the slices were moved after planning, for instance by motion correction
            order = np.sign(mean @ normal) * (1 if ends[0] else -1)
            if sign and order != sign:
                return "one order of slices (its protocol and its images disagree)"
            if abs(np.linalg.norm(mean) - spacing) > SAME_DISTANCE * spacing:
                return "one distance of slices (its protocol and its images disagree)"
            sign = order
    if not sign:
        return "the order of slices in a mosaic"
    if not spacing > 0:
        return "the distance of slices in a mosaic"
    return sign * spacing * normal


def _read_csa_header(data: Dataset, kind: str) -> dict[str, Any]:
    """Return Siemens' private (CSA) header of the image or series, name -> values; empty if absent or damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel warns on import that this reader is experimental
        from nibabel.nicom import csareader
    try:
        header = csareader.get_csa_header(data, kind)
    except Exception:  # a damaged header may raise any error
        header = None
    return {} if header is None else {name: tag["items"] for name, tag in header["tags"].items()}


def _read_planned_centres(series: Mapping[str, Any]) -> np.ndarray:
    """Return the centres of the planned slices, (slices, 3), in mm; empty if unknown."""
    text = next(iter(series.get("MrPhoenixProtocol") or series.get("MrProtocol") or []), "")
    text = text.decode("latin-1") if isinstance(text, bytes) else str(text)
    found = [(int(i), ("Sag", "Cor", "Tra").index(axis), float(x)) for i, axis, x in SLICE_POSITION.findall(text)]
    centres = np.zeros((max((i for i, _, _ in found), default=-1) + 1, 3))
    for i, axis, x in found:
        centres[i, axis] = x
    return centres


def _add_problem(mosaic: SliceHeader, missing: str) -> SliceHeader:
    return replace(mosaic, problem=f"expected {missing}, got none that is sure: {EXPORT}")
