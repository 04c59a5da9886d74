# SPDX-License-Identifier: Apache-2.0
"""Read-out for normed keys (Qwen3, Gemma 3, OLMo 2): keys from visual tokens, no values.

A normed key is not a linear function of its token, so the scores of encoded_tokens.py do not hold. But the key norm
removes the scale of the token, so with ``h_j = E x_j``, the gain g and ``r_j = 1 / rms(h_j)`` of the norm before the
attention (both one without such a norm; ``r_j = s / rms(h_j)`` if the block scales its tokens to size s, see
encoded_tokens.py), and the gain g_K of the keys' norm,

    t_j = (W_K diag(g) E) x_j
    k_j = g_K * t_j / sqrt(mean(t_j^2) + eps / r_j^2)
    sum_j a_j v_j = W_V (g * E sum_j a_j r_j x_j)

The matrix before ``x_j`` is (kv heads * head size, C) and computed once per batch, so no tensor has N * D elements.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.boosters.readout.encoded_tokens import project_values, weigh_tokens
from monai_llmboost.boosters.readout.numerics import GramMatrix, centre, rms_normalize, squared_norms, to_float32
from monai_llmboost.llm.attention import SIZE_EPS, AttentionForm, AttentionTensors


class NormedKeys(nn.Module):
    """Attention over normed keys computed from the visual tokens."""

    __constants__ = ("pre_norm", "takes_norms")
    description = "keys of all tokens, no values"

    def __init__(self, form: AttentionForm, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.num_heads, self.num_kv_heads, self.head_size = form.num_heads, form.num_kv_heads, form.head_size
        self.scale, self.score_cap, self.eps = form.scale, form.score_cap, form.norm_eps
        self.relative_eps, self.constant_eps, self.h_rms = form.relative_eps, form.constant_eps, form.h_rms
        self.size_eps = SIZE_EPS  # scripting takes no global numbers
        self.pre_norm = form.pre_norm
        self.takes_norms = form.pre_norm or form.h_rms > 0
        self.gram = GramMatrix()

    def cost(self, batch: int, tokens: int, read: int) -> int:
        """Return the multiply-adds of a forward pass per case, for this batch size and these numbers of tokens."""
        kv, inner = self.num_kv_heads * self.head_size, self.num_heads * self.head_size
        keys = tokens * self.channels * kv + self.channels * self.width * kv // max(batch, 1) + read * inner * tokens
        gathering = read * self.num_heads * self.channels * (tokens + self.width) + read * inner * self.width
        norms = self.gram.cost(batch, tokens, self.channels, self.width) if self.takes_norms else 0
        return keys + gathering + norms

    def forward(self, x: Tensor, encode: Tensor, layer: AttentionTensors) -> Tensor:
        """Return the output of the heads at the read tokens, (B, R, heads * head size), in the queries' dtype.

        Args:
            x: all visual tokens, (B, N, C).
            encode: E, (D, C).
            layer: queries and the layer's tensors.
        """
        q, key, gain, key_gain = layer.queries, layer.key, layer.gain, layer.key_gain
        b, read, inner = q.shape
        kv_heads, tokens = key.shape[0] // self.head_size, x.shape[1]
        x, square = rms_normalize(x)  # tokens of size one, and their squared sizes
        d, mean = centre(x)
        r = square.sqrt()  # (B, N), because no norm removes the size of a token
        if self.takes_norms:
            of_tokens = squared_norms(d, mean, encode, self.gram(encode.detach())) / encode.shape[0]
            if self.pre_norm:
                r = torch.rsqrt((1 + self.relative_eps) * of_tokens + self.constant_eps / square)
            else:
                r = self.h_rms * torch.rsqrt(of_tokens + self.size_eps / square)
        if gain is not None:
            key = key * gain
        to_keys = key.to(encode.dtype) @ encode  # (kv heads * head size, C)
        t = to_float32(F.linear(x, to_keys))
        t = t.view(b, tokens, -1, self.head_size if key_gain is None else key_gain.shape[0])  # (B, N, groups, features)
        k = t * (t.square().mean(dim=-1, keepdim=True) + (self.eps / r.square()).view(b, tokens, 1, 1)).rsqrt()
        if key_gain is not None:
            k = k * key_gain
        k = k.view(b, tokens, kv_heads, self.head_size).to(q.dtype)
        scores = torch.einsum("brkgs,bnks->brkgn", [q.view(b, read, kv_heads, -1, self.head_size), k])
        scores = to_float32(scores).reshape(b, inner // self.head_size * read, tokens) * self.scale
        s = weigh_tokens(scores, d, mean, r, self.score_cap)  # (B, R * heads, C)
        return project_values(F.linear(s, encode), layer, self.head_size)
