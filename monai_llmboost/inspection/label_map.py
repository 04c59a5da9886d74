# SPDX-License-Identifier: Apache-2.0
"""What the label map of one case is: its values, their volumes, and a digest of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import nibabel
import numpy as np
import torch

from monai_llmboost.data import RefusedScan, ScanReader
from monai_llmboost.data.labelled import Source
from monai_llmboost.data.labelled.label_maps import read_on_grid
from monai_llmboost.data.labelled.lists.structures import BACKGROUND, MOST_STRUCTURES, MOST_VALUE
from monai_llmboost.data.transforms import CropScand
from monai_llmboost.inspection.measure import FOREGROUND_MARGIN_MM, MOST_SAMPLED, PERCENT, Volume

# Values that are listed in a message.
SHOWN = 5


@dataclass(frozen=True)
class LabelMapMeasures:
    """The measures of a label map.

    Args:
        values: the values of its structures, without the background 0; empty if there are none.
        voxels: number of voxels of each value.
        voxel_mm3: volume of a voxel.
        shape: its voxels along (i, j, k).
        inside_range: the 0.5th and 99.5th percentile of the image inside its structures; ``None`` if there are none.
        outside: part of the voxels of its structures outside of the box around the image's foreground, with a margin of
            :data:`~monai_llmboost.inspection.measure.FOREGROUND_MARGIN_MM`.
        digest: sha256 of shape and voxels.
    """

    values: tuple[int, ...]
    voxels: tuple[int, ...]
    voxel_mm3: float
    shape: tuple[int, int, int]
    inside_range: tuple[float, float] | None
    outside: float
    digest: str

    @property
    def volumes_mm3(self) -> dict[int, float]:
        """The volume of each structure by its value."""
        return {value: count * self.voxel_mm3 for value, count in zip(self.values, self.voxels)}

    @property
    def is_one_structure(self) -> bool:
        """Whether every voxel is of one structure."""
        return len(self.values) == 1 and self.voxels[0] == np.prod(self.shape)


def measure_label_map(
    source: Source, volume: Volume, above: float, reader: ScanReader
) -> tuple[LabelMapMeasures, np.ndarray]:
    """Return the measures of a label map, and the label map (i, j, k) itself.

    Args:
        source: the label map.
        volume: the image, whose grid it must have.
        above: voxels of the image above it are foreground.
        reader: reader of one scan.

    Raises:
        RefusedScan: it cannot be read, is no map of whole numbers from 0, or is on another grid.
    """
    labels = read_on_grid(source, reader, volume.voxels.shape, volume.affine)
    counts, digest = _count_values(labels)
    if len(counts) > MOST_STRUCTURES + 1:
        raise RefusedScan(f"label map: it has {len(counts)} different values: is it an image?", kind="label")
    counts.pop(BACKGROUND, None)
    inside = volume.voxels[labels != BACKGROUND]
    inside = inside[:: max(1, inside.size // MOST_SAMPLED)]
    low, high = np.percentile(inside, (PERCENT[0], PERCENT[2])) if inside.size else (0.0, 0.0)
    i, j, k = labels.shape
    measures = LabelMapMeasures(
        tuple(counts), tuple(counts.values()), float(f"{abs(np.linalg.det(volume.affine[:3, :3])):.9g}"), (i, j, k),
        (float(low), float(high)) if inside.size else None, _part_outside(labels, volume, above), digest,
    )  # fmt: skip
    return measures, labels


def _part_outside(labels: np.ndarray, volume: Volume, above: float) -> float:
    """Return the part of the structures' voxels outside of the box around the foreground."""
    whole = int(np.count_nonzero(labels))
    oriented = nibabel.apply_orientation(labels != BACKGROUND, nibabel.io_orientation(volume.affine))
    item = {"image": volume.tensor, "label": torch.from_numpy(np.ascontiguousarray(oriented))[None]}
    crop = CropScand(("image", "label"), "foreground", above, FOREGROUND_MARGIN_MM)
    try:
        return 1 - int(crop(item)["label"].count_nonzero()) / whole if whole else 0.0
    except RefusedScan:  # there is no foreground
        return 1.0 if whole else 0.0


def _count_values(labels: np.ndarray) -> tuple[dict[int, int], str]:
    """Return the number of voxels of each value, and a digest, plane by plane: a label map may be large."""
    digest = hashlib.sha256(f"{labels.shape}".encode())
    counts = np.zeros(MOST_VALUE + 1, np.int64)
    for plane in labels:
        digest.update(np.ascontiguousarray(plane).data)
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}, digest.hexdigest()


def unknown_values(measures: LabelMapMeasures, structures: Mapping[int, str]) -> str:
    """Return why a label map has values that are no structure; empty if it has none.

    Example:
        >>> one = LabelMapMeasures((1, 4), (20, 3), 1.0, (9, 9, 9), None, 0.0, "")
        >>> unknown_values(one, {1: "liver"})
        'label map: it has the value 4 (3 voxels), and the structures are 1: correct it, or give --structures'
    """
    strange = [(value, count) for value, count in zip(measures.values, measures.voxels) if value not in structures]
    if not strange:
        return ""
    shown = ", ".join(f"{value} ({count} voxels)" for value, count in strange[:SHOWN])
    known = ", ".join(map(str, structures))
    return f"label map: it has the value {shown}, and the structures are {known}: correct it, or give --structures"
