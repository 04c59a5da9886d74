# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (LoRA) on the attention of a frozen block."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_llmboost.adapters.adapter import Adapter, adapt_
from monai_llmboost.arguments import check_whole, is_positive
from monai_llmboost.artifacts.signature import Signature
from monai_llmboost.llm.frozen import FrozenBlock, scale_advice
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import generator_of
from monai_llmboost.llm.sources import frozen_block

# Added to the seed, because the seed itself draws a random block and the maps around it.
STREAM = 2_000_003


class LowRankLinear(Adapter):
    """A frozen linear map and a trained map of low rank: ``y = x (W + (alpha / rank) B A)^T + bias``.

    A starts uniform within ``1 / sqrt(inputs)`` and B at zero, so that training starts exactly at the frozen map.

    ``torch.nn.utils.parametrize`` is not used, because scripted networks with it raise when they run, and it puts the
    frozen weight into checkpoints and changes the names of the weights.

    Args:
        linear: the frozen map; ``weight`` (outputs, inputs) and an optional ``bias`` are used without a copy.
        rank: columns of B and rows of A.
        alpha: the product B A is multiplied by ``alpha / rank``.
        generator: random generator for A; ``None`` is torch's global one.

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
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> FrozenBlock:
    """Make the frozen block that ``--block SOURCE`` names, with low-rank adapters on its attention: the ``lora`` arm.

    The query, key, value and output maps become :class:`LowRankLinear` (Hu et al. 2021, arXiv:2106.09685; Kuzucu et
    al. 2025, arXiv:2507.00754, adapt a language model's layer to images in this way, in masked pre-training). A and B
    are float32 parameters, which optimizers see and checkpoints contain; all else is as in any :class:`FrozenBlock`.
    Because the sum is a weight again, the exact read-out of a few tokens works as for the frozen block.

    Args:
        source: as in :func:`frozen_block`.
        rank: as in :class:`LowRankLinear`.
        alpha: as in :class:`LowRankLinear`; with a fixed alpha, a new rank does not need a new learning rate.
        seed: seed of A, and of a random block; the global random state is not changed.
        dtype: dtype of the frozen weights, or ``"auto"``, as in :class:`FrozenBlock`.
        options: ``h_scale`` as in :func:`monai_llmboost.llm.load_block`; ``final_norm``, ``causal``, ``rotary`` as in
            :class:`FrozenBlock`.

    Raises:
        ValueError: the rank is not a whole number from 1, alpha is not above 0, or a layer is not run natively; also
            all errors of ``frozen_block``.
        FileNotFoundError: no such file.

    Example:
        >>> block = lora_block("random", rank=2)
        >>> [name for name, _ in block.named_parameters()][:2]
        ['layer.query.a', 'layer.query.b']
    """
    check_whole("rank", rank, 1, advice="give --lora_rank 4, for example")
    if not is_positive(alpha):
        raise ValueError(f"alpha must be a number above 0, not {alpha!r}: give --lora_alpha 4.0, for example")
    block = frozen_block(source, seed, dtype, **options)
    generator = generator_of(seed + STREAM)
    adapt_(block, lambda linear: LowRankLinear(linear, rank, alpha, generator))
    block.signature = Signature(
        "block",
        f"lora of rank {rank} and alpha {alpha:g} on {block.signature.text}",
        f"run with the arm, --lora_rank and --block it was trained with{scale_advice(block.h_rms)}, or train again",
        compared=f"lora {rank} {alpha:g} {block.signature.digest}",
    )
    return block
