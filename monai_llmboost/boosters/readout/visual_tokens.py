# SPDX-License-Identifier: Apache-2.0
"""The exact evaluation of a booster of which only the first few tokens are read, such as CLS.

All that a read token needs of the others are, per head, the scores ``q . k_j`` and the sum ``sum_j a_j v_j``. With
``h_j = E x_j``, ``r_j = 1 / rms(h_j)`` and the norm's gain g, both can be had without keys and values:

    q . k_j       = (g * W_K^T q) . h_j r_j          = u . x_j r_j,   u = E^T (g * W_K^T q)
    sum_j a_j v_j = W_V (g * sum_j a_j r_j h_j)      = W_V (g * E sum_j a_j r_j x_j)
    D rms(h_j)^2  = x_j^T (E^T E) x_j

A LayerNorm is such a norm of centred tokens: E is replaced by E less the mean of its rows, and its bias b, like the
bias of the keys, adds the same to every score, which the softmax does not see; values get ``W_V b`` and their own bias.
A cap of the scores comes between the two lines. Where keys are normed, normed_keys.py has what takes its place; where
they are turned by positions or masked, none of this holds.

So attention runs over the encoded tokens h, or over the visual tokens x themselves, whose number N then meets C x C
matrices only. As the norm divides by the size of a token anyhow, each is first brought to size one, which keeps every
product in the range of float16 and lets no token outweigh the others; then they are centred, ``x_j = d_j + mean``,
because a large common mean would cost digits in the squares. What is left is the condition of E: where it carries some
directions a thousand times farther than others and tokens lie in the others, squares of size lose the digits.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def multiply_adds(
    batch: int,
    tokens: int,
    read: int,
    channels: int,
    width: int,
    num_heads: int,
    num_kv_heads: int,
    head_size: int,
    gram_is_kept: bool,
) -> tuple[int, int, int]:
    """Multiply-adds per case, forwards, of what the three ways to the same numbers do differently.

    Args:
        batch: cases that share one Gram matrix, B.
        tokens: N.
        read: tokens that are read, R.
        channels: C.
        width: D.
        num_heads: heads of the block.
        num_kv_heads: its heads of keys and values.
        head_size: features of a head.
        gram_is_kept: the Gram matrix need not be computed.

    Returns:
        Attention over keys (cheapest where tokens are few, or most of them are read), over encoded tokens (where C is
        no smaller than D, or a small batch trains) and over visual tokens (else).
    """
    encoding = tokens * channels * width
    folding = 2 * read * num_heads * head_size * width
    keys = encoding + 2 * tokens * width * num_kv_heads * head_size + 2 * read * num_heads * head_size * tokens
    encoded = encoding + folding + 2 * read * num_heads * tokens * width
    norms = tokens * channels * channels + 2 * channels * width
    if not gram_is_kept:
        norms += channels * channels * width // max(batch, 1)
    visual = norms + folding + 2 * read * num_heads * channels * (width + tokens)
    return keys, encoded, visual


def attend_encoded(
    q: Tensor,
    h: Tensor,
    gain: Tensor,
    key: Tensor,
    value: Tensor,
    value_bias: Tensor,
    head_size: int,
    scale: float,
    cap: float,
    eps: float,
) -> Tensor:
    """What the heads of the read tokens gather from all encoded tokens, (B, R, heads * head size), in q's dtype.

    Args:
        q: queries of the read tokens, (B, R, heads * head size).
        h: all encoded tokens, (B, N, D), less their mean over D if the norm is a LayerNorm.
        gain: g of the norm before the attention, (D,).
        key: W_K, (kv heads * head size, D).
        value: W_V, (kv heads * head size, D).
        value_bias: what every value has besides, (kv heads * head size,).
        head_size: features of a head.
        scale: factor of the scores.
        cap: scores s become ``cap * tanh(s / cap)``; 0 for none.
        eps: of the norm.
    """
    h, eps_of = sized(h, eps)
    inverse_rms = torch.rsqrt(wide(h).square().mean(dim=-1) + eps_of)  # (B, N)
    d, mean = centred(h)
    u = fold(q, key, gain, head_size).to(h.dtype)  # (B, R * heads, D)
    return unfold(gather(u, d, mean, inverse_rms, scale, cap), value, value_bias, gain, head_size, q)


def attend_visual(
    q: Tensor,
    x: Tensor,
    encode: Tensor,
    gram: Tensor,
    gain: Tensor,
    key: Tensor,
    value: Tensor,
    value_bias: Tensor,
    head_size: int,
    scale: float,
    cap: float,
    eps: float,
) -> Tensor:
    """The same from all visual tokens ``x`` (B, N, C), with ``encode`` = E (D, C) and ``gram`` = E^T E (C, C).

    If the norm is a LayerNorm, E is to come less the mean of its rows.
    """
    x, eps_of = sized(x, eps)
    d, mean = centred(x)
    inverse_rms = torch.rsqrt(squared_norms(d, mean, encode, gram) / encode.shape[0] + eps_of)  # (B, N)
    u = fold(q, key, gain, head_size).to(encode.dtype) @ encode  # (B, R * heads, C)
    s = gather(u, d, mean, inverse_rms, scale, cap)  # (B, R * heads, C)
    return unfold(F.linear(s, encode), value, value_bias, gain, head_size, q)


def squared_norms(d: Tensor, mean: Tensor, encode: Tensor, gram: Tensor) -> Tensor:
    """``|E x_j|^2`` of visual tokens ``x_j = d_j + mean``, (B, N, C) and (B, 1, C), float32 (B, N)."""
    if torch.jit.is_scripting():
        return norms_and_parts(d, mean, encode, encode.t() @ encode)[0]
    return SquaredNorms.apply(d, mean, encode, gram)[0]


def norms_and_parts(d: Tensor, mean: Tensor, encode: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``|E x_j|^2 = d_j . G d_j + 2 d_j . G mean + |E mean|^2``, ``G d_j`` (B, N, C) and ``G mean`` (B, 1, C)."""
    encoded_mean = F.linear(mean, encode)  # (B, 1, D)
    of_mean = encoded_mean @ encode  # (B, 1, C)
    of_d = d @ gram  # (B, N, C)
    square = (wide(of_d) * wide(d)).sum(dim=-1) + 2 * wide((d @ of_mean.transpose(1, 2)).squeeze(-1))
    return (square + wide(encoded_mean).square().sum(dim=-1)).clamp_min(0), of_d, of_mean


