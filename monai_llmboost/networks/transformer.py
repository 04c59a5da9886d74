# SPDX-License-Identifier: Apache-2.0
"""Pre-norm transformer layers, in a row of which a part can be run."""

from __future__ import annotations

from monai.networks.blocks import MLPBlock
from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.arguments import check_whole


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
        """Map tokens (B, N, C) to tokens (B, N, C)."""
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
        """Map tokens (B, N, C) to tokens (B, N, C)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class TransformerLayers(nn.Sequential):
    """A stack of layers; a call can run a part of it, so that a booster can stand between two of them."""

    def forward(self, x: Tensor, first: int = 0, stop: int | None = None) -> Tensor:
        """Map tokens (B, N, C) through the layers from ``first`` to before ``stop`` (by default all), to (B, N, C)."""
        for index, layer in enumerate(self):
            if index >= first and (stop is None or index < stop):
                x = layer(x)
        return x


def transformer_layers(
    num_layers: int, hidden_size: int, mlp_dim: int, num_heads: int, head_size: int | None, dropout_rate: float
) -> TransformerLayers:
    """Make ``num_layers`` layers in a row; ``head_size=None`` divides the token's width among the heads.

    Raises:
        ValueError: a number below 1, heads that do not divide the width, or a dropout rate outside 0 to 1.
    """
    counts = {"num_layers": num_layers, "hidden_size": hidden_size, "mlp_dim": mlp_dim, "num_heads": num_heads}
    for name, count in {**counts, **({} if head_size is None else {"head_size": head_size})}.items():
        check_whole(name, count, 1)
    if head_size is None and hidden_size % num_heads:
        raise ValueError(
            f"num_heads {num_heads} does not divide hidden_size {hidden_size}: choose others, or give head_size"
        )
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate must be from 0 to below 1, not {dropout_rate}")
    size = hidden_size // num_heads if head_size is None else head_size
    return TransformerLayers(
        *(TransformerLayer(hidden_size, mlp_dim, num_heads, size, dropout_rate) for _ in range(num_layers))
    )
