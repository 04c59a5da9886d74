# SPDX-License-Identifier: Apache-2.0
"""The parts that ViT3D and ViViT share: patch embedding, pre-norm transformer layers, the booster's position."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from monai.networks.blocks import MLPBlock
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.arguments import is_whole
from monai_llmboost.llm import Signature
from monai_llmboost.networks.wrappers import unwrap

POOLS = ("cls", "mean")
POSITIONS = ("last", "middle", "head")


def grid_of(img_size: Sequence[int] | int, patch_size: Sequence[int] | int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The volume's size and the patch's size along three axes.

    Raises:
        ValueError: not three sizes, a size below 1, or a volume that is no whole number of patches.
    """
    try:
        size, patch = ensure_tuple_rep(img_size, 3), ensure_tuple_rep(patch_size, 3)
    except ValueError as error:
        raise ValueError(f"expected one or three sizes, got img_size {img_size} and patch_size {patch_size}") from error
    if not all(map(is_whole, (*size, *patch))):
        raise ValueError(f"expected sizes as whole numbers, got img_size {size} and patch_size {patch}")
    if min(*size, *patch) < 1:
        raise ValueError(f"expected sizes from 1, got img_size {size} and patch_size {patch}")
    if any(s % p for s, p in zip(size, patch)):
        raise ValueError(
            f"expected img_size to be a multiple of patch_size along each axis, got {size} and {patch}: "
            "choose another patch_size, or resize the volumes"
        )
    return size, patch


def check_pool(pool: str) -> str:
    """``pool`` itself; raises ValueError if it is no way of pooling."""
    if pool not in POOLS:
        raise ValueError(f"expected pool to be one of {', '.join(POOLS)}, got {pool!r}")
    return pool


def check_booster_fits(booster: nn.Module | None, hidden_size: int, position: str, pool: str) -> nn.Module:
    """The booster, or what stands for none.

    Raises:
        ValueError: the booster takes tokens of another width, or masks all that the token that is read could see.
    """
    if booster is None:
        return nn.Identity()
    channels = getattr(booster, "channels", hidden_size)
    if channels != hidden_size:
        raise ValueError(
            f"expected a booster with channels={hidden_size}, the network's hidden_size, got channels={channels}"
        )
    if position == "last" and pool == "cls" and getattr(getattr(booster, "block", None), "causal", False):
        raise ValueError(
            "expected pool mean, or another position, with a causal block, got pool cls behind the last layer: the CLS "
            "token stands first and would see no other"
        )
    return booster


def reads_few(booster: nn.Module) -> bool:
    """Whether a booster can be asked for its first few tokens only, ``booster(x, read)``."""
    return "read" in inspect.signature(unwrap(booster).forward).parameters


def layers_before_booster(position: str, num_layers: int) -> int:
    """How many of the layers run before a booster at ``position``; the others run behind it.

    Raises:
        ValueError: an unknown position, or a middle with no layer on one of its sides.
    """
    if position not in POSITIONS:
        raise ValueError(f"expected position to be one of {', '.join(POSITIONS)}, got {position!r}")
    if position != "middle":
        return num_layers
    if num_layers < 2:
        raise ValueError(
            f"expected at least 2 layers around position 'middle', got {num_layers}: "
            "take more layers, or position 'last'"
        )
    return num_layers // 2


def network_signature(
    network: nn.Module,
    patch_size: tuple[int, ...],
    num_heads: int,
    pool: str,
    booster: nn.Module | None = None,
    position: str = "last",
    stem_channels: int = 0,
) -> Signature:
    """What changes a network's output and is not or badly seen in the shapes of its weights, for its checkpoints.

    The position is told where it matters: not of a plain network, and not of a booster behind the last layer.
    """
    stem = f", stem of {stem_channels} channels" if stem_channels else ""
    place = "" if booster is None or position == "last" else f", booster at position {position}"
    return Signature(
        "network",
        f"{type(network).__name__}, patches of {patch_size}, {num_heads} heads, pool {pool}{stem}{place}",
        "give the options that it was trained with",
    )