class SquaredNorms(torch.autograd.Function):
    """:func:`squared_norms` with a gradient that costs two matrix products instead of four.

    ``d|E x|^2 / dx = 2 G x`` is at hand, and what reaches E is ``2 E sum_j grad_j x_j x_j^T``, one symmetric matrix.
    """

    generate_vmap_rule = True  # for torch.func, such as gradients of single cases

    @staticmethod
    def forward(d: Tensor, mean: Tensor, encode: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Deviations (B, N, C), mean (B, 1, C), E (D, C) and its Gram matrix, a constant here, to (B, N) and parts."""
        return norms_and_parts(d, mean, encode, gram)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the gradient needs; the parts of the result are for nothing else."""
        d, mean, encode, _ = inputs
        _, of_d, of_mean = output
        ctx.mark_non_differentiable(of_d, of_mean)
        ctx.save_for_backward(d, mean, encode, of_d, of_mean)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        """Gradients of the deviations and of E."""
        d, mean, encode, of_d, of_mean = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is asked for, so it must not rest on kept results
            of_d, of_mean = d @ (encode.t() @ encode), mean @ (encode.t() @ encode)
        grad_d = grad_encode = None
        weighted = 2 * grad.unsqueeze(-1)  # (B, N, 1)
        if ctx.needs_input_grad[0]:
            grad_d = (weighted * (of_d + of_mean)).to(d.dtype)
        if ctx.needs_input_grad[2]:
            x = (d + mean).flatten(0, 1)  # (B * N, C)
            moments = symmetric_product((weighted.flatten(0, 1) * x).to(of_d.dtype), x.to(of_d.dtype))  # (C, C)
            grad_encode = (encode.to(of_d.dtype) @ moments).to(encode.dtype)
        return grad_d, None, grad_encode, None


def wide(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is if it has more digits."""
    return x if x.dtype == torch.float64 else x.float()


def sized(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Tokens (B, N, C) divided by their own root mean square s, and the norm's eps to go with them, (B, N).

    ``x / sqrt(mean(x^2) + eps)`` is the same for ``x / s`` and ``eps / s^2``, whatever s is: no gradient need pass
    through it.
    """
    square = wide(x.detach()).square().mean(dim=-1, keepdim=True).clamp_min(1e-24)  # (B, N, 1)
    return (wide(x) * square.rsqrt()).to(x.dtype), (eps / square).squeeze(-1)


def centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B, N, C) as deviations (B, N, C) from their mean (B, 1, C).

    Every formula here holds for any constant in the mean's place, so no gradient need pass through it.
    """
    mean = wide(x.detach()).mean(dim=1, keepdim=True).to(x.dtype)
    return x - mean, mean


def fold(q: Tensor, key: Tensor, gain: Tensor, head_size: int) -> Tensor:
    """``g * W_K^T q``, what a read token's head multiplies encoded tokens with, (B, R * heads, D)."""
    b, read, _ = q.shape
    kv_heads, width = key.shape[0] // head_size, key.shape[1]
    q = q.view(b, read, kv_heads, q.shape[-1] // (kv_heads * head_size), head_size)  # heads of each kv head
    u = torch.einsum("brkgs,ksw->brkgw", [q, key.view(kv_heads, head_size, width)])
    return u.reshape(b, read * u.shape[2] * u.shape[3], width) * gain


def unfold(s: Tensor, value: Tensor, value_bias: Tensor, gain: Tensor, head_size: int, q: Tensor) -> Tensor:
    """``W_V (g * s) + b``, the gathered encoded tokens (B, R * heads, D) as values, in the shape and dtype of ``q``."""
    b, read, inner = q.shape
    kv_heads, width = value.shape[0] // head_size, value.shape[1]
    s = (s.to(q.dtype) * gain).view(b, read, kv_heads, inner // (kv_heads * head_size), width)
    y = torch.einsum("brkgw,ksw->brkgs", [s, value.view(kv_heads, head_size, width)])
    return (y + value_bias.view(kv_heads, 1, head_size)).reshape(b, read, inner)


def gather(u: Tensor, d: Tensor, mean: Tensor, inverse_rms: Tensor, scale: float, cap: float) -> Tensor:
    """``sum_j a_j r_j x_j`` with ``a = softmax(scale u . x_j r_j)`` and ``x_j = d_j + mean``.

    Args:
        u: (B, R * heads, C or D).
        d: deviations of the tokens from their mean, (B, N, C or D).
        mean: (B, 1, C or D).
        inverse_rms: r, float32 (B, N).
        scale: factor of the scores.
        cap: of the scaled scores; 0 for none.
    """
    scores = wide(u @ d.transpose(1, 2)) + (wide(u) * wide(mean)).sum(dim=-1, keepdim=True)
    scores = scores * (inverse_rms * scale).unsqueeze(1)  # (B, R * heads, N)
    if cap > 0:
        scores = cap * torch.tanh(scores / cap)
    weights = scores.softmax(dim=-1) * inverse_rms.unsqueeze(1)
    return weights.to(d.dtype) @ d + (weights.sum(dim=-1, keepdim=True) * mean).to(d.dtype)


def symmetric_product(a: Tensor, b: Tensor) -> Tensor:
    """``a^T b`` (C, C) of matrices (rows, C) whose product is symmetric: five eighths of the work, then mirrored."""
    size = a.shape[1]
    step = max(-(-size // 4), 64)
    bands = [F.pad(a[:, i : i + step].t() @ b[:, i:], (i, 0)) for i in range(0, size, step)]
    product = torch.cat(bands).triu()
    return product + product.triu(1).t()


class GramMatrix(nn.Module):
    """``E^T E`` of a weight, as a constant; kept in ``eval()`` while the weight keeps its values, and never saved."""

    __jit_ignored_attributes__ = ("kept",)

    def __init__(self) -> None:
        super().__init__()
        self.kept: tuple[Tensor, Tensor] | None = None  # a weight (D, C) and its product (C, C)

    def forward(self, weight: Tensor) -> Tensor:
        """Detached weight (D, C) to (C, C)."""
        if self.keeps():
            return self.of_unchanged(weight)
        return symmetric_product(weight, weight)

    def keeps(self) -> bool:
        """Whether the product is kept from one call to the next: never where a graph would outlive the weight."""
        if torch.jit.is_scripting():
            return False
        return not self.training and not self.is_recorded()

    @torch.jit.unused
    def is_recorded(self) -> bool:
        """Whether a graph is being made of this call."""
        return torch.compiler.is_compiling() or torch.jit.is_tracing()

    @torch.jit.unused
    def of_unchanged(self, weight: Tensor) -> Tensor:
        """The kept product, made anew if the weight is not, value by value, the one that it was made of."""
        meta = weight.is_meta  # has no values to compare, and no autocast
        if self.kept is not None:
            old, product = self.kept
            same_kind = old.device == weight.device and old.dtype == weight.dtype
            if same_kind and (meta or torch.equal(old, weight)):
                return product
        # Made outside inference mode and autocast, the product is good for whatever comes later.
        device = "cpu" if meta else weight.device.type
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            old = weight.clone()
            product = symmetric_product(old, old)
        self.kept = old, product
        return product

    def train(self, mode: bool = True) -> "GramMatrix":
        """Forget the product when training begins."""
        if mode:
            self.kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Without the product: copies and pickles make their own."""
        return {**self.__dict__, "kept": None}
