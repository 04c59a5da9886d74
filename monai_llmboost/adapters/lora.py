# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters on the attention of a frozen block: between freezing and training all of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_llmboost.adapters.adapter import Adapter, adapt_
from monai_llmboost.arguments import check_whole
from monai_llmboost.artifacts.signature import Signature
from monai_llmboost.llm.frozen import FrozenBlock
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import generator_of
from monai_llmboost.llm.sources import frozen_block

# Added to the seed, whose own random numbers draw a random block and the maps around it.
STREAM = 2_000_003


class LowRankLinear(Adapter):
    """A frozen linear map and a trained one of low rank: ``y = x (W + (alpha / rank) B A)^T + bias``.

    A begins uniform within ``1 / sqrt(inputs)`` and B at zero, so that training begins at the frozen map exactly.

    ``torch.nn.utils.parametrize`` would do the same sum, but a scripted network with it raises when it runs, it puts
    the frozen weight into checkpoints, and its names of the weights are not those of earlier ones.

    Args:
        linear: the frozen map, of which ``weight`` (outputs, inputs) and perhaps ``bias`` are taken, not copied.
        rank: columns of B and rows of A.
        alpha: over ``rank`` it is the factor of the product.
        generator: draws A; ``None`` is torch's own.

    Example:
        >>> adapter = LowRankLinear(nn.Linear(6, 4), rank=2, alpha=2.0)
        >>> {name: tuple(weight.shape) for name, weight in adapter.named_parameters()}
        {'a': (2, 6), 'b': (4, 2)}
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None = None) -> None:
        super().__init__(linear)
        outputs, inputs = linear.weight.shape
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.empty(rank, inputs, dtype=torch.float32))
        self.b = nn.Parameter(torch.zeros(outputs, rank, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5), generator=generator)

    def update(self) -> Tensor:
        """Return ``(alpha / rank) B A``, (outputs, inputs)."""
        return self.scale * (self.b @ self.a)


def lora_block(
    source: str | Path | BlockGeometry,
    rank: int = 4,
    alpha: float = 4.0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> FrozenBlock:
    """Make what ``--block SOURCE`` says, frozen, with low-rank adapters on its attention: the ``lora`` arm.

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

    Example:
        >>> block = lora_block("random", rank=2)
        >>> [name for name, _ in block.named_parameters()][:2]
        ['layer.query.a', 'layer.query.b']
    """
    check_whole("rank", rank, 1, advice="give --lora_rank 4, for example")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a number above 0, not {alpha!r}: give --lora_alpha 4.0, for example")
    block = frozen_block(source, seed, dtype, **options)
    generator = generator_of(seed + STREAM)
    adapt_(block, lambda linear: LowRankLinear(linear, rank, alpha, generator))
    block.signature = Signature(
        "block",
        f"lora of rank {rank} and alpha {alpha:g} on {block.signature.text}",
        "run with the arm, --lora_rank and --block it was trained with, or train again",
        compared=f"lora {rank} {alpha:g} {block.signature.digest}",
    )
    return block
