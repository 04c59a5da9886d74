# SPDX-License-Identifier: Apache-2.0
"""One decoder layer of the LLaMA family, run on visual tokens: no positions, no mask, in both directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.llm.geometry import BlockGeometry


class DecoderBlock(nn.Module):
    """One pre-trained layer: RMSNorm, grouped-query attention, RMSNorm, SwiGLU, two residuals.

    ``h = x + W_O attention(W_Q n(x), W_K n(x), W_V n(x))``; ``y = h + W_down(silu(W_gate n(h)) * W_up n(h))``

    A language model adds rotary positions to queries and keys and masks the future. Visual tokens have no such order,
    so both are left out (Pang et al. 2024, arXiv:2310.12973, section 3), which makes the layer
    permutation-equivariant: ``block(x[:, p]) == block(x)[:, p]``.

    Args:
        geometry: the widths and head counts.
    """

    def __init__(self, geometry: BlockGeometry) -> None:
        super().__init__()
        self.width = geometry.width
        self.num_heads = geometry.num_heads
        self.num_kv_heads = geometry.num_kv_heads
        self.head_size = geometry.head_size
        inner, kv = geometry.num_heads * geometry.head_size, geometry.num_kv_heads * geometry.head_size
        self.attention_norm = nn.RMSNorm(geometry.width, eps=geometry.norm_eps)
        self.query = nn.Linear(geometry.width, inner, bias=False)
        self.key = nn.Linear(geometry.width, kv, bias=False)
        self.value = nn.Linear(geometry.width, kv, bias=False)
        self.output = nn.Linear(inner, geometry.width, bias=False)
        self.mlp_norm = nn.RMSNorm(geometry.width, eps=geometry.norm_eps)
        self.gate = nn.Linear(geometry.width, geometry.mlp_width, bias=False)
        self.up = nn.Linear(geometry.width, geometry.mlp_width, bias=False)
        self.down = nn.Linear(geometry.mlp_width, geometry.width, bias=False)

    def attend(self, x: Tensor, read: int | None = None) -> Tensor:
        """What the heads of the first ``read`` normed tokens (B, N, D) gather from all, (B, R, heads * head size)."""
        b, n, _ = x.shape
        rows = x if read is None else x[:, :read]
        q = self.query(rows).view(b, rows.shape[1], self.num_heads, self.head_size).transpose(1, 2)
        k = self.key(x).view(b, n, self.num_kv_heads, self.head_size).transpose(1, 2)  # (B, kv heads, N, head size)
        v = self.value(x).view(b, n, self.num_kv_heads, self.head_size).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.num_kv_heads != self.num_heads)
        return y.transpose(1, 2).reshape(b, rows.shape[1], self.num_heads * self.head_size)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention: tokens (B, R, D) and what their heads gathered, to tokens (B, R, D)."""
        h = x + self.output(attended)
        m = self.mlp_norm(h)
        return h + self.down(F.silu(self.gate(m)) * self.up(m))

    def forward(self, x: Tensor, read: int | None = None) -> Tensor:
        """Tokens (B, N, D) to tokens (B, N, D), or to the first ``read`` of them, (B, R, D)."""
        rows = x if read is None else x[:, :read]
        return self.finish(rows, self.attend(self.attention_norm(x), read))

    @classmethod
    def from_tensors(cls, geometry: BlockGeometry, tensors: dict[str, Tensor]) -> DecoderBlock:
        """The layer over these tensors, which are used as they are, not copied.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape than the geometry says.
        """
        geometry.check_tensors(tensors)
        with torch.device("meta"):
            block = cls(geometry)
        block.load_state_dict(tensors, strict=True, assign=True)
        return block
