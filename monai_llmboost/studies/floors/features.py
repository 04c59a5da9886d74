# SPDX-License-Identifier: Apache-2.0
"""Features of volumes for the floors: numbers, reduced volumes, and the output of untrained convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.nn import functional

from monai_llmboost.networks.features import UntrainedConvolutions

BINS = 16  # of the intensity histogram
LARGEST_SIDE = 32  # of reduced volumes, voxels: a larger one makes a floor slow, not better
SHAPE_NUMBERS = (
    "volume of the mask", "extent along axis 0", "extent along axis 1", "extent along axis 2", "surface",
    "surface / volume^(2/3)",
)  # fmt: skip
INTENSITY_NUMBERS = ("mean intensity", "standard deviation", "smallest intensity", "largest intensity")
BINNED = tuple(f"histogram {number}" for number in range(BINS))
NUMBERS = (*SHAPE_NUMBERS, *INTENSITY_NUMBERS, *BINNED)  # of each channel


def volume_numbers(images: Tensor, seed: int = 0) -> Tensor:
    """Return the ``NUMBERS`` of each channel: (B, C, S0, S1, S2) -> (B, C * len(NUMBERS)).

    The mask has the voxels above the middle between the smallest and the largest intensity of a volume, so that it
    needs no training cases; the bins of the histogram divide the same range.

    Args:
        images: volumes.
        seed: not used; nothing here is random.
    """
    values = images.flatten(2)  # (B, C, voxels)
    low, high = values.amin(2), values.amax(2)
    mask = images > ((low + high) / 2)[..., None, None, None]
    volume = mask.flatten(2).sum(2).float()
    padded = functional.pad(mask, (1,) * 6)
    surface = torch.stack([padded.diff(dim=axis).flatten(2).sum(2) for axis in (2, 3, 4)]).sum(0)
    shape = [volume, *(_extent(mask, axis) for axis in (2, 3, 4)), surface, surface / volume.clamp_min(1) ** (2 / 3)]
    relative = (values - low[..., None]) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)[..., None]
    bins = (relative * BINS).long().clamp(0, BINS - 1)
    histogram = torch.zeros(*values.shape[:2], BINS).scatter_add_(2, bins, torch.ones_like(values)) / values.shape[2]
    numbers = torch.stack([*shape, values.mean(2), values.std(2), low, high], dim=2)
    return torch.cat([numbers, histogram], dim=2).flatten(1)


def _extent(mask: Tensor, axis: int) -> Tensor:
    """Return the length of the bounding box of each mask (B, C, S0, S1, S2) along an axis, 0 if it is empty: (B, C)."""
    occupied = mask.movedim(axis, -1).flatten(2, 3).any(dim=2)  # (B, C, S)
    place = torch.arange(occupied.shape[-1])
    last, first = torch.where(occupied, place, -1).amax(-1), torch.where(occupied, -place, -len(place)).amax(-1)
    return (last + first + 1).clamp_min(0).float()


def reduced_volumes(images: Tensor, seed: int = 0) -> Tensor:
    """Return the voxels of volumes of at most ``LARGEST_SIDE`` voxels along each axis: (B, C, S0, S1, S2) -> (B, V)."""
    x, y, z = (min(side, LARGEST_SIDE) for side in images.shape[2:])
    return functional.adaptive_avg_pool3d(images, (x, y, z)).flatten(1)


def untrained_convolutions(images: Tensor, seed: int) -> Tensor:
    """Return the features of :class:`monai_llmboost.networks.features.UntrainedConvolutions` with this seed."""
    return UntrainedConvolutions(images.shape[1:], seed)(images)


def plain(images: Tensor) -> Tensor:
    """Return volumes in float32 without metadata, whose upkeep takes time."""
    return (images.as_tensor() if isinstance(images, MetaTensor) else images).float()


def single_numbers(images: Tensor) -> dict[str, Tensor]:
    """Return the numbers of each volume (B,) that may alone betray its class: what the mask measures, and its header.

    Args:
        images: volumes (B, C, S0, S1, S2); the header is known if they are a ``MetaTensor``.
    """
    shape = volume_numbers(plain(images)).unflatten(1, (images.shape[1], len(NUMBERS)))
    channels = range(images.shape[1])
    named = {name if len(channels) == 1 else f"{name}, channel {channel}": shape[:, channel, NUMBERS.index(name)]
             for channel in channels for name in ("volume of the mask", "mean intensity")}  # fmt: skip
    named["number of voxels"] = torch.full((len(images),), float(images[0, 0].numel()))
    return {**named, **_header_numbers(images)}


def _header_numbers(images: Tensor) -> dict[str, Tensor]:
    """Return size and spacing of the scans before preprocessing, if the volumes have kept them."""
    metadata: Mapping[str, Any] = images.meta if isinstance(images, MetaTensor) else {}
    numbers = {}
    if (size := metadata.get("spatial_shape")) is not None:
        numbers["number of voxels of the scan"] = torch.as_tensor(size).reshape(len(images), -1).float().prod(1)
    if (affine := metadata.get("original_affine")) is not None:
        spacing = torch.as_tensor(affine).reshape(len(images), 4, 4)[:, :3, :3].norm(dim=1).float()
        numbers |= {f"voxel spacing along axis {axis}": spacing[:, axis] for axis in range(3)}
    return numbers
