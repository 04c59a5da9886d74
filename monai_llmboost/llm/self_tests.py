# SPDX-License-Identifier: Apache-2.0
"""Check that a block is finite, trainable and permutation-equivariant, in milliseconds."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from itertools import chain

import torch
from torch import Tensor, nn

from monai_llmboost.llm.transformers_model import quiet

TOKENS = 8
SEED = 20240326
DRAWS = 3
# Largest relative difference between block(x[:, p]) and block(x)[:, p], for weights of 32 bits and of fewer.
TOLERANCE, TOLERANCE_16_BIT = 1e-4, 2e-2


def main_weight(block: nn.Module) -> Tensor:
    """Return the largest floating parameter or buffer of the block; it gives the block's dtype and device.

    Raises:
        ValueError: the block has no weights.
    """
    floating = [tensor for tensor in chain(block.parameters(), block.buffers()) if tensor.is_floating_point()]
    if not floating:
        raise ValueError("the block has no weights: load them first")
    return max(floating, key=torch.numel)


def self_test(block: nn.Module, name: str, in_order: bool = False, tolerance: float | None = None) -> dict[str, float]:
    """Run a block on random tokens and check that it is a full layer over unordered tokens.

    Measured on x (1, 8, D), drawn by a separate generator, in the block's dtype and on its device:

    - ``change``: ``max |block(x) - x| / max |x|``, zero if the block does nothing;
    - ``first_token_gradient``: largest gradient, in the first token, of a sum over all outputs except the last;
    - ``last_token_gradient``: the same in the last token, zero with a causal mask;
    - ``permutation_error``: ``max |block(x[:, p]) - block(x)[:, p]| / max |block(x)|`` for p reversed and shuffled.

    An order-dependent layer always has a large permutation error. In other layers, rounding can send a token to another
    expert, so the test is repeated with other tokens.

    Args:
        block: any module with ``width`` and ``forward(x)``, with weights that are not on the meta device.
        name: name of the block in messages.
        in_order: the block has positions or a causal mask, so order may matter and the last token may be masked.
        tolerance: largest permutation error; ``None`` is 1e-4, or 2e-2 if the weights have fewer than 32 bits.

    Raises:
        ValueError: the block does not run, or fails one of these checks.

    Example:
        >>> from monai_llmboost.llm import random_block
        >>> sorted(self_test(random_block("random"), "mine"))
        ['change', 'first_token_gradient', 'last_token_gradient', 'permutation_error']
    """
    if tolerance is None:
        tolerance = TOLERANCE if main_weight(block).dtype.itemsize >= 4 else TOLERANCE_16_BIT
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(DRAWS):
        measured = _measure(block, name, in_order, generator)
        if in_order or (measured["permutation_error"] < tolerance and measured["last_token_gradient"] > 0):
            break
    if measured["change"] == 0:
        raise ValueError(f"{name} returns its tokens unchanged, it is no layer: choose another donor or layer")
    if measured["first_token_gradient"] == 0:
        raise ValueError(f"{name} does not depend on its tokens: choose another donor or layer")
    if in_order:
        return measured
    if not measured["permutation_error"] < tolerance:
        raise ValueError(
            f"{name} is order-dependent (permutation error {measured['permutation_error']:.3g}), it is recurrent, "
            "masked or has positions: choose another donor or layer"
        )
    if measured["last_token_gradient"] == 0:
        raise ValueError(
            f"{name} passes nothing of the last token to the others, it is masked or has no attention: choose another "
            "donor or layer"
        )
    return measured


def _measure(block: nn.Module, name: str, in_order: bool, generator: torch.Generator) -> dict[str, float]:
    """Return what :func:`self_test` measures, on the generator's next tokens."""
    weight = main_weight(block)
    x = torch.randn(1, TOKENS, block.width, generator=generator).to(weight).requires_grad_()  # type: ignore[call-overload]
    # A random direction, because the plain sum over the output of a LayerNorm is constant.
    along = torch.randn(x.shape, generator=generator).to(weight)
    orders = [torch.arange(TOKENS - 1, -1, -1), torch.randperm(TOKENS, generator=generator)]
    # If transformers runs the block, its warnings concern language models only.
    loud = "transformers" in sys.modules
    try:
        with quiet() if loud else nullcontext(), torch.enable_grad():
            y = block(x)
            if not isinstance(y, Tensor) or y.shape != x.shape:
                got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
                raise TypeError(f"the output is {got}, not tokens {tuple(x.shape)}")
            (gradient,) = torch.autograd.grad((y * along)[:, :-1].sum(), x)
        with torch.no_grad():
            permuted = [] if in_order else [block(x[:, order]) - y[:, order] for order in orders]
    except Exception as error:  # code of any model runs here and raises its own errors
        line = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} does not run on visual tokens ({type(error).__name__}: {line}): choose another donor or layer"
        ) from error
    if not (y.isfinite().all() and gradient.isfinite().all()):
        raise ValueError(
            f"the output or a gradient of {name} is not finite, its weights are damaged or too large for "
            f"{str(weight.dtype).removeprefix('torch.')}: read them again, or choose another dtype"
        )

    def largest(tensor: Tensor) -> float:
        return float(tensor.detach().abs().max())

    measured = {
        "change": largest(y - x) / largest(x),
        "first_token_gradient": largest(gradient[:, 0]),
        "last_token_gradient": largest(gradient[:, -1]),
    }
    if not in_order:
        measured["permutation_error"] = max(map(largest, permuted)) / max(largest(y), 1e-30)
    return measured
