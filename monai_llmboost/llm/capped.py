# SPDX-License-Identifier: Apache-2.0
"""Attention with capped scores (Gemma 2), which torch's fused attention does not compute."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Scores that are in memory at once, over all cases and heads: 64 MB in float32.
MOST_SCORES = 2**24


def capped_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, causal: bool) -> Tensor:
    """Return ``softmax(cap * tanh(scale q . k / cap)) v`` for queries, keys and values (B, heads, N, head size).

    Queries are computed in parts, so that memory does not grow with the square of the tokens; in training each part is
    computed again in the backward pass. A scripted, traced or compiled block computes all at once.
    """
    if torch.jit.is_scripting():
        return weigh_part(q, k, v, scale, cap, causal, 0)
    else:  # so that scripting skips it
        return _weigh_in_parts(q, k, v, scale, cap, causal)


def _weigh_in_parts(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, causal: bool) -> Tensor:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # the number of parts would be fixed
        return weigh_part(q, k, v, scale, cap, causal, 0)
    rows = max(1, MOST_SCORES // (k.shape[0] * k.shape[1] * k.shape[2]))
    if rows >= q.shape[2]:
        return weigh_part(q, k, v, scale, cap, causal, 0)
    parts = []
    for first in range(0, q.shape[2], rows):
        arguments = q[:, :, first : first + rows], k, v, scale, cap, causal, first
        again = torch.is_grad_enabled()
        parts.append(checkpoint(weigh_part, *arguments, use_reentrant=False) if again else weigh_part(*arguments))
    return torch.cat(parts, dim=2)


def weigh_part(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, causal: bool, first: int) -> Tensor:
    """Return the attention of queries (B, heads, R, head size), of which the first is that of token ``first``."""
    scores = q @ k.transpose(2, 3)
    if scores.dtype != torch.float64:
        scores = scores.float()
    scores = cap * torch.tanh(scores * (scale / cap))  # (B, heads, R, N)
    if causal:
        future = torch.ones(scores.shape[2], scores.shape[3], dtype=torch.bool, device=q.device).triu(1 + first)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(dim=-1).to(v.dtype) @ v
