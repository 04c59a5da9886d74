# SPDX-License-Identifier: Apache-2.0
"""Crop of a scan to what a network should see: its foreground, a mask, or the surroundings of a point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialCrop
from monai.utils import TransformBackends
from torch import Tensor

from monai_llmboost.arguments import check_choice
from monai_llmboost.data.scans.scan import RefusedScan

CROPS = ("none", "foreground", "mask", "centre")
# A plane belongs to the foreground if more than this part of its voxels does, so that single noisy voxels do not count.
LEAST_SHARE = 1e-3


class CropScand(MapTransform):
    """Crop volumes to a box around their foreground, a mask or a point, with a margin in mm.

    Args:
        keys: keys of volumes (channels, i, j, k); those after the first one, such as a label map, are on its grid, and
            cropped to its box.
        crop: ``"none"``; ``"foreground"``, the planes with voxels above ``above`` in any channel; ``"mask"``, the box
            of the item's mask; or ``"centre"``, a box of ``size_mm`` around the item's point.
        above: values above it are foreground, in the units of the scan.
        margin_mm: margin on all sides; of a point, in addition to ``size_mm``.
        size_mm: size of the box around a point, along the volume's axes.
        mask: key of the mask, on the grid of the volume; it is removed from the item.
        centre: key of the point, in RAS+ mm.
        allow_missing_keys: accept items without some of the keys.

    Raises:
        ValueError: an unknown kind of crop.
        RefusedScan: from the call: no foreground, an empty mask, no mask or point, or a point outside of the scan.

    Example:
        >>> volume = MetaTensor(torch.zeros(1, 10, 10, 10))
        >>> volume[:, 3:6, 4:6, 2:4] = 1
        >>> CropScand("image", "foreground", above=0.5, margin_mm=1)({"image": volume})["image"].shape
        torch.Size([1, 5, 4, 4])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (as in every transform of MONAI)

    def __init__(
        self,
        keys: KeysCollection,
        crop: str = "foreground",
        above: float = 0.0,
        margin_mm: float = 0.0,
        size_mm: Sequence[float] = (64.0, 64.0, 64.0),
        mask: str = "mask",
        centre: str = "centre",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_choice("crop", crop, CROPS)
        self.crop = crop
        self.above = float(above) if crop == "foreground" else 0.0
        self.margin_mm = float(margin_mm) if crop != "none" else 0.0
        self.size_mm = [float(size) for size in size_mm] if crop == "centre" else []
        self.mask = mask
        self.centre = centre

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the item with cropped volumes."""
        cropped = dict(data)
        mask = cropped.pop(self.mask, None)
        centre = cropped.pop(self.centre, None)
        present = list(self.key_iterator(cropped))
        if self.crop != "none" and present:
            low, high = self._box(cropped[present[0]], mask, centre)
            for key in present:
                cropped[key] = SpatialCrop(roi_start=low.tolist(), roi_end=high.tolist())(cropped[key])
        return cropped

    def _box(self, volume: MetaTensor, mask: Any, centre: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the first voxel of the box along each axis, and the one after its last."""
        spacing = np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0)
        margin = np.ceil(self.margin_mm / spacing - 1e-6).astype(int)
        if self.crop == "centre":
            low, high = self._around(volume, centre, spacing)
        elif self.crop == "mask":
            if mask is None:
                raise RefusedScan("the case has no mask to crop around: give one", kind="transforms")
            low, high = _extent(torch.as_tensor(mask) > 0, 0.0, "the mask is empty: draw it, or leave the case out")
        else:
            wrong = (
                f"no plane of the scan has more than {100 * LEAST_SHARE:g} % of its voxels above {self.above:g}: "
                "correct --foreground_above"
            )
            low, high = _extent(volume.as_tensor() > self.above, LEAST_SHARE, wrong)
        shape = np.array(volume.shape[1:])
        return np.maximum(low - margin, 0), np.minimum(high + margin, shape)

    def _around(self, volume: MetaTensor, centre: Any, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if centre is None:
            raise RefusedScan(
                "the case has no point to crop around: give centre_x, centre_y, centre_z", kind="transforms"
            )
        point = np.linalg.inv(np.asarray(volume.affine)) @ [*np.asarray(centre, dtype=float).reshape(3), 1.0]
        voxel = point[:3]
        if (voxel < -0.5).any() or (voxel > np.array(volume.shape[1:]) - 0.5).any():
            place = ", ".join(f"{value:g}" for value in np.asarray(centre, dtype=float).reshape(3))
            raise RefusedScan(
                f"the point ({place}) mm is not in the scan: give RAS+ mm (DICOM has LPS: change the signs of x and y)",
                kind="transforms",
            )
        size = np.maximum(np.round(np.array(self.size_mm) / spacing).astype(int), 1)
        low = np.floor(voxel - size / 2 + 1 - 1e-6).astype(int)  # the box whose middle is nearest
        return low, low + size


def _extent(inside: Tensor, share: float, wrong: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the box of the planes of which more than a share of the voxels is inside."""
    any_channel = (inside[0] if len(inside) == 1 else inside.any(dim=0)).numpy()
    # NumPy counts without a copy of the volume as numbers.
    last, rows = np.count_nonzero(any_channel, axis=(0, 1)), np.count_nonzero(any_channel, axis=2)
    low, high = [], []
    for counts in (rows.sum(axis=1), rows.sum(axis=0), last):
        planes = np.flatnonzero(counts > share * any_channel.size / len(counts))
        if not len(planes):
            raise RefusedScan(wrong, kind="transforms")
        low.append(int(planes[0]))
        high.append(int(planes[-1]) + 1)
    return np.array(low), np.array(high)
