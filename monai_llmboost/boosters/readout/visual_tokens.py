# SPDX-License-Identifier: Apache-2.0
"""Read-out for linear scores: attention over the visual tokens, without any tensor of N * D elements.

These are the equations of encoded_tokens.py with ``h_j = E x_j`` inserted; norms come from one Gram matrix:

    q . k_j       = u . x_j r_j,   u = E^T (g * W_K^T q)
    sum_j a_j v_j = W_V (g * E sum_j a_j r_j x_j)
    D rms(h_j)^2  = x_j^T (E^T E) x_j

For a LayerNorm, E is replaced by E minus the mean of its rows, whose product with ``x_j`` is the mean of ``h_j``. The
accuracy depends on the condition of E: if E scales some directions a thousand times more than others and tokens lie in
the others, the squared norms lose digits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.boosters.readout.encoded_tokens import fold_queries, gather_tokens, project_values
from monai_llmboost.boosters.readout.numerics import GramMatrix, centre, rms_normalize, squared_norms, to_float32
from monai_llmboost.llm.attention import AttentionForm, AttentionTensors


class VisualTokens(nn.Module):
    """Attention over the visual tokens: cheapest for many tokens with C smaller than D."""

    __constants__ = ("centred",)
    description = "no keys and values, visual tokens"

    def __init__(self, form: AttentionForm, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.num_heads, self.head_size = form.num_heads, form.head_size
        self.scale, self.score_cap = form.scale, form.score_cap
        self.relative_eps, self.constant_eps = form.relative_eps, form.constant_eps
        self.centred = form.centred
        self.gram = GramMatrix()

    def cost(self, batch: int, tokens: int, read: int) -> int:
        """Return the multiply-adds of a forward pass per case, for this batch size and these numbers of tokens."""
        folding = 2 * read * self.num_heads * self.head_size * self.width
        attention = 2 * read * self.num_heads * self.channels * (self.width + tokens)
        return self.gram.cost(batch, tokens, self.channels, self.width) + folding + attention

    def forward(self, x: Tensor, encode: Tensor, layer: AttentionTensors) -> Tensor:
        """Return the output of the heads at the read tokens, (B, R, heads * head size), in the queries' dtype.

        Args:
            x: all visual tokens, (B, N, C).
            encode: E, (D, C).
            layer: queries and the layer's tensors.
        """
        x, square = rms_normalize(x)
        eps = self.constant_eps / square  # (B, N)
        if self.centred:
            of_features = encode.mean(dim=0, keepdim=True)  # (1, C)
            encode = encode - of_features
            if self.relative_eps > 0:
                eps = eps + self.relative_eps * (to_float32(x) * to_float32(of_features)).sum(dim=-1).square()
        gram = self.gram(encode.detach())
        d, mean = centre(x)
        of_tokens = squared_norms(d, mean, encode, gram) / encode.shape[0]
        inverse_rms = torch.rsqrt((1 + self.relative_eps) * of_tokens + eps)  # (B, N)
        u = fold_queries(layer.queries, layer.key, layer.gain, self.head_size).to(encode.dtype) @ encode
        s = gather_tokens(u, d, mean, inverse_rms, self.scale, self.score_cap)  # (B, R * heads, C)
        return project_values(F.linear(s, encode), layer, self.head_size)
