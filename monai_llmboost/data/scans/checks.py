# SPDX-License-Identifier: Apache-2.0
"""Check of voxels before a network predicts them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends, ensure_tuple_rep

from monai_llmboost.arguments import check_switch
from monai_llmboost.data.scans.scan import RefusedScan, check_size

# A volume that uses a smaller part of the intensity range was most likely scaled before.
MIN_PART_OF_RANGE = 0.01
# Minimum number of different values of an image in a sample of this many voxels; a label map has fewer.
MIN_VALUES, SAMPLED_VOXELS = 64, 1 << 13
# Number of voxels that are compared at a time.
CHUNK_VOXELS = 1 << 20
EXPORT = "export it anew, or take it out"


class CheckVolumed(MapTransform):
    """Transform that refuses volumes outside the network's input range, for which predictions would mean nothing.

    Oddities of a volume that can still be predicted are added to its ``meta["warnings"]``, one sentence per line.

    Args:
        keys: keys of channel-first volumes.
        channels: number of channels of the network's input.
        intensity_range: lowest and highest voxel value in training; ``None`` checks none, for scans whose
            units mean nothing, or that a later transform clips.
        clip_intensities: accept values outside the range, which a later transform clips.
        min_size: minimum number of voxels along each axis, or along (i, j, k).

    Raises:
        ValueError: an invalid option.
        RefusedScan: from the call, with what was expected and what was found.

    Example:
        >>> import torch
        >>> data = CheckVolumed("image", intensity_range=(0, 255))({"image": 255 * torch.rand(1, 28, 28, 28)})
        >>> data["image"].shape
        torch.Size([1, 28, 28, 28])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (as in every transform of MONAI)

    def __init__(
        self,
        keys: KeysCollection,
        channels: int = 1,
        intensity_range: Sequence[float] | None = (0, 255),
        clip_intensities: bool = False,
        min_size: int | Sequence[int] = 2,
    ) -> None:
        super().__init__(keys)
        self.channels = channels
        self.has_range = intensity_range is not None
        try:
            self.low, self.high = map(float, (0, 1) if intensity_range is None else intensity_range)
        except (TypeError, ValueError):
            self.low = self.high = 0.0
        if not self.low < self.high:
            raise ValueError(f"intensity_range must be [low, high], not {intensity_range!r}")
        check_switch("clip_intensities", clip_intensities)
        self.clip_intensities = clip_intensities
        self.min_size = tuple(int(size) for size in ensure_tuple_rep(min_size, 3))

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the data unchanged if every volume passes."""
        for key in self.key_iterator(dict(data)):
            low, high = self._check(torch.as_tensor(data[key]))
            if isinstance(data[key], MetaTensor):
                self._warn(data[key], low, high)
        return dict(data)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Check the voxels along (i, j, k), which are known from the header.

        Raises:
            RefusedScan: too few voxels.
        """
        check_size(shape, self.min_size)

    def _check(self, volume: torch.Tensor) -> tuple[float, float]:
        """Return the lowest and the highest voxel value of a volume that passes."""
        if volume.dim() != 4 or volume.shape[0] != self.channels:
            raise RefusedScan(
                f"expected a volume with {self.channels} channel(s), got shape {tuple(volume.shape)}: give those that "
                "the network was trained with, and no others",
                kind="channels",
            )
        self.check_shape(volume.shape[1:])
        ends = torch.stack([torch.stack(torch.aminmax(part)) for part in _split(volume)])
        low, high = map(float, torch.aminmax(ends))  # NaN if a voxel is
        if not (math.isfinite(low) and math.isfinite(high)):
            wrong = sum(int((~torch.isfinite(part)).sum()) for part in _split(volume))
            raise RefusedScan(f"expected finite voxels, {wrong} are NaN or infinite: {EXPORT}", kind="not-finite")
        if low == high:
            raise RefusedScan(f"expected an image, every voxel is {low:g}: {EXPORT}", kind="constant")
        if not self.has_range:
            return low, high
        advice = "if this is right for your data, give --intensity_range '[low,high]'"
        if not self.clip_intensities:
            advice += " --clip_intensities True"
        if not self.clip_intensities and (low < self.low or high > self.high):
            message = f"expected voxels from {self.low:g} to {self.high:g}, as in training, got {low:g} to {high:g}"
            raise RefusedScan(f"{message}: {advice}", kind="range")
        if (high - low) < MIN_PART_OF_RANGE * (self.high - self.low):
            labels = _count_values(volume) < MIN_VALUES
            raise RefusedScan(
                f"expected voxels that use the range {self.low:g} to {self.high:g}, got {low:g} to {high:g}, perhaps "
                f"{'a map of labels' if labels else 'scaled before'}: {advice}",
                kind="label-map" if labels else "range",
            )
        return low, high

    def _warn(self, volume: MetaTensor, low: float, high: float) -> None:
        voxels = volume.as_tensor()
        warnings = volume.meta.get("warnings", "").splitlines()
        values = _count_values(voxels) if self.has_range else MIN_VALUES
        if values < MIN_VALUES < volume.numel():
            warnings.append(
                f"different values in some {SAMPLED_VOXELS} voxels: {values}; perhaps it is a map of labels, no image"
            )
        if self.has_range and (low < self.low or high > self.high):
            outside = sum(int(((part < self.low) | (part > self.high)).sum()) for part in _split(voxels))
            if outside:  # not if an end of the range is met in the dtype of the voxels
                share = 100 * outside / voxels.numel()
                warnings.append(f"clipped to {self.low:g} to {self.high:g}: {share:.2g} % of the voxels")
        if warnings:
            volume.meta["warnings"] = "\n".join(warnings)


def _split(volume: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return parts of some CHUNK_VOXELS voxels that lie together in memory, so that no copy is made of the volume."""
    voxels = torch.Tensor.as_subclass(volume, torch.Tensor)
    axis = max(range(voxels.dim()), key=lambda axis: (voxels.shape[axis] > 1, voxels.stride(axis)))
    return voxels.split(max(1, CHUNK_VOXELS * voxels.shape[axis] // voxels.numel()), axis)


def _count_values(volume: torch.Tensor) -> int:
    """Return the number of different values in a sample of voxels; counting all values would be slow."""
    voxels = volume.flatten()
    return len(torch.unique(voxels[:: max(1, len(voxels) // SAMPLED_VOXELS)]))
