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

    def attend(self, x: Tensor) -> Tensor:
        """Every token looks at every token, (B, N, D) -> (B, N, D)."""
        b, n, _ = x.shape
        q = self.query(x).view(b, n, self.num_heads, self.head_size).transpose(1, 2)  # (B, heads, N, head size)
        k = self.key(x).view(b, n, self.num_kv_heads, self.head_size).transpose(1, 2)  # (B, kv heads, N, head size)
        v = self.value(x).view(b, n, self.num_kv_heads, self.head_size).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.num_kv_heads != self.num_heads)
        return self.output(y.transpose(1, 2).reshape(b, n, self.num_heads * self.head_size))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) to tokens (B, N, D)."""
        h = x + self.attend(self.attention_norm(x))
        m = self.mlp_norm(h)
        return h + self.down(F.silu(self.gate(m)) * self.up(m))

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
