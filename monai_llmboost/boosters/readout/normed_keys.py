# SPDX-License-Identifier: Apache-2.0
"""Reading a few tokens where keys are normed (Qwen3, Gemma 3, OLMo 2): keys from visual tokens, no values.

A normed key is no linear function of its token, so the scores of encoded_tokens.py do not hold. But the norm divides by
the key's size whatever the token's own, so with ``h_j = E x_j``, the gain g and ``r_j = 1 / rms(h_j)`` of the norm
before the attention (one where there is none), and the gain g_K of the keys' norm,

    t_j = (W_K diag(g) E) x_j
    k_j = g_K * t_j / sqrt(mean(t_j^2) + eps / r_j^2)
    sum_j a_j v_j = W_V (g * E sum_j a_j r_j x_j)

The matrix in front of ``x_j`` is (kv heads * head size, C) and one for a batch, so the N tokens never meet D features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.boosters.readout.encoded_tokens import project_values, weigh_tokens
from monai_llmboost.boosters.readout.numerics import GramMatrix, centre, rms_normalize, squared_norms, to_float32
from monai_llmboost.llm.attention import AttentionForm, AttentionTensors


class NormedKeys(nn.Module):
    """Attention over normed keys that are made of the visual tokens."""

    __constants__ = ("pre_norm",)
    description = "keys of all tokens, no values"

    def __init__(self, form: AttentionForm, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.num_heads, self.num_kv_heads, self.head_size = form.num_heads, form.num_kv_heads, form.head_size
        self.scale, self.score_cap, self.eps = form.scale, form.score_cap, form.norm_eps
        self.pre_norm = form.pre_norm
        self.gram = GramMatrix()

    def cost(self, batch: int, tokens: int, read: int) -> int:
        """Return the multiply-adds of a forward pass per case, for this batch size and these numbers of tokens."""
        kv, inner = self.num_kv_heads * self.head_size, self.num_heads * self.head_size
        keys = tokens * self.channels * kv + self.channels * self.width * kv // max(batch, 1) + read * inner * tokens
        gathering = read * self.num_heads * self.channels * (tokens + self.width) + read * inner * self.width
        norms = self.gram.cost(batch, tokens, self.channels, self.width) if self.pre_norm else 0
        return keys + gathering + norms

    def forward(self, x: Tensor, encode: Tensor, layer: AttentionTensors) -> Tensor:
        """Return what the heads of the read tokens gather from all, (B, R, heads * head size), in the queries' dtype.

        Args:
            x: all visual tokens, (B, N, C).
            encode: E, (D, C).
            layer: queries and the layer's tensors.
        """
        q, key, gain, key_gain = layer.queries, layer.key, layer.gain, layer.key_gain
        b, read, inner = q.shape
        kv_heads, tokens = key.shape[0] // self.head_size, x.shape[1]
        x, eps = rms_normalize(x, self.eps)  # tokens of size one, and eps over their squared sizes
        d, mean = centre(x)
        if self.pre_norm:
            gram = self.gram(encode.detach())
            r = torch.rsqrt(squared_norms(d, mean, encode, gram) / encode.shape[0] + eps)  # (B, N)
        else:
            r = (self.eps / eps).sqrt()  # each token's own size, (B, N), which no norm takes away
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