class PatchTokens(nn.Module):
    """Volume -> one token per patch: ``LayerNorm(W LayerNorm(patch) + b)``, of the stem's features if there is a stem.

    The first norm hides how full or how bright a patch is, which a segmented shape is all about; a stem, which looks
    across the edges of patches too, gives it back (Xiao et al. 2021, arXiv:2106.14881).

    Args:
        in_channels: channels of the volume.
        img_size: size along the three axes.
        patch_size: patch size along the three axes.
        hidden_size: features of a token, C.
        stem_channels: features that a convolution over 3 x 3 x 3 voxels, a norm and a GELU make of each voxel; 0 for no
            stem, as in the published R-LLM networks.

    Raises:
        ValueError: a stem of no whole number of channels, or of fewer than 0; in ``forward``, a volume of another size.
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
        if not is_whole(stem_channels) or stem_channels < 0:
            raise ValueError(f"expected stem_channels as a whole number from 0, got {stem_channels}: 0 is for no stem")
        self.in_channels = in_channels
        self.size0, self.size1, self.size2 = img_size
        self.patch0, self.patch1, self.patch2 = patch_size
        self.stem: nn.Module = nn.Identity()
        if stem_channels:
            convolution = nn.Conv3d(in_channels, stem_channels, kernel_size=3, padding=1)
            self.stem = nn.Sequential(convolution, nn.GroupNorm(1, stem_channels), nn.GELU())
        voxels = (stem_channels or in_channels) * self.patch0 * self.patch1 * self.patch2
        self.norm_in = nn.LayerNorm(voxels)
        self.project = nn.Linear(voxels, hidden_size)
        self.norm_out = nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Volumes (B, channels, S0, S1, S2) to tokens (B, G0, G1 * G2, C), G the number of patches along an axis."""
        if (
            x.dim() != 5
            or x.shape[1] != self.in_channels
            or x.shape[2] != self.size0
            or x.shape[3] != self.size1
            or x.shape[4] != self.size2
        ):
            raise ValueError(
                f"expected volumes of shape (batch, {self.in_channels}, {self.size0}, {self.size1}, {self.size2}), "
                f"got {list(x.shape)}: resize the volumes or build the network with their img_size"
            )
        x = self.stem(x)
        b, c = x.shape[0], x.shape[1]
        g0, g1, g2 = self.size0 // self.patch0, self.size1 // self.patch1, self.size2 // self.patch2
        x = x.reshape(b, c, g0, self.patch0, g1, self.patch1, g2, self.patch2)
        # Within a patch: second axis, third axis, first axis, channel, the order of the published R-LLM checkpoints.
        x = x.permute(0, 2, 4, 6, 5, 7, 3, 1).reshape(b, g0, g1 * g2, -1)
        return self.norm_out(self.project(self.norm_in(x)))


class SelfAttention(nn.Module):
    """Multi-head self-attention whose head size is free: heads x head size need not be the token's width.

    (MONAI's ``SABlock`` passes its dropout to scaled-dot-product attention in ``eval()`` too, so it cannot stand here.)
    """

    def __init__(self, hidden_size: int, num_heads: int, head_size: int, dropout_rate: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_size = head_size
        self.dropout_rate = dropout_rate
        self.qkv = nn.Linear(hidden_size, 3 * num_heads * head_size, bias=False)
        self.out = nn.Linear(num_heads * head_size, hidden_size)
        self.drop = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C)."""
        b, n, _ = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.num_heads, self.head_size).permute(2, 0, 3, 1, 4)
        dropout = self.dropout_rate if self.training else 0.0
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], dropout_p=dropout)  # (B, heads, N, head size)
        return self.drop(self.out(y.transpose(1, 2).reshape(b, n, self.num_heads * self.head_size)))


class TransformerLayer(nn.Module):
    """One pre-norm layer: ``x = x + attention(norm(x))``; ``x = x + mlp(norm(x))``."""

    def __init__(self, hidden_size: int, mlp_dim: int, num_heads: int, head_size: int, dropout_rate: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = SelfAttention(hidden_size, num_heads, head_size, dropout_rate)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = MLPBlock(hidden_size, mlp_dim, dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class TransformerLayers(nn.Sequential):
    """Layers in a row, of which a call may ask for a part, so that a booster can stand between two of them."""

    def forward(self, x: Tensor, first: int = 0, stop: int | None = None) -> Tensor:
        """Tokens (B, N, C) through the layers from ``first`` to before ``stop`` (by default all), to (B, N, C)."""
        for index, layer in enumerate(self):
            if index >= first and (stop is None or index < stop):
                x = layer(x)
        return x


def transformer_layers(
    num_layers: int, hidden_size: int, mlp_dim: int, num_heads: int, head_size: int | None, dropout_rate: float
) -> TransformerLayers:
    """``num_layers`` layers in a row; ``head_size=None`` divides the token's width among the heads.

    Raises:
        ValueError: a number below 1, heads that do not divide the width, or a dropout rate outside 0 to 1.
    """
    counts = (num_layers, hidden_size, mlp_dim, num_heads, 1 if head_size is None else head_size)
    if not all(map(is_whole, counts)) or min(counts) < 1:
        raise ValueError(
            f"expected whole numbers from 1, got num_layers {num_layers}, hidden_size {hidden_size}, "
            f"mlp_dim {mlp_dim}, num_heads {num_heads}, head_size {head_size}"
        )
    if head_size is None and hidden_size % num_heads:
        raise ValueError(
            f"expected num_heads to divide hidden_size, got {num_heads} and {hidden_size}: "
            "choose others or give head_size"
        )
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"expected dropout_rate from 0 to below 1, got {dropout_rate}")
    size = hidden_size // num_heads if head_size is None else head_size
    return TransformerLayers(
        *(TransformerLayer(hidden_size, mlp_dim, num_heads, size, dropout_rate) for _ in range(num_layers))
    )


def learned_embedding(*shape: int) -> nn.Parameter:
    """A learned token or position table, drawn from N(0, 1) as in the published R-LLM networks."""
    return nn.Parameter(torch.randn(*shape))
