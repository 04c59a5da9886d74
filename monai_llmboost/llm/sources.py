# SPDX-License-Identifier: Apache-2.0
"""Blocks from ``--block SOURCE``: a block file, ``embedded`` or ``random``; frozen or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from monai_llmboost.llm.block_file import read_block, read_header
from monai_llmboost.llm.frozen import SMALL_GEOMETRY, FrozenBlock
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import DonorLayers, random_layer
from monai_llmboost.llm.self_test import self_test


def load_block(file: str | Path, dtype: torch.dtype | None = None, **options: Any) -> FrozenBlock:
    """Read a block file written by ``monai-llmboost extract`` and run its self-test: the ``pretrained`` arm.

    Args:
        file: the block file; ``"embedded"`` is the small one in the package.
        dtype: dtype of the weights; ``None`` keeps the donor's.
        options: ``final_norm``, ``causal``, ``rotary``, ``trained`` as in :class:`FrozenBlock`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a block file, altered after extraction, or its self-test fails.

    Example:
        >>> load_block("embedded")
        FrozenBlock(
          tiny-english layer 5 (...)
          ...
    """
    return _tested(read_block(file), dtype, known_fingerprint=read_header(file)["fingerprint"], **options)


def random_block(
    like: str | Path | BlockGeometry = SMALL_GEOMETRY,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> FrozenBlock:
    """Make a frozen block of random weights: the ``random`` arm, the control for the effect of pre-training.

    Args:
        like: a block file, whose geometry and scale (mean and standard deviation of each tensor) are matched; a
            geometry; or ``"random"`` for a small block.
        seed: seed of the weights; the global random state is not changed.
        dtype: dtype of the weights; ``None`` is float32.
        options: ``final_norm``, ``causal``, ``rotary``, ``trained`` as in :class:`FrozenBlock`.

    Example:
        >>> random_block(BlockGeometry(width=16, mlp_width=32, num_heads=2, num_kv_heads=1, head_size=8), seed=1).width
        16
    """
    if isinstance(like, BlockGeometry) or like == "random":
        return _tested(
            random_layer(like if isinstance(like, BlockGeometry) else SMALL_GEOMETRY, seed), dtype, **options
        )
    return _tested(read_block(like).random(seed), dtype, **options)


def frozen_block(
    source: str | Path | BlockGeometry,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> FrozenBlock:
    """Make the frozen block that ``--block SOURCE`` names.

    Args:
        source: a file written by ``monai-llmboost extract``; ``"embedded"`` for the one in the package; ``"random"``
            or a geometry for random weights.
        seed: seed of a random block.
        dtype: dtype of the weights.
        options: ``final_norm``, ``causal``, ``rotary``, ``trained`` as in :class:`FrozenBlock`.

    Example:
        >>> frozen_block("random", seed=2).signature.text.partition(" (")[0]
        'random seed 2'
    """
    if isinstance(source, BlockGeometry) or source == "random":
        return random_block(source, seed, dtype, **options)
    return load_block(source, dtype, **options)


def trained_block(
    source: str | Path | BlockGeometry,
    seed: int = 0,
    final_norm: str = "unit",
    causal: bool = False,
    rotary: bool = False,
) -> FrozenBlock:
    """Make the block that ``--block SOURCE`` names with trained float32 weights: the ``pretrained-trained`` arm.

    Args:
        source: as in :func:`frozen_block`.
        seed: seed of a random block.
        final_norm: as in :class:`FrozenBlock`.
        causal: as in :class:`FrozenBlock`.
        rotary: as in :class:`FrozenBlock`.

    Example:
        >>> sum(weight.numel() for weight in trained_block("random").parameters())
        442752
    """
    return frozen_block(source, seed, final_norm=final_norm, causal=causal, rotary=rotary, trained=True)


def block_width(source: str | Path | BlockGeometry) -> int:
    """Return the features of a token of the block that ``--block SOURCE`` names; only the header is read.

    Example:
        >>> block_width("embedded")
        256
    """
    if isinstance(source, BlockGeometry):
        return source.width
    if source == "random":
        return SMALL_GEOMETRY.width
    return int(read_header(source)["width"])


def _tested(donor: DonorLayers, dtype: torch.dtype | None, **options: Any) -> FrozenBlock:
    """Return the block of these layers after its self-test."""
    block = FrozenBlock(donor, dtype, **options)
    self_test(block, donor.name, in_order=block.in_order)
    block.zero_grad(set_to_none=True)  # the self-test leaves gradients in a trained block
    return block
