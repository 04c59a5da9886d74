# SPDX-License-Identifier: Apache-2.0
"""A frozen block with a few trained weights beside those of its attention: between freezing and training it all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.artifacts.signature import Signature
from monai_llmboost.llm.block_file import frozen_block
from monai_llmboost.llm.frozen import FrozenBlock
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import generator_of

# Added to the seed, whose own random numbers draw a random block and the maps around it.
STREAM = 2_000_003


class LowRankLinear(nn.Module):
    """A frozen linear map and a trained one of low rank: ``y = (W + (alpha / rank) B A) x + bias``.

    A begins uniform within ``1 / sqrt(inputs)`` and B at zero, so that training begins at the frozen map exactly.

    Args:
        linear: the frozen map, of which ``weight`` (outputs, inputs) and perhaps ``bias`` are taken, not copied.
        rank: columns of B and rows of A.
        alpha: over ``rank`` it is the factor of the product.
        generator: draws A.
    """

    if TYPE_CHECKING:
        frozen: Tensor
        bias: Tensor | None

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.scale = alpha / rank
        self.register_buffer("frozen", linear.weight, persistent=False)
        self.register_buffer("bias", linear.bias, persistent=False)
        self.a = nn.Parameter(torch.empty(rank, inputs, dtype=torch.float32))
        self.b = nn.Parameter(torch.zeros(outputs, rank, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5), generator=generator)

    @property
    def weight(self) -> Tensor:
        """The sum of both maps, (outputs, inputs), rounded once to the dtype of W."""
        return (self.frozen + self.scale * (self.b @ self.a)).to(self.frozen.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., inputs) to tokens (..., outputs)."""
        return F.linear(x, self.weight, self.bias)


def lora_block(
    source: str | Path | BlockGeometry,
    rank: int = 4,
    alpha: float = 4.0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> FrozenBlock:
    """What ``--block SOURCE`` says, frozen, with a trained sum of low rank on its attention: the ``lora`` arm.

    The maps to queries, keys and values and the output's become :class:`LowRankLinear` (Hu et al. 2021,
    arXiv:2106.09685; Kuzucu et al. 2025, arXiv:2507.00754, adapt a language model's layer to images so, in masked
    pre-training). A and B are float32 parameters, which an optimizer sees and a checkpoint holds; the rest stays as in
    any :class:`FrozenBlock`. As the sum is again a weight, a few tokens are read exactly and at little cost, as of the
    frozen block.

    Args:
        source: as in :func:`frozen_block`.
        rank: as in :class:`LowRankLinear`.
        alpha: as in :class:`LowRankLinear`; while it stays, another rank needs no other learning rate.
        seed: seed of A, and of a random block; no other random number is touched.
        dtype: dtype to keep the frozen weights in.
        options: ``final_norm``, ``causal``, ``rotary`` as in :class:`FrozenBlock`.

    Raises:
        ValueError: a rank that is no whole number from 1, an alpha that is not above 0, or a layer that is not run
            natively; all that ``frozen_block`` raises.
        FileNotFoundError: no such file.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"expected rank to be a whole number from 1, got {rank!r}: give --lora_rank 4, say")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha < math.inf:
        raise ValueError(f"expected alpha to be a number above 0, got {alpha!r}: give 4.0, say")
    block = frozen_block(source, seed, dtype, **options)
    if not block.native:
        raise ValueError(
            "expected a family that is run natively for lora, this layer is run by transformers' own class: choose "
            "another arm or another donor"
        )
    generator = generator_of(seed + STREAM)
    for layer in (*block.before, block.layer):
        for name in ("query", "key", "value", "output"):
            setattr(layer, name, LowRankLinear(getattr(layer, name), rank, alpha, generator))
    block.signature = Signature(
        "block",
        f"lora of rank {rank} and alpha {alpha:g} on {block.signature.text}",
        "run with the arm, --lora_rank and --block it was trained with, or train again",
        compared=f"lora {rank} {alpha:g} {block.signature.digest}",
    )
    return block
