# SPDX-License-Identifier: Apache-2.0
"""Reading a few tokens where scores are linear: attention over encoded tokens, without keys and values.

All that a read token needs of the others are, per head, the scores ``q . k_j`` and the sum ``sum_j a_j v_j``. With
``h_j = E x_j``, ``r_j = 1 / rms(h_j)`` and the norm's gain g, both can be had without keys and values:

    q . k_j       = (g * W_K^T q) . h_j r_j
    sum_j a_j v_j = W_V (g * sum_j a_j r_j h_j)

A LayerNorm is such a norm of centred tokens; its bias b, like the bias of the keys, adds the same to every score, which
the softmax does not see; values get ``W_V b`` and their own bias. A cap of the scores comes between the two lines.
Where keys are normed, normed_keys.py replaces this; where they depend on positions or are masked, none of it holds.

As the norm divides by the size of a token anyhow, each token is first brought to size one, which keeps every product in
the range of float16 and lets no token outweigh the others; then they are centred, ``x_j = d_j + mean``, because a large
common mean would cost digits in the squares.
"""

from typing import Optional

import torch
from torch import Tensor, nn

from monai_llmboost.boosters.readout.numerics import centre, rms_normalize, to_float32
from monai_llmboost.llm.attention import AttentionForm, AttentionTensors


class EncodedTokens(nn.Module):
    """Attention over the encoded tokens ``h = E x``: cheapest where C is no smaller than D, or a small batch trains."""

    __constants__ = ("centred",)
    description = "no keys and values, encoded tokens"

    def __init__(self, form: AttentionForm, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.num_heads, self.head_size = form.num_heads, form.head_size
        self.scale, self.score_cap, self.eps = form.scale, form.score_cap, form.norm_eps
        self.centred = form.centred

    def cost(self, batch: int, tokens: int, read: int) -> int:
        """Return the multiply-adds of a forward pass per case, for this batch size and these numbers of tokens."""
        folding = 2 * read * self.num_heads * self.head_size * self.width
        return tokens * self.channels * self.width + folding + 2 * read * self.num_heads * tokens * self.width

    def forward(self, x: Tensor, encode: Tensor, layer: AttentionTensors) -> Tensor:
        """Return what the heads of the read tokens gather from all, (B, R, heads * head size), in the queries' dtype.

        Args:
            x: all visual tokens, (B, N, C).
            encode: E, (D, C).
            layer: queries and the layer's tensors.
        """
        h = torch.nn.functional.linear(x, encode)  # (B, N, D)
        if self.centred:
            h = h - h.mean(dim=-1, keepdim=True)
        h, eps = rms_normalize(h, self.eps)
        inverse_rms = torch.rsqrt(to_float32(h).square().mean(dim=-1) + eps)  # (B, N)
        d, mean = centre(h)
        u = fold_queries(layer.queries, layer.key, layer.gain, self.head_size).to(h.dtype)  # (B, R * heads, D)
        s = gather_tokens(u, d, mean, inverse_rms, self.scale, self.score_cap)
        return project_values(s, layer, self.head_size)


def fold_queries(
    q: Tensor,
    key: Tensor,
    gain: Optional[Tensor],  # noqa: UP045  (as scripting reads it)
    head_size: int,
) -> Tensor:
    """Return ``g * W_K^T q``, by which a head of a read token scores encoded tokens, (B, R * heads, D)."""
    b, read, _ = q.shape
    kv_heads, width = key.shape[0] // head_size, key.shape[1]
    q = q.view(b, read, kv_heads, q.shape[-1] // (kv_heads * head_size), head_size)  # heads of each kv head
    u = torch.einsum("brkgs,ksw->brkgw", [q, key.view(kv_heads, head_size, width)])
    u = u.reshape(b, read * u.shape[2] * u.shape[3], width)
    return u if gain is None else u * gain


def gather_tokens(u: Tensor, d: Tensor, mean: Tensor, inverse_rms: Tensor, scale: float, cap: float) -> Tensor:
    """Return ``sum_j a_j r_j x_j`` with ``a = softmax(scale u . x_j r_j)`` and ``x_j = d_j + mean``.

    Args:
        u: (B, R * heads, C or D).
        d: deviations of the tokens from their mean, (B, N, C or D).
        mean: (B, 1, C or D).
        inverse_rms: r, float32 (B, N).
        scale: factor of the scores.
        cap: of the scaled scores; 0 for none.
    """
    scores = to_float32(u @ d.transpose(1, 2)) + (to_float32(u) * to_float32(mean)).sum(dim=-1, keepdim=True)
    scores = scores * (inverse_rms * scale).unsqueeze(1)  # (B, R * heads, N)
    return weigh_tokens(scores, d, mean, inverse_rms, cap)


def weigh_tokens(scores: Tensor, d: Tensor, mean: Tensor, inverse_rms: Tensor, cap: float) -> Tensor:
    """Return ``sum_j a_j r_j x_j`` with ``a = softmax(scores)`` (B, R * heads, N) and ``x_j = d_j + mean``."""
    if cap > 0:
        scores = cap * torch.tanh(scores / cap)
    weights = scores.softmax(dim=-1) * inverse_rms.unsqueeze(1)
    return weights.to(d.dtype) @ d + (weights.sum(dim=-1, keepdim=True) * mean).to(d.dtype)


def project_values(s: Tensor, layer: AttentionTensors, head_size: int) -> Tensor:
    """Return ``W_V (g * s) + b`` of gathered encoded tokens (B, R * heads, D), in shape and dtype of the queries."""
    value, gain, bias, norm_bias = layer.value, layer.gain, layer.value_bias, layer.norm_bias
    b, read, inner = layer.queries.shape
    kv_heads, width = value.shape[0] // head_size, value.shape[1]
    s = s.to(layer.queries.dtype)
    if gain is not None:
        s = s * gain
    s = s.view(b, read, kv_heads, inner // (kv_heads * head_size), width)
    y = torch.einsum("brkgw,ksw->brkgs", [s, value.view(kv_heads, head_size, width)])
    if norm_bias is not None:
        of_norm = value @ norm_bias
        bias = of_norm if bias is None else bias + of_norm
    if bias is not None:
        y = y + bias.view(kv_heads, 1, head_size)
    return y.reshape(b, read, inner)
