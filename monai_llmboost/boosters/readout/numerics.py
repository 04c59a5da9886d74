# SPDX-License-Identifier: Apache-2.0
"""Norms of tokens and encoded tokens, accurate also in float16, and the Gram matrix for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def to_float32(x: Tensor) -> Tensor:
    """Return the tensor in float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def rms_normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens (B, N, C) divided by their root mean square p, and ``p^2``, (B, N).

    ``x / sqrt(mean(x^2) + eps)`` is the same for ``x / p`` and ``eps / p^2`` with any p, so p needs no gradient.
    """
    square = to_float32(x.detach()).square().mean(dim=-1, keepdim=True).clamp_min(1e-24)  # (B, N, 1)
    return (to_float32(x) * square.rsqrt()).to(x.dtype), square.squeeze(-1)


def centre(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens (B, N, C) as deviations (B, N, C) from their mean over N, and that mean, (B, 1, C).

    Every formula here holds for any constant instead of the mean, so the mean needs no gradient.
    """
    mean = to_float32(x.detach()).mean(dim=1, keepdim=True).to(x.dtype)
    return x - mean, mean


def squared_norms(d: Tensor, mean: Tensor, encode: Tensor, gram: Tensor) -> Tensor:
    """Return ``|E x_j|^2`` of visual tokens ``x_j = d_j + mean``, (B, N, C) and (B, 1, C), float32 (B, N)."""
    if torch.jit.is_scripting():
        return squared_norms_and_parts(d, mean, encode, encode.t() @ encode)[0]
    return SquaredNorms.apply(d, mean, encode, gram)[0]


def squared_norms_and_parts(d: Tensor, mean: Tensor, encode: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``d_j . G d_j + 2 d_j . G mean + |E mean|^2 = |E x_j|^2``, ``G d_j`` and ``G mean``."""
    encoded_mean = F.linear(mean, encode)  # (B, 1, D)
    of_mean = encoded_mean @ encode  # (B, 1, C)
    of_d = d @ gram  # (B, N, C)
    square = (to_float32(of_d) * to_float32(d)).sum(dim=-1) + 2 * to_float32((d @ of_mean.transpose(1, 2)).squeeze(-1))
    return (square + to_float32(encoded_mean).square().sum(dim=-1)).clamp_min(0), of_d, of_mean


class SquaredNorms(torch.autograd.Function):
    """:func:`squared_norms` with a gradient that costs two matrix products instead of four.

    ``d|E x|^2 / dx = 2 G x`` is known from the forward pass, and the gradient of E is ``2 E sum_j grad_j x_j x_j^T``,
    with one symmetric matrix.
    """

    generate_vmap_rule = True  # for torch.func, such as gradients of single cases

    @staticmethod
    def forward(d: Tensor, mean: Tensor, encode: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map deviations (B, N, C), mean (B, 1, C), E (D, C) and its constant Gram matrix to (B, N) and two parts."""
        return squared_norms_and_parts(d, mean, encode, gram)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Save the tensors for the gradient; the two parts of the output serve only this."""
        d, mean, encode, _ = inputs
        _, of_d, of_mean = output
        ctx.mark_non_differentiable(of_d, of_mean)
        ctx.save_for_backward(d, mean, encode, of_d, of_mean)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        """Return the gradients of the deviations and of E."""
        d, mean, encode, of_d, of_mean = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives, the graph must not contain saved results
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


def symmetric_product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a^T b`` (C, C), a symmetric product of matrices (rows, C); five eighths are computed, then mirrored."""
    size = a.shape[1]
    step = max(-(-size // 4), 64)
    bands = [F.pad(a[:, i : i + step].t() @ b[:, i:], (i, 0)) for i in range(0, size, step)]
    product = torch.cat(bands).triu()
    return product + product.triu(1).t()


@torch.jit.unused
def is_recorded() -> bool:
    """Return whether this call is being compiled or traced."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class Kept(nn.Module):
    """A tensor computed from weights, cached in ``eval()`` until a weight changes, never saved."""

    __jit_ignored_attributes__ = ("kept",)

    def __init__(self) -> None:
        super().__init__()
        self.kept: Any = None  # a copy of a weight, what it was computed with, and the result

    @staticmethod
    def is_equal(old: Tensor, weight: Tensor) -> bool:
        """Return whether a weight has the values of its copy; on the device meta there are none to compare."""
        # Address and version of a tensor would be cheaper, and need no answer from a GPU, but do not show all changes:
        # writes through `.data` or numpy leave both as they are, inference mode counts no versions, and a weight from
        # which the mean was subtracted is a new tensor in each call. The product itself costs more than one comparison.
        same_kind = old.device == weight.device and old.dtype == weight.dtype
        return same_kind and (weight.is_meta or torch.equal(old, weight))

    @staticmethod
    @contextmanager
    def outside(weight: Tensor) -> Iterator[None]:
        """Compute outside inference mode and autocast, so that later calls in any mode can use the result."""
        device = "cpu" if weight.is_meta else weight.device.type  # there is no autocast on the device meta
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            yield

    def train(self, mode: bool = True) -> "Kept":
        """Drop the result when training begins."""
        if mode:
            self.kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the result; copies compute it again."""
        return {**self.__dict__, "kept": None}


class GramMatrix(Kept):
    """The product ``E^T E`` of a weight as a constant; cached in ``eval()`` until the weight changes, never saved.

    In training, under ``torch.compile`` and in traces it is computed in every call, because the weight may change.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Map a detached weight (D, C) to (C, C)."""
        if self.keeps():
            return self.of_unchanged(weight)
        return symmetric_product(weight, weight)

    def cost(self, batch: int, tokens: int, channels: int, width: int) -> int:
        """Return the multiply-adds per case for the norms of encoded tokens; cases of a batch share the matrix."""
        norms = tokens * channels * channels + 2 * channels * width
        return norms if self.keeps() else norms + channels * channels * width // max(batch, 1)

    def keeps(self) -> bool:
        """Return whether the product is cached between calls."""
        if torch.jit.is_scripting() or self.training:
            return False
        return not is_recorded()

    @torch.jit.unused
    def of_unchanged(self, weight: Tensor) -> Tensor:
        """Return the cached product; compute it again if any value of the weight has changed."""
        if self.kept is None or not self.is_equal(self.kept[0], weight):
            with self.outside(weight):
                old = weight.clone()
                self.kept = old, symmetric_product(old, old)
        product: Tensor = self.kept[1]
        return product
