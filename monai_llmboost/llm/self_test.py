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
    """Return the largest floating tensor of the block, parameter or buffer: its dtype and device are the block's.

    Raises:
        ValueError: there is none.
    """
    floating = [tensor for tensor in chain(block.parameters(), block.buffers()) if tensor.is_floating_point()]
    if not floating:
        raise ValueError("the block has no weights: load them first")
    return max(floating, key=torch.numel)


def self_test(block: nn.Module, name: str, in_order: bool = False, tolerance: float | None = None) -> dict[str, float]:
    """Run a block on random tokens and refuse what is no full layer over unordered tokens.

    Measured on x (1, 8, D), drawn by a generator of its own, in the block's dtype and on its device:

    - ``change``: ``max |block(x) - x| / max |x|``, zero if the block does nothing;
    - ``first_token_gradient``: largest gradient of a sum over all outputs but the last in the first token;
    - ``last_token_gradient``: that in the last token, zero if a causal mask is on;
    - ``permutation_error``: ``max |block(x[:, p]) - block(x)[:, p]| / max |block(x)|`` for p backwards and shuffled.

    A layer that depends on order never passes the last one. One that does not may fail by chance where rounding sends a
    token to another expert, and so may try other tokens.

    Args:
        block: any module with ``width`` and ``forward(x)``; its weights must be there, not on the meta device.
        name: what the block is called in messages.
        in_order: positions or a causal mask are wanted, so that order may matter and the last token be hidden.
        tolerance: largest permutation error; ``None`` is 1e-4, or 2e-2 if the weights have fewer than 32 bits.

    Raises:
        ValueError: the block does not run, or breaks one of these rules.

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
    # A direction, as the plain sum of what a last LayerNorm gives is constant.
    along = torch.randn(x.shape, generator=generator).to(weight)
    orders = [torch.arange(TOKENS - 1, -1, -1), torch.randperm(TOKENS, generator=generator)]
    # Where transformers runs the block, it warns of what concerns language models only.
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
    except Exception as error:  # any model's code runs here, and fails by its own errors
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
