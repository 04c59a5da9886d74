# SPDX-License-Identifier: Apache-2.0
"""Small pictures of scans, and of the contours of their label maps."""

from __future__ import annotations

import io

import nibabel
import numpy as np
import torch
from PIL import Image, ImageColor

from monai_llmboost.artifacts.planes import grey_window, planes
from monai_llmboost.inference.maps.thumbnails import GAP_PX, HEIGHT_PX, thumbnail
from monai_llmboost.inspection.measure import Volume

# Largest number of voxels along an axis of a picture.
SIDE = 84
# Colours of structures: those of the page on dark ground; repeated if there are more.
COLOURS = ("#f0b03a", "#35c99b", "#5aaef0", "#e596c5", "#ff8548", "#a6dcff", "#d9cb5c")


def colour_of(value: int) -> str:
    """Return the colour of the structure with a value in label maps."""
    return COLOURS[(value - 1) % len(COLOURS)]


def draw_case(volume: Volume, labels: np.ndarray | None = None) -> bytes:
    """Return a PNG of three planes of a scan, with voxels as cubes, from the nearest voxels.

    Args:
        volume: the scan.
        labels: its label map (i, j, k), whose contours are drawn in planes through its largest part.
    """
    sizes = [count * step for count, step in zip(volume.oriented.shape, volume.spacing_mm)]
    step = max(max(sizes) / SIDE, min(volume.spacing_mm))
    places = np.ix_(*[
        np.linspace(0, count - 1, max(2, round(size / step))).round().astype(int)
        for count, size in zip(volume.oriented.shape, sizes)
    ])  # fmt: skip
    image = np.ascontiguousarray(volume.oriented[places])
    if labels is None or not labels.any():
        return thumbnail(torch.from_numpy(image)[None])
    oriented = nibabel.apply_orientation(labels, nibabel.io_orientation(volume.affine))
    return _draw_contours(image, np.ascontiguousarray(oriented[places]))


def _draw_contours(image: np.ndarray, labels: np.ndarray) -> bytes:
    """Return a PNG as :func:`thumbnail` does, with a line along the inner edge of each structure."""
    low, high = grey_window(image)
    at = tuple(_largest(labels, axis) for axis in range(3))
    parts = []
    for grey, label in zip(planes(image, np.eye(4), at), planes(labels, np.eye(4), at)):
        rows, columns = grey.pixels.shape
        size = max(1, round(HEIGHT_PX * columns / rows)), HEIGHT_PX
        shade = (np.clip((grey.pixels - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        picture = np.repeat(np.asarray(Image.fromarray(shade).resize(size, Image.Resampling.BILINEAR))[..., None], 3, 2)
        down = np.arange(size[1]) * rows // size[1]
        across = np.arange(size[0]) * columns // size[0]
        values = label.pixels[np.ix_(down, across)]
        edge = _edges(values)
        for value in np.unique(values[edge]).tolist():
            picture[edge & (values == value)] = ImageColor.getrgb(colour_of(value))
        parts.append(picture)
    gap = np.zeros((HEIGHT_PX, GAP_PX, 3), np.uint8)
    whole = np.concatenate([part for one in parts for part in (one, gap)][:-1], axis=1)
    file = io.BytesIO()
    Image.fromarray(whole).quantize(64).save(file, "PNG", optimize=True)
    return file.getvalue()


def _largest(labels: np.ndarray, axis: int) -> int:
    others = tuple({0, 1, 2} - {axis})
    return int(np.count_nonzero(labels, axis=others).argmax())


def _edges(values: np.ndarray) -> np.ndarray:
    """Return which pixels of structures have a neighbour of another value."""
    padded = np.pad(values, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (values > 0) & np.any([values != one for one in neighbours], axis=0)
