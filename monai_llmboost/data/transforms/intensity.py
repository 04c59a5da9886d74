# SPDX-License-Identifier: Apache-2.0
"""Scaling of a scan's intensities to what a network sees: by a window, by percentiles, or not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends
from torch import Tensor

from monai_llmboost.arguments import check_choice

SCHEMES = ("window", "percentiles", "unchanged")
# Percentiles are taken from some of the voxels of larger volumes, evenly chosen.
MOST_VALUES = 1 << 21


class ScaleScand(MapTransform):
    """Scale the intensities of each channel to 0 to 1, clipped.

    Args:
        keys: keys of volumes (channels, i, j, k).
        intensity: ``"window"``: ``intensity_range`` is [low, high] in the units of the scans (CT: HU);
            ``"percentiles"``: in percent, of each channel of each scan (MR, whose units mean nothing); or
            ``"unchanged"``.
        intensity_range: low and high.

    Raises:
        ValueError: an unknown scheme, or no range of it.

    Example:
        >>> volume = MetaTensor(torch.tensor([-2000.0, -100.0, 300.0, 900.0]).reshape(1, 2, 2, 1))
        >>> ScaleScand("image", "window", [-100, 300])({"image": volume})["image"].flatten().tolist()
        [0.0, 0.0, 1.0, 1.0]
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (as in every transform of MONAI)

    def __init__(
        self, keys: KeysCollection, intensity: str = "percentiles", intensity_range: Sequence[float] = (0.5, 99.5)
    ) -> None:
        super().__init__(keys)
        check_choice("intensity", intensity, SCHEMES)
        self.intensity = intensity
        self.intensity_range = [] if intensity == "unchanged" else check_range(intensity, intensity_range)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the item with scaled volumes."""
        scaled = dict(data)
        for key in self.key_iterator(scaled):
            if self.intensity != "unchanged":
                scaled[key] = self._scale(scaled[key])
        return scaled

    def _scale(self, volume: Tensor) -> Tensor:
        whole = torch.as_tensor(volume, dtype=torch.float32)
        plain = whole.as_tensor() if isinstance(whole, MetaTensor) else whole
        scaled = torch.empty_like(plain)
        for number, channel in enumerate(plain):
            low, high = self.intensity_range
            if self.intensity == "percentiles":
                low, high = percentiles_of(channel, (low, high))
            # A channel without contrast, such as one filled with zeros, becomes zero.
            scaled[number] = ((channel - low) / (high - low)).clamp_(0, 1) if high > low else 0.0
        return MetaTensor(scaled, meta=dict(volume.meta)) if isinstance(volume, MetaTensor) else scaled


def percentiles_of(channel: Tensor, percent: Sequence[float]) -> list[float]:
    """Return percentiles of a volume; if both ends are equal, such as in a sparse mask, its smallest and largest value.

    Args:
        channel: (i, j, k).
        percent: 0 to 100, in rising order.
    """
    values = channel.flatten()
    step = max(1, len(values) // MOST_VALUES)
    while math.gcd(step, len(values)) > 1:  # else it would meet the same voxels of each row
        step += 1
    found = np.percentile(values[::step].numpy(), percent).tolist()
    return found if found[-1] > found[0] else [float(channel.min()), *found[1:-1], float(channel.max())]


def check_range(intensity: str, given: Sequence[float]) -> list[float]:
    """Return the low and high value of a scheme.

    Raises:
        ValueError: not two rising numbers; percentages that are not from 0 to 100.
    """
    try:
        low, high = (float(value) for value in given)
    except (TypeError, ValueError):
        low = high = 0.0
    if not low < high or (intensity == "percentiles" and not 0 <= low < high <= 100):
        example = "[0.5, 99.5]" if intensity == "percentiles" else "[-1000, 1000]"
        raise ValueError(f"intensity_range of {intensity} must be [low, high], not {given!r}: give {example}, say")
    return [low, high]
