# SPDX-License-Identifier: Apache-2.0
"""Reading a few tokens where scores are linear: attention over the visual tokens, whose number N meets no D features.

The equations of encoded_tokens.py hold with ``h_j = E x_j`` put in, and the size of a token comes from one Gram matrix:

    q . k_j       = u . x_j r_j,   u = E^T (g * W_K^T q)
    sum_j a_j v_j = W_V (g * E sum_j a_j r_j x_j)
    D rms(h_j)^2  = x_j^T (E^T E) x_j

For a LayerNorm E is replaced by E less the mean of its rows. What is left is the condition of E: where it carries some
directions a thousand times farther than others and tokens lie in the others, squares of size lose the digits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.boosters.readout.encoded_tokens import fold_queries, gather_tokens, project_values
from monai_llmboost.boosters.readout.numerics import GramMatrix, centre, rms_normalize, squared_norms
from monai_llmboost.llm.attention import AttentionForm, AttentionTensors


class VisualTokens(nn.Module):
    """Attention over the visual tokens themselves: cheapest where tokens are many and C is smaller than D."""

    __constants__ = ("centred",)
    description = "no keys and values, visual tokens"

    def __init__(self, form: AttentionForm, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.num_heads, self.head_size = form.num_heads, form.head_size
        self.scale, self.score_cap, self.eps = form.scale, form.score_cap, form.norm_eps
        self.centred = form.centred
        self.gram = GramMatrix()

    def cost(self, batch: int, tokens: int, read: int) -> int:
        """Return the multiply-adds of a forward pass per case, for this batch size and these numbers of tokens."""
        folding = 2 * read * self.num_heads * self.head_size * self.width
        attention = 2 * read * self.num_heads * self.channels * (self.width + tokens)
        return self.gram.cost(batch, tokens, self.channels, self.width) + folding + attention

    def forward(self, x: Tensor, encode: Tensor, layer: AttentionTensors) -> Tensor:
        """Return what the heads of the read tokens gather from all, (B, R, heads * head size), in the queries' dtype.

        Args:
            x: all visual tokens, (B, N, C).
            encode: E, (D, C).
            layer: queries and the layer's tensors.
        """
        if self.centred:
            encode = encode - encode.mean(dim=0, keepdim=True)
        gram = self.gram(encode.detach())
        x, eps = rms_normalize(x, self.eps)
        d, mean = centre(x)
        inverse_rms = torch.rsqrt(squared_norms(d, mean, encode, gram) / encode.shape[0] + eps)  # (B, N)
        u = fold_queries(layer.queries, layer.key, layer.gain, self.head_size).to(encode.dtype) @ encode
        s = gather_tokens(u, d, mean, inverse_rms, self.scale, self.score_cap)  # (B, R * heads, C)
        return project_values(F.linear(s, encode), layer, self.head_size)
