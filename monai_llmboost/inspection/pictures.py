# SPDX-License-Identifier: Apache-2.0
"""Small pictures of scans, and of the contours of their label maps."""

from __future__ import annotations

import numpy as np
import torch

from monai_llmboost.artifacts.contours import COLOURS, contour_picture
from monai_llmboost.inference.maps.thumbnails import thumbnail
from monai_llmboost.inspection.measure import Volume

# Largest number of voxels along an axis of a picture.
SIDE = 84


def colour_of(value: int) -> str:
    """Return the colour of the structure with a value in label maps."""
    return COLOURS[(value - 1) % len(COLOURS)]


def draw_case(volume: Volume, labels: np.ndarray | None = None) -> bytes:
    """Return three planes of a scan: a PNG of voxels as cubes, from the nearest voxels, or a WebP with contours.

    Args:
        volume: the scan.
        labels: its label map (i, j, k), whose contours are drawn in planes through its largest part.
    """
    if labels is not None and labels.any():
        colours = {value: colour_of(value) for value in np.unique(labels[labels > 0]).tolist()}
        names = {value: str(value) for value in colours}
        return contour_picture(volume.voxels, volume.affine, labels, names, colours)
    sizes = [count * step for count, step in zip(volume.oriented.shape, volume.spacing_mm)]
    step = max(max(sizes) / SIDE, min(volume.spacing_mm))
    places = np.ix_(*[
        np.linspace(0, count - 1, max(2, round(size / step))).round().astype(int)
        for count, size in zip(volume.oriented.shape, sizes)
    ])  # fmt: skip
    return thumbnail(torch.from_numpy(np.ascontiguousarray(volume.oriented[places]))[None])
