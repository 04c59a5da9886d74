# SPDX-License-Identifier: Apache-2.0
"""Resampling of a scan to a spacing: means of whole voxels first, then linear interpolation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialResample
from monai.utils import TransformBackends
from torch.nn.functional import avg_pool3d

from monai_llmboost.data.scans.scan import MAX_VOXELS, RefusedScan

# A spacing that differs from the wanted one by a smaller part is kept.
SAME = 1e-3
# More voxels than this along an axis after resampling are most likely a wrong spacing in a header.
MOST_VOXELS = 2048


class ResampleScand(MapTransform):
    """Resample volumes to a spacing in mm.

    Where the wanted spacing is twice the scan's or more, means over whole voxels come first: linear interpolation alone
    would skip voxels (aliasing), and it is slower on the full grid.

    Args:
        keys: keys of volumes (channels, i, j, k).
        spacing_mm: wanted spacing along the axes.

    Raises:
        ValueError: spacings that are not three positive numbers.
        RefusedScan: from the call: the volume would have more than 2048 voxels along an axis, more than fit a memory,
            or less than one.

    Example:
        >>> volume = MetaTensor(torch.ones(1, 12, 12, 4), affine=torch.diag(torch.tensor([0.5, 0.5, 3.0, 1.0])))
        >>> ResampleScand("image", [1.5, 1.5, 1.5])({"image": volume})["image"].shape
        torch.Size([1, 4, 4, 7])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (as in every transform of MONAI)

    def __init__(self, keys: KeysCollection, spacing_mm: Sequence[float]) -> None:
        super().__init__(keys)
        try:
            spacing = [float(value) for value in spacing_mm]
        except (TypeError, ValueError):
            spacing = []
        if len(spacing) != 3 or not all(0 < value < math.inf for value in spacing):
            raise ValueError(f"spacing_mm must be three positive numbers, not {spacing_mm!r}: give [1, 1, 1], say")
        self.spacing_mm = spacing

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the item with resampled volumes."""
        resampled = dict(data)
        for key in self.key_iterator(resampled):
            resampled[key] = self._resample(resampled[key])
        return resampled

    def _resample(self, volume: MetaTensor) -> Any:
        own = _spacing(volume)
        if all(abs(wanted - there) <= SAME * wanted for wanted, there in zip(self.spacing_mm, own)):
            return volume
        sizes = [size * there / wanted for wanted, there, size in zip(self.spacing_mm, own, volume.shape[1:])]
        if max(sizes) > MOST_VOXELS or math.prod(sizes) > MAX_VOXELS or max(sizes) < 1:
            voxels, becomes = (" x ".join(f"{n:.4g}" for n in each) for each in (volume.shape[1:], sizes))
            raise RefusedScan(
                f"{voxels} voxels of {' x '.join(f'{there:g}' for there in own)} mm would become {becomes}: the "
                "spacing in the header is most likely wrong; correct it, or leave the scan out",
                kind="too-small" if max(sizes) < 1 else "too-large",
            )
        blocks = [max(1, int(wanted / there + SAME)) for wanted, there in zip(self.spacing_mm, own)]
        lasts = [(size - 1 - (min(block, size) - 1) / 2) * there / wanted
                 for size, block, there, wanted in zip(volume.shape[1:], blocks, own, self.spacing_mm)]  # fmt: skip
        volume = _average(volume, blocks)
        # MONAI's Spacing moves the origin of an oblique volume by part of a voxel if its axes are not exactly
        # orthogonal, as the rounded numbers of a DICOM header are not. Here the first voxel stays in its place.
        factors = [wanted / there for wanted, there in zip(self.spacing_mm, _spacing(volume))]
        scale = torch.diag(torch.tensor([*factors, 1.0], dtype=volume.affine.dtype))
        # The last voxel of the scan, at these places, is in the last one of the new grid too.
        sides = [max(round((number - 1) / factor), math.ceil(last - 0.5 - SAME)) + 1
                 for number, factor, last in zip(volume.shape[1:], factors, lasts)]  # fmt: skip
        resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=np.float32)
        return resample(volume, dst_affine=volume.affine @ scale, spatial_size=sides)


def _spacing(volume: MetaTensor) -> list[float]:
    """Return the spacing of a volume along its axes, mm."""
    return torch.linalg.norm(volume.affine[:3, :3], dim=0).tolist()


def _average(volume: MetaTensor, factors: Sequence[int]) -> MetaTensor:
    """Return means over blocks of voxels; those at the far ends may be smaller."""
    kernel = [min(factor, size) for factor, size in zip(factors, volume.shape[1:])]
    if max(kernel) == 1:
        return volume
    means = avg_pool3d(volume.as_tensor()[None], kernel, ceil_mode=True, count_include_pad=False)[0]
    steps = torch.tensor(kernel, dtype=volume.affine.dtype)
    into = torch.diag(torch.cat([steps, steps.new_ones(1)]))
    into[:3, 3] = (steps - 1) / 2
    return MetaTensor(means, meta={**volume.meta, "affine": volume.affine @ into})


class ResampleLabelsd(MapTransform):
    """Resample class numbers to a spacing: the class with the largest share, as the image is resampled.

    Each class is resampled as a volume of ones and zeros by :class:`ResampleScand`, so that labels stay in place with
    their image, and thin structures count by their volume.

    Args:
        keys: keys of class numbers (1, i, j, k), uint8.
        spacing_mm: wanted spacing along the axes.
        allow_missing_keys: accept items without some of the keys.

    Raises:
        ValueError: spacings that are not three positive numbers.

    Example:
        >>> labels = MetaTensor(torch.ones(1, 4, 4, 4, dtype=torch.uint8))
        >>> ResampleLabelsd("label", [2, 2, 2])({"label": labels})["label"].flatten().tolist()
        [1, 1, 1, 1, 1, 1, 1, 1]
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (as in every transform of MONAI)

    def __init__(self, keys: KeysCollection, spacing_mm: Sequence[float], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.resample = ResampleScand("share", spacing_mm)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the item with resampled class numbers."""
        resampled = dict(data)
        for key in self.key_iterator(resampled):
            resampled[key] = self._resample(resampled[key])
        return resampled

    def _resample(self, labels: MetaTensor) -> MetaTensor:
        classes = labels.as_tensor()
        affine, best, largest = labels.affine, torch.zeros(()), torch.zeros(())
        # One class at a time, because all of them together may not fit the memory.
        for number in range(int(classes.max()) + 1):
            share = self.resample({"share": MetaTensor((classes == number).float(), affine=labels.affine)})["share"]
            if number == 0:
                affine, largest = share.affine, share.as_tensor()
                best = torch.zeros_like(largest, dtype=classes.dtype)
                continue
            is_larger = share.as_tensor() > largest
            best[is_larger] = number
            largest = torch.maximum(largest, share.as_tensor())
        return MetaTensor(best, affine=affine)
