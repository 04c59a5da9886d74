# SPDX-License-Identifier: Apache-2.0
"""The exact read-out behind a layer whose keys are normed (Qwen3, Gemma 3, OLMo 2): keys from visual tokens, no values.

A normed key is no linear function of its token, so readout.py's scores do not hold. But the norm divides by the key's
size whatever the token's own, so with ``h_j = E x_j``, the gain g and ``r_j = 1 / rms(h_j)`` of the norm before the
attention (one where there is none), and the gain g_K of the keys' norm,

    t_j = (W_K diag(g) E) x_j
    k_j = g_K * t_j / sqrt(mean(t_j^2) + eps / r_j^2)
    sum_j a_j v_j = W_V (g * E sum_j a_j r_j x_j)

The matrix in front of ``x_j`` is (kv heads * head size, C) and one for a batch, so the N tokens never meet D features.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_llmboost.boosters.readout.visual_tokens import centred, sized, squared_norms, unfold, wide


def multiply_adds_of_normed(
    batch: int,
    tokens: int,
    read: int,
    channels: int,
    width: int,
    num_heads: int,
    num_kv_heads: int,
    head_size: int,
    gram_is_kept: bool,
    has_gain: bool,
) -> tuple[int, int]:
    """Multiply-adds per case, forwards, of the two ways: keys and values from encoded tokens, or as above.

    ``has_gain``: there is a norm before the attention; all else as in ``multiply_adds`` of readout.py.
    """
    kv, inner = num_kv_heads * head_size, num_heads * head_size
    scores = read * inner * tokens
    keys = tokens * width * (channels + 2 * kv) + 2 * scores
    visual = tokens * channels * kv + channels * width * kv // max(batch, 1) + scores
    visual += read * num_heads * channels * (tokens + width) + read * inner * width
    if has_gain:
        visual += tokens * channels * channels + 2 * channels * width
        if not gram_is_kept:
            visual += channels * channels * width // max(batch, 1)
    return keys, visual


def attend_normed(
    q: Tensor,
    x: Tensor,
    encode: Tensor,
    gram: Optional[Tensor],  # noqa: UP045  (as scripting reads it)
    gain: Tensor,
    key: Tensor,
    key_gain: Tensor,
    value: Tensor,
    value_bias: Tensor,
    head_size: int,
    scale: float,
    cap: float,
    eps: float,
) -> Tensor:
    """What the heads of the read tokens gather from all visual tokens, (B, R, heads * head size), in q's dtype.

    Args:
        q: normed queries of the read tokens, (B, R, heads * head size).
        x: all visual tokens, (B, N, C).
        encode: E, (D, C).
        gram: ``E^T E``, (C, C); ``None`` if there is no norm before the attention.
        gain: g, (D,); ones if there is none.
        key: W_K, (kv heads * head size, D).
        key_gain: g_K, (head size,) of a norm of each head, (kv heads * head size,) of one of all.
        value: W_V, (kv heads * head size, D).
        value_bias: what every value has besides, (kv heads * head size,).
        head_size: features of a head.
        scale: factor of the scores.
        cap: scores s become ``cap * tanh(s / cap)``; 0 for none.
        eps: of all norms.
    """
    b, read, inner = q.shape
    kv_heads, tokens = key.shape[0] // head_size, x.shape[1]
    x, eps_of = sized(x, eps)  # tokens of size one, and eps over their squared sizes
    d, mean = centred(x)
    if gram is None:
        r = (eps / eps_of).sqrt()  # each token's own size, (B, N), which no norm takes away
    else:
        r = torch.rsqrt(squared_norms(d, mean, encode, gram) / encode.shape[0] + eps_of)  # (B, N)
    to_keys = (key * gain).to(encode.dtype) @ encode  # (kv heads * head size, C)
    t = wide(F.linear(x, to_keys)).view(b, tokens, -1, key_gain.shape[0])  # (B, N, groups, features of a group)
    size = (t.square().mean(dim=-1, keepdim=True) + (eps / r.square()).view(b, tokens, 1, 1)).rsqrt()
    k = (t * size * key_gain).view(b, tokens, kv_heads, head_size).to(q.dtype)
    scores = torch.einsum("brkgs,bnks->brkgn", [q.view(b, read, kv_heads, -1, head_size), k])
    scores = wide(scores).reshape(b, inner // head_size * read, tokens) * scale  # (B, R * heads, N)
    if cap > 0:
        scores = cap * torch.tanh(scores / cap)
    weights = scores.softmax(dim=-1) * r.unsqueeze(1)
    s = weights.to(d.dtype) @ d + (weights.sum(dim=-1, keepdim=True) * mean).to(d.dtype)  # (B, R * heads, C)
    return unfold(F.linear(s, encode), value, value_bias, gain, head_size, q)
