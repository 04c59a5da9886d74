# SPDX-License-Identifier: Apache-2.0
"""Read-out for linear scores: attention over encoded tokens, without keys and values.

A read token needs only the scores ``q . k_j`` and the sum ``sum_j a_j v_j`` of each head from the other tokens. With
``h_j = E x_j``, ``r_j = 1 / rms(h_j)`` and the norm's gain g, both can be computed without keys and values:

    q . k_j       = (g * W_K^T q) . h_j r_j
    sum_j a_j v_j = W_V (g * sum_j a_j r_j h_j)

A LayerNorm is such a norm of centred tokens. Its bias b, like the bias of the keys, adds the same to every score, which
does not change the softmax; values get ``W_V b`` and their own bias. A cap of the scores applies between the two lines.
For normed keys, normed_keys.py replaces this. For positions or masks, the equations do not hold.

A block that scales its tokens to size s sees ``h'_j = s h_j / sqrt(m_j + e)`` with ``m_j = mean(h_j^2)`` and a tiny e.
Its norm takes that scale out again and leaves it in its epsilon only, so the equations hold for ``h_j`` with

    r_j = 1 / sqrt(m_j + (m_j + e) eps / s^2)            (RMSNorm)
    r_j = 1 / sqrt(var(h_j) + (m_j + e) eps / s^2)       (LayerNorm; m_j = var(h_j) + mean(h_j)^2)

Because the norm divides by the size of a token anyway, each token is first scaled to size one. This keeps every product
in the range of float16 and gives all tokens the same precision. Then tokens are centred, ``x_j = d_j + mean``, because
a large common mean would lose digits in the squares.
"""

from typing import Optional

import torch
from torch import Tensor, nn

from monai_llmboost.boosters.readout.numerics import centre, rms_normalize, to_float32
from monai_llmboost.llm.attention import AttentionForm, AttentionTensors


class EncodedTokens(nn.Module):
    """Attention over the encoded tokens ``h = E x``: cheapest if C is at least D, or for small batches in training."""

    __constants__ = ("centred",)
    description = "no keys and values, encoded tokens"

    def __init__(self, form: AttentionForm, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.num_heads, self.head_size = form.num_heads, form.head_size
        self.scale, self.score_cap = form.scale, form.score_cap
        self.relative_eps, self.constant_eps = form.relative_eps, form.constant_eps
        self.centred = form.centred

    def cost(self, batch: int, tokens: int, read: int) -> int:
        """Return the multiply-adds of a forward pass per case, for this batch size and these numbers of tokens."""
        folding = 2 * read * self.num_heads * self.head_size * self.width
        return tokens * self.channels * self.width + folding + 2 * read * self.num_heads * tokens * self.width

    def forward(self, x: Tensor, encode: Tensor, layer: AttentionTensors) -> Tensor:
        """Return the output of the heads at the read tokens, (B, R, heads * head size), in the queries' dtype.

        Args:
            x: all visual tokens, (B, N, C).
            encode: E, (D, C).
            layer: queries and the layer's tensors.
        """
        h = torch.nn.functional.linear(x, encode)  # (B, N, D)
        if self.centred:
            of_features = h.mean(dim=-1, keepdim=True)
            h = h - of_features
        h, square = rms_normalize(h)
        eps = self.constant_eps / square  # (B, N)
        if self.centred and self.relative_eps > 0:
            eps = eps + self.relative_eps * to_float32(of_features).square().squeeze(-1) / square
        inverse_rms = torch.rsqrt((1 + self.relative_eps) * to_float32(h).square().mean(dim=-1) + eps)  # (B, N)
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
    """Return ``g * W_K^T q``, whose product with encoded tokens gives the scores, (B, R * heads, D)."""
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
        cap: cap of the scaled scores; 0 for none.
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
    """Return ``W_V (g * s) + b`` of weighted token sums s (B, R * heads, D), in shape and dtype of the queries."""
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
