# SPDX-License-Identifier: Apache-2.0
"""Images and volumes as tokens: patches, learned tables, pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from monai_llmboost.arguments import check_choice, check_whole

POOLS = ("cls", "mean")


def grid_of(
    img_size: Sequence[int] | int, patch_size: Sequence[int] | int, spatial_dims: int = 3
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes of the volume and of a patch along each axis; one number stands for all axes.

    Raises:
        ValueError: another number of sizes, a size below 1, or a volume that is no whole number of patches.
    """
    sizes = []
    for name, size in (("img_size", img_size), ("patch_size", patch_size)):
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


def check_pool(pool: str) -> str:
    """Return ``pool`` itself.

    Raises:
        ValueError: it is none of ``POOLS``.
    """
    check_choice("pool", pool, POOLS)
    return pool


def learned_embedding(*shape: int) -> nn.Parameter:
    """Return a learned token or position table, drawn from N(0, 1) as in the published R-LLM networks."""
    return nn.Parameter(torch.randn(*shape))


class PatchTokens(nn.Module):
    """Image or volume -> one token per patch: ``LayerNorm(W LayerNorm(patch) + b)``, of the stem's features if any.

    The first norm hides how full or how bright a patch is, which a segmented shape is all about; a stem, which looks
    across the edges of patches too, gives it back (Xiao et al. 2021, arXiv:2106.14881).

    Args:
        in_channels: channels of the volume.
        img_size: size along the three axes, or two of an image.
        patch_size: patch size along the axes.
        hidden_size: features of a token, C.
        stem_channels: features that a convolution over 3 voxels along each axis, a norm and a GELU make of each voxel;
            0 for no stem, as in the published R-LLM networks.

    Raises:
        ValueError: a stem of no whole number of channels, or of fewer than 0; in ``forward``, a volume of another size.

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
        # Within a patch: the axes but the first of three, that one, channel: the order of the published checkpoints.
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
        """Map (B, channels, S0, S1[, S2]) to tokens (B, G0, G1 [* G2], C), G the number of patches along an axis."""
        if list(x.shape[1:]) != self.shape:
            raise ValueError(
                f"volumes of shape {list(x.shape)} do not fit a network for (batch, {self.shape}): resize the volumes, "
                "or build the network with their img_size"
            )
        x = self.stem(x)
        x = x.reshape([x.shape[0], x.shape[1]] + self.cut).permute(self.order)  # (B, G0, G1, ..., P1, ..., channel)
        x = x.reshape([x.shape[0]] + self.tokens + [self.voxels])
        return self.norm_out(self.project(self.norm_in(x)))
