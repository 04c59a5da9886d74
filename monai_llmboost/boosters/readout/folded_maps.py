# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values of all tokens from the visual tokens, if all output tokens are needed (feature maps).

With ``h_j = E x_j``, ``r_j = 1 / rms(h_j)`` and the norm's gain g, each of the maps before the attention is

    W (g * h_j r_j) = (W diag(g) E) (x_j r_j)

with one matrix (out, C) instead of one (out, D): at D = 4096 and C = 320, 13 times fewer operations for these maps. All
else (output projection, MLP, residual) needs ``h_j`` itself, so this saves a quarter of the block at most. LayerNorm,
biases and the size of tokens enter as in encoded_tokens.py. Norms of queries and keys come after the maps and stay.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_llmboost.boosters.readout.numerics import Kept, to_float32
from monai_llmboost.llm.attention import SIZE_EPS, AttentionForm, TokenMaps


class FoldedMaps(Kept):
    """Queries, keys and values of all tokens by maps into which F_E is folded.

    In inference the folded matrix of a frozen block is cached; else it is computed in every call.
    """

    description = "F_E folded into queries, keys and values"

    def __init__(self, form: AttentionForm, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.sizes = form.num_heads * form.head_size, *[form.num_kv_heads * form.head_size] * 2
        self.relative_eps, self.constant_eps, self.h_rms = form.relative_eps, form.constant_eps, form.h_rms
        self.pre_norm, self.centred = form.pre_norm, form.centred

    def saves(self, batch: int, tokens: int, learns: bool, frozen: bool, keep: bool) -> bool:
        """Return whether folding needs fewer multiply-adds than the block's own maps.

        Args:
            batch: cases of a batch, which share the folded matrix.
            tokens: N.
            learns: count the backward pass too, with the gradients of F_E and of a block that is not frozen.
            frozen: the block has no trained weights.
            keep: the folded matrix is cached.
        """
        tokens, products = batch * tokens, 3 - frozen if learns else 1
        matrix = 0 if keep else products * self.channels * self.width  # all by the features after the maps
        return tokens * self.channels * (3 if learns else 1) + matrix < products * tokens * self.width

    @torch.jit.unused
    def forward(
        self, x: Tensor, h: Tensor, encode: Tensor, maps: TokenMaps, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, N, heads * head size), before their norms.

        Args:
            x: visual tokens, (B, N, C).
            h: encoded tokens E x, (B, N, D).
            encode: E, (D, C).
            maps: tensors of the layer.
            keep: cache the folded matrix; only for weights without gradient.
        """
        matrix, bias = self.unchanged(encode, maps) if keep else self.fold(encode, maps)
        u = (to_float32(x) * self.inverse_sizes(h)).to(matrix.dtype)
        q, k, v = F.linear(u, matrix, bias).split(self.sizes, dim=-1)
        return q, k, v

    def inverse_sizes(self, h: Tensor) -> Tensor:
        """Return the factor of each token before the attention, r or the scale to the block's size, (B, N, 1)."""
        h = to_float32(h)
        square = h.square().mean(dim=-1, keepdim=True)
        if not self.pre_norm:
            return self.h_rms * torch.rsqrt(square + SIZE_EPS) if self.h_rms else torch.ones_like(square)
        eps = self.relative_eps * square + self.constant_eps
        if self.centred:
            square = h.var(dim=-1, correction=0, keepdim=True)
        return torch.rsqrt(square + eps)

    def fold(self, encode: Tensor, maps: TokenMaps) -> tuple[Tensor, Tensor | None]:
        """Return ``W diag(g) E`` for queries, keys and values, (out, C), and their biases, (out,)."""
        if self.centred:
            encode = encode - encode.mean(dim=0, keepdim=True)
        if maps.gain is not None:
            encode = maps.gain.unsqueeze(1) * encode
        matrix = torch.cat([weight @ encode.to(weight.dtype) for weight in maps.weights])
        if maps.norm_bias is None and all(bias is None for bias in maps.biases):
            return matrix, None
        biases = []
        for weight, bias in zip(maps.weights, maps.biases):
            of_norm = weight.new_zeros(len(weight)) if maps.norm_bias is None else weight @ maps.norm_bias
            biases.append(of_norm if bias is None else of_norm + bias)
        return matrix, torch.cat(biases)

    def unchanged(self, encode: Tensor, maps: TokenMaps) -> tuple[Tensor, Tensor | None]:
        """Return the cached matrix and biases; compute them again if a weight has changed."""
        tensors = [t for t in (maps.gain, maps.norm_bias, *maps.weights, *maps.biases) if t is not None]
        if self.kept is None or not self.is_equal(self.kept[0], encode) or not _are_same(self.kept[1], tensors):
            with self.outside(encode):
                old = encode.detach().clone()
                # Weak, so that weights of a block that was moved to another device are not kept.
                known = [(weakref.ref(tensor), _version(tensor)) for tensor in tensors]
                self.kept = old, known, self.fold(old, maps)
        folded: tuple[Tensor, Tensor | None] = self.kept[2]
        return folded


def _are_same(known: list[tuple[Any, int | None]], tensors: list[Tensor]) -> bool:
    """Return whether these are the known tensors, unchanged."""
    return len(known) == len(tensors) and all(
        reference() is tensor and version == _version(tensor) for (reference, version), tensor in zip(known, tensors)
    )


def _version(tensor: Tensor) -> int | None:
    """Return the number of changes in place of a tensor; inference mode counts none."""
    return None if tensor.is_inference() else tensor._version
