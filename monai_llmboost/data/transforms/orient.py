# SPDX-License-Identifier: Apache-2.0
"""Orientation of a scan without a second volume in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Orientationd
from torch import Tensor


class OrientScand(Orientationd):
    """Orient volumes as MONAI's ``Orientationd`` does, with flips in the memory of the given volume.

    Axes of most CT and MR scans in DICOM are flipped, and a flipped copy would double the memory. The given volume is
    flipped with its affine, so it stays in place; its order of axes stays too.

    Args:
        keys: keys of volumes (channels, i, j, k) with an affine.
        axcodes: wanted anatomical directions of the axes.
        allow_missing_keys: accept items without some of the keys.

    Example:
        >>> volume = MetaTensor(torch.arange(4.0).reshape(1, 4, 1, 1), affine=torch.diag(torch.tensor([-1.0, 1, 1, 1])))
        >>> OrientScand("image")({"image": volume})["image"].flatten().tolist()
        [3.0, 2.0, 1.0, 0.0]
    """

    def __init__(self, keys: KeysCollection, axcodes: str = "RAS", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, axcodes=axcodes, labels=None, allow_missing_keys=allow_missing_keys)

    def __call__(self, data: Mapping[Any, Any], lazy: bool | None = None) -> dict[Any, Any]:
        """Return the item with oriented volumes."""
        oriented = dict(data)
        for key in self.key_iterator(oriented):
            volume = oriented[key]
            later = self.lazy if lazy is None else lazy
            plain = isinstance(volume, MetaTensor) and not later and not volume.has_pending_operations
            oriented[key] = self._orient(volume) if plain else self.ornt_transform(volume, lazy=later)
        return oriented

    def _orient(self, volume: MetaTensor) -> MetaTensor:
        # Affine and trace are those of MONAI's transform, which computes no voxels on this device.
        shape = torch.empty(volume.shape, device="meta")
        like: Any = MetaTensor(shape, meta=dict(volume.meta), applied_operations=list(volume.applied_operations))
        like = self.ornt_transform(like)
        own = np.asarray(volume.affine, dtype=float)
        moves = np.rint(np.linalg.solve(own, np.asarray(like.affine, dtype=float)))[:3, :3]  # new axes -> own axes
        flipped = [axis for axis in range(3) if moves[axis].sum() < 0]
        flip_in_place(volume.as_tensor(), [axis + 1 for axis in flipped])
        flip = np.eye(4)
        for axis in flipped:
            flip[axis, axis], flip[axis, 3] = -1, volume.shape[axis + 1] - 1
        volume.affine = torch.as_tensor(own @ flip)
        voxels = volume.as_tensor().permute(0, *(1 + np.abs(moves).argmax(axis=0)).tolist())
        result: MetaTensor = MetaTensor(voxels).copy_meta_from(like)
        return result


def flip_in_place(volume: Tensor, axes: Sequence[int]) -> None:
    """Flip a volume (channels, i, j, k) along axes from 1 to 3, in rising order, plane by plane in its own memory."""
    if not axes:
        return
    along = [axis - 1 for axis in axes if axis > 1]  # within a plane
    planes = volume.unbind(1)
    if axes[0] > 1:
        for plane in planes:
            plane.copy_(plane.flip(along))
        return
    for i in range((len(planes) + 1) // 2):
        first = planes[i].flip(along)
        planes[i].copy_(planes[-1 - i].flip(along))
        planes[-1 - i].copy_(first)
