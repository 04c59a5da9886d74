# SPDX-License-Identifier: Apache-2.0
"""Tokens of images and volumes: patches, learned embeddings, pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from monai_llmboost.arguments import check_choice, check_whole

POOLS = ("cls", "mean")
# Patches along an axis that are chosen if no patch size is given.
FEWEST_PATCHES, MOST_PATCHES = 4, 8


def grid_of(
    img_size: Sequence[int] | int, patch_size: Sequence[int] | int | None, spatial_dims: int = 3
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes of the volume and of a patch along each axis; one number is used for all axes.

    Without ``patch_size``, there are 4 to 8 patches along each axis, as many as possible.

    Raises:
        ValueError: a wrong number of sizes, a size below 1, or a volume that is not a whole number of patches.
    """
    sizes: list[tuple[int, ...]] = []
    for name, size in (("img_size", img_size), ("patch_size", patch_size)):
        if size is None:
            sizes.append(tuple(map(_patch_size, sizes[0])))
            continue
        try:
            sizes.append(ensure_tuple_rep(size, spatial_dims))
        except ValueError as error:
            raise ValueError(f"{name} {size} has another number of axes: give one number or {spatial_dims}") from error
        for number in sizes[-1]:
            check_whole(f"each number of {name}", number, 1)
    size, patch = sizes
    if any(s % p for s, p in zip(size, patch)):
        raise ValueError(
            f"img_size {size} is no multiple of patch_size {patch} along each axis: choose another patch_size, or "
            "resize the volumes"
        )
    return size, patch


def _patch_size(size: int) -> int:
    """Return the size of a patch along an axis of ``size`` voxels, of which there are 4 to 8; 1 up to 8 voxels.

    Raises:
        ValueError: no number of patches from 4 to 8 divides the size.
    """
    if size <= MOST_PATCHES:
        return 1
    for count in range(MOST_PATCHES, FEWEST_PATCHES - 1, -1):
        if size % count == 0:
            return size // count
    raise ValueError(
        f"an axis of {size} voxels cannot be divided into {FEWEST_PATCHES} to {MOST_PATCHES} patches: give patch_size, "
        f"or resize the volumes, such as to {round(size / MOST_PATCHES) * MOST_PATCHES} voxels"
    )


def check_pool(pool: str) -> str:
    """Return ``pool`` if it is valid.

    Raises:
        ValueError: ``pool`` is not in ``POOLS``.
    """
    check_choice("pool", pool, POOLS)
    return pool


def learned_embedding(*shape: int) -> nn.Parameter:
    """Return a learned token or position embedding, drawn from N(0, 1) as in the published R-LLM networks."""
    return nn.Parameter(torch.randn(*shape))


class PatchTokens(nn.Module):
    """One token per patch of an image or volume, ``LayerNorm(W LayerNorm(patch) + b)``, after an optional stem.

    The first norm removes the mean and contrast of a patch, which carry most information in segmented shapes. A stem,
    which also sees across the edges of patches, restores it (Xiao et al. 2021, arXiv:2106.14881).

    Args:
        in_channels: channels of the volume.
        img_size: size along the axes, three for a volume or two for an image.
        patch_size: patch size along the axes.
        hidden_size: features of a token, C.
        stem_channels: features per voxel of a stem (a convolution with kernel size 3, a norm and a GELU); 0 for no
            stem, as in the published R-LLM networks.

    Raises:
        ValueError: ``stem_channels`` is not a whole number from 0; in ``forward``, a volume of another size.

    Example:
        >>> PatchTokens(1, (8, 12, 16), (4, 4, 8), hidden_size=10)(torch.zeros(2, 1, 8, 12, 16)).shape
        torch.Size([2, 2, 6, 10])
        >>> PatchTokens(3, (32, 32), (8, 8), hidden_size=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 4, 4, 10])
    """

    def __init__(
        self,
        in_channels: int,
        img_size: tuple[int, ...],
        patch_size: tuple[int, ...],
        hidden_size: int,
        stem_channels: int = 0,
    ) -> None:
        super().__init__()
        check_whole("stem_channels", stem_channels, 0, advice="0 is for no stem")
        dims = len(img_size)
        self.shape = [in_channels, *img_size]
        self.cut = [number for size, patch in zip(img_size, patch_size) for number in (size // patch, patch)]
        self.grid = [size // patch for size, patch in zip(img_size, patch_size)]  # patches along each axis
        self.tokens = [self.grid[0], math.prod(self.grid[1:])]
        # Order within a patch of a volume, as in the published checkpoints: second axis, third, first, channel.
        within = [3 + 2 * axis for axis in (range(dims) if dims < 3 else (1, 2, 0))]
        self.order = [0, *(2 + 2 * axis for axis in range(dims)), *within, 1]
        self.stem: nn.Module = nn.Identity()
        if stem_channels:
            convolution = (nn.Conv2d, nn.Conv3d)[dims - 2](in_channels, stem_channels, kernel_size=3, padding=1)
            self.stem = nn.Sequential(convolution, nn.GroupNorm(1, stem_channels), nn.GELU())
        self.voxels = (stem_channels or in_channels) * math.prod(patch_size)
        self.norm_in = nn.LayerNorm(self.voxels)
        self.project = nn.Linear(self.voxels, hidden_size)
        self.norm_out = nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, S0, S1[, S2]) to tokens (B, G0, G1 [* G2], C); G is the number of patches along an axis."""
        if list(x.shape[1:]) != self.shape:
            raise ValueError(
                f"volumes of shape {list(x.shape)} do not fit a network for (batch, {self.shape}): resize the volumes, "
                "or build the network with their img_size"
            )
        x = self.stem(x)
        x = x.reshape([x.shape[0], x.shape[1]] + self.cut).permute(self.order)  # (B, G0, G1, ..., P1, ..., channel)
        x = x.reshape([x.shape[0]] + self.tokens + [self.voxels])
        return self.norm_out(self.project(self.norm_in(x)))
