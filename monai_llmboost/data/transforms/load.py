# SPDX-License-Identifier: Apache-2.0
"""Loading of a case of one or several scans as one channel-first volume on one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import EnsureChannelFirst, MapTransform, ResampleToMatch
from monai.utils import TransformBackends

from monai_llmboost.arguments import check_choice, check_whole
from monai_llmboost.data.labelled.case import MISSING
from monai_llmboost.data.scans.scan import RefusedScan

# Grids whose affines differ by less are one grid, mm.
SAME_GRID_MM = 1e-3
# A channel must cover this part of the first one's grid, and a smaller part than WHOLE is reported.
LEAST_COVER, WHOLE = 0.5, 0.98
# Points along each axis at which the cover is measured.
PROBES = 12


class LoadScansd(MapTransform):
    """Load scans as (channels, i, j, k) float32, with the affine of the first one to RAS+ mm.

    The item has one path for a network of one channel, and a sequence of paths for several; ``None`` or an empty text
    is a missing channel. Channels on another grid are resampled linearly to the grid of the first that is there, with
    zeros outside.

    Args:
        keys: keys of the paths.
        reader: reader of one scan.
        channels: number of channels, or their names.
        missing: ``"refuse"`` a case with a missing channel, or fill it with ``"zeros"`` and a warning.
        like: key of a loaded volume, to whose grid a mask is resampled (nearest neighbour); ``None`` for images.
        allow_missing_keys: accept items without some of the keys.

    Raises:
        ValueError: an unknown ``missing``.
        RefusedScan: from the call: a scan that cannot be read correctly, a missing channel, or channels of different
            places.

    Example:
        >>> from monai_llmboost.data import ScanReader
        >>> load = LoadScansd("image", ScanReader(), channels=["T1", "FLAIR"])
        >>> load({"image": ["t1.nii.gz", None]})
        Traceback (most recent call last):
        monai_llmboost.data.scans.scan.RefusedScan: the channel FLAIR is missing: give it, or allow zeros in its place
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (as in every transform of MONAI)
    loads = True

    def __init__(
        self,
        keys: KeysCollection,
        reader: ImageReader,
        channels: int | Sequence[str] = 1,
        missing: str = "refuse",
        like: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_choice("missing", missing, MISSING)
        if isinstance(channels, int):
            check_whole("channels", channels, 1)
            channels = [f"{number + 1}" for number in range(channels)]
        self.reader = reader
        self.channels = list(channels)
        self.missing = missing
        self.like = like

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the item with volumes instead of paths."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            if self.like is None:
                loaded[key] = self._load(data[key])
            else:
                loaded[key] = _match(self._read_named(key, data[key]), loaded[self.like], "nearest")
        return loaded

    def _load(self, given: Any) -> MetaTensor:
        if len(self.channels) == 1:
            if not given:
                raise RefusedScan("the case has no image: give one", kind="channels")
            return self._read(given)
        sources = [given] if isinstance(given, (str, Path)) else list(given)
        if len(sources) != len(self.channels):
            raise RefusedScan(
                f"expected {len(self.channels)} scans ({', '.join(self.channels)}), got {len(sources)}: give one for "
                "each channel, in this order",
                kind="channels",
            )
        absent = [name for name, source in zip(self.channels, sources) if not source]
        if absent and (self.missing == "refuse" or len(absent) == len(sources)):
            raise RefusedScan(
                f"the channel {', '.join(absent)} is missing: give it, or allow zeros in its place", kind="channels"
            )
        volumes = [
            self._read_named(f"channel {name}", source) if source else None
            for name, source in zip(self.channels, sources)
        ]
        first = next(volume for volume in volumes if volume is not None)
        warnings = [f"the channel {name} is missing and was filled with zeros" for name in absent]
        parts = []
        for name, volume in zip(self.channels, volumes):
            if volume is None:
                parts.append(torch.zeros_like(first.as_tensor()))
                continue
            warnings += [f"{name}: {line}" for line in volume.meta.get("warnings", "").splitlines()]
            parts.append(_to_grid(name, volume, first, warnings).as_tensor())
        whole = MetaTensor(torch.cat(parts), meta=dict(first.meta))
        whole.meta["warnings"] = "\n".join(warnings)
        return whole

    def _read_named(self, name: str, source: Any) -> MetaTensor:
        try:
            return self._read(source)
        except RefusedScan as error:
            raise RefusedScan(f"{name}: {error}", may_pass=error.may_pass, kind=error.kind) from error

    def _read(self, source: Any) -> MetaTensor:
        files = [source] if isinstance(source, (str, Path)) else list(source)
        array, meta = self.reader.get_data(self.reader.read(files))
        meta["filename_or_obj"] = str(files[0])
        loaded = MetaTensor.ensure_torch_and_prune_meta(array, meta)
        whole: Any = EnsureChannelFirst(channel_dim="no_channel")(loaded)
        return whole


def _to_grid(name: str, volume: MetaTensor, first: MetaTensor, warnings: list[str]) -> MetaTensor:
    """Return a channel on the grid of the first one."""
    if _is_same_grid(volume, first):
        return volume
    cover = grid_cover(volume.shape[1:], volume.affine.numpy(), first.shape[1:], first.affine.numpy())
    if cover < LEAST_COVER:
        raise RefusedScan(
            f"channel {name} covers {100 * cover:.0f} % of the first channel's grid, so they are not of one place: "
            "give scans of one examination, or register them",
            kind="channels",
        )
    if cover < WHOLE:
        warnings.append(f"{name} covers {100 * cover:.0f} % of the first channel's grid; the rest is zero")
    return _match(volume, first, "bilinear")


def _match(volume: MetaTensor, like: MetaTensor, mode: str) -> MetaTensor:
    if _is_same_grid(volume, like):
        return volume
    matched: Any = ResampleToMatch(mode=mode, padding_mode="zeros", dtype=np.float32)(volume, img_dst=like)
    return matched


def _is_same_grid(volume: MetaTensor, other: MetaTensor) -> bool:
    same_place = torch.allclose(volume.affine, other.affine, rtol=0, atol=SAME_GRID_MM)
    return volume.shape[1:] == other.shape[1:] and same_place


def grid_cover(shape: Sequence[int], affine: np.ndarray, onto: Sequence[int], onto_affine: np.ndarray) -> float:
    """Return the part of a second grid, ``onto``, that lies in a first one.

    Args:
        shape: voxels of the first grid along (i, j, k).
        affine: (4, 4), its voxels to RAS+ mm.
        onto: voxels of the second grid.
        onto_affine: its voxels to RAS+ mm.

    Example:
        >>> grid_cover((10, 10, 10), np.eye(4), (10, 10, 20), np.eye(4))
        0.5
    """
    axes = [np.linspace(0, size - 1, PROBES) for size in onto]
    points = np.stack([*np.meshgrid(*axes, indexing="ij"), np.ones([PROBES] * 3)]).reshape(4, -1)
    places = (np.linalg.inv(affine) @ onto_affine @ points)[:3]
    ends = np.array(shape)[:, None] - 0.5
    return float(((places > -0.5) & (places < ends)).all(axis=0).mean())
