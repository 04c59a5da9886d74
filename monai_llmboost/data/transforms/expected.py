# SPDX-License-Identifier: Apache-2.0
"""Warnings about scans that are far from those of the training, in spacing or in intensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from monai_llmboost.data.transforms.intensity import percentiles_of

# A spacing outside of the training's range by more than this factor is reported.
FACTOR = 1.5
# So is an end of the intensities that is outside of the training's range by more than this part of the range.
PART = 0.25
ENDS = (0.5, 99.5)


class WarnIfUnusuald(MapTransform):
    """Add a warning to a volume's ``meta`` if its spacing or intensities are far from those of the training.

    Args:
        keys: keys of volumes (channels, i, j, k), oriented, before they are resampled and scaled.
        seen: ``"spacing_mm"``, the smallest and largest spacing along each axis in training, and ``"intensity"``, the
            smallest 0.5th and the largest 99.5th percentile; an empty mapping checks nothing.

    Example:
        >>> seen = {"spacing_mm": [[1, 1], [1, 1], [1, 2]], "intensity": [0, 255]}
        >>> volume = MetaTensor(255 * torch.rand(1, 4, 4, 4), affine=torch.diag(torch.tensor([1.0, 1.0, 5.0, 1.0])))
        >>> WarnIfUnusuald("image", seen)({"image": volume})["image"].meta["warnings"]
        'spacing 1 x 1 x 5 mm: in training from 1 x 1 x 1 to 1 x 1 x 2 mm'
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (as in every transform of MONAI)

    def __init__(self, keys: KeysCollection, seen: Mapping[str, Any] | None = None) -> None:
        super().__init__(keys)
        self.seen = dict(seen or {})

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the item; its volumes have the warnings."""
        for key in self.key_iterator(dict(data)):
            if isinstance(data[key], MetaTensor):
                earlier = data[key].meta.get("warnings", "").splitlines()
                data[key].meta["warnings"] = "\n".join([*earlier, *self._find(data[key])])
        return dict(data)

    def _find(self, volume: MetaTensor) -> list[str]:
        found = []
        ranges: Sequence[Sequence[float]] = self.seen.get("spacing_mm") or ()
        own = torch.linalg.norm(volume.affine[:3, :3], dim=0).tolist()
        if any(there < low / FACTOR or there > high * FACTOR for there, (low, high) in zip(own, ranges)):
            lows, highs = zip(*ranges)
            found.append(f"spacing {_product(own)} mm: in training from {_product(lows)} to {_product(highs)} mm")
        if limits := self.seen.get("intensity"):
            low, high = limits
            slack = PART * (high - low)
            ends = [percentiles_of(channel, ENDS) for channel in volume.as_tensor()]
            least, most = min(end[0] for end in ends), max(end[1] for end in ends)
            # A scan with a much smaller range is as unusual as one with a larger one, such as one in other units.
            if least < low - slack or most > high + slack or most - least < 0.01 * (high - low):
                found.append(f"intensities from {least:g} to {most:g}: in training from {low:g} to {high:g}")
        return found


def _product(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
