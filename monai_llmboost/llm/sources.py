# SPDX-License-Identifier: Apache-2.0
"""Blocks from ``--block SOURCE``: a block file, ``embedded`` or ``random``; frozen or trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from monai_llmboost.arguments import is_positive
from monai_llmboost.llm.block_file import read_block, read_header, stored_h_rms
from monai_llmboost.llm.frozen import SMALL_GEOMETRY, FrozenBlock
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import DonorLayers, random_layer
from monai_llmboost.llm.self_tests import self_test
from monai_llmboost.llm.stream_size import find_h_rms

# Copies of earlier bundles call these functions without h_scale, and their checkpoints are of blocks without it. So the
# default is their computation; the configs of the bundle say "donor".
PUBLISHED = "published"


def load_block(
    file: str | Path, dtype: torch.dtype | str | None = None, h_scale: str | float = PUBLISHED, **options: Any
) -> FrozenBlock:
    """Read a block file written by ``monai-llmboost extract`` and run its self-test: the ``pretrained`` arm.

    Args:
        file: the block file; ``"embedded"`` is the small one in the package.
        dtype: dtype of the weights, or ``"auto"``, as in :class:`FrozenBlock`; ``None`` is float32.
        h_scale: size of tokens: ``"donor"`` scales each to the size at which the layer works as in its model, which the
            file contains (see :func:`monai_llmboost.llm.find_h_rms`; without one, tokens are not scaled), a number to
            this root mean square; ``"published"`` takes tokens as they are, as the published code does.
        options: ``final_norm``, ``causal``, ``rotary``, ``trained`` as in :class:`FrozenBlock`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a block file, altered after extraction, its self-test fails, or an unknown ``h_scale``.

    Example:
        >>> load_block("embedded")
        FrozenBlock(
          tiny-english layer 5 (...)
          ...
    """
    with torch.device("cpu"):  # real weights also where a network is made on the device meta
        donor, header = read_block(file), read_header(file)
        h_rms = _h_rms(h_scale, lambda: stored_h_rms(header, donor))
        block = _tested(donor, dtype, h_rms=h_rms, known_fingerprint=header["fingerprint"], **options)
    return _placed(block)


def random_block(
    like: str | Path | BlockGeometry = SMALL_GEOMETRY,
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
    h_scale: str | float = PUBLISHED,
    **options: Any,
) -> FrozenBlock:
    """Make a frozen block of random weights: the ``random`` arm, the control for the effect of pre-training.

    Args:
        like: a block file, whose geometry and scale (mean and standard deviation of each tensor) are matched; a
            geometry; or ``"random"`` for a small block.
        seed: seed of the weights; the global random state is not changed.
        dtype: dtype of the weights, or ``"auto"``, as in :class:`FrozenBlock`; ``None`` is float32.
        h_scale: as in :func:`load_block`; ``"donor"`` finds the size from the random weights.
        options: ``final_norm``, ``causal``, ``rotary``, ``trained`` as in :class:`FrozenBlock`.

    Example:
        >>> random_block(BlockGeometry(width=16, mlp_width=32, num_heads=2, num_kv_heads=1, head_size=8), seed=1).width
        16
    """
    with torch.device("cpu"):
        if isinstance(like, BlockGeometry) or like == "random":
            donor = random_layer(like if isinstance(like, BlockGeometry) else SMALL_GEOMETRY, seed)
        else:
            donor = read_block(like).random(seed)
        block = _tested(donor, dtype, h_rms=_h_rms(h_scale, lambda: find_h_rms(donor)), **options)
    return _placed(block)


def frozen_block(
    source: str | Path | BlockGeometry,
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
    **options: Any,
) -> FrozenBlock:
    """Make the frozen block that ``--block SOURCE`` names.

    Args:
        source: a file written by ``monai-llmboost extract``; ``"embedded"`` for the one in the package; ``"random"``
            or a geometry for random weights.
        seed: seed of a random block.
        dtype: dtype of the weights, or ``"auto"``, as in :class:`FrozenBlock`; ``None`` is float32.
        options: ``h_scale`` as in :func:`load_block`; ``final_norm``, ``causal``, ``rotary``, ``trained`` as in
            :class:`FrozenBlock`.

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
    h_scale: str | float = PUBLISHED,
) -> FrozenBlock:
    """Make the block that ``--block SOURCE`` names with trained float32 weights: the ``pretrained-trained`` arm.

    Args:
        source: as in :func:`frozen_block`.
        seed: seed of a random block.
        final_norm: as in :class:`FrozenBlock`.
        causal: as in :class:`FrozenBlock`.
        rotary: as in :class:`FrozenBlock`.
        h_scale: as in :func:`load_block`; the size is that of the donor's weights and stays.

    Example:
        >>> sum(weight.numel() for weight in trained_block("random").parameters())
        442752
    """
    options: dict[str, Any] = {"final_norm": final_norm, "causal": causal, "rotary": rotary, "h_scale": h_scale}
    return frozen_block(source, seed, trained=True, **options)


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


def _h_rms(h_scale: str | float, find: Callable[[], float | None]) -> float | None:
    """Return the size of tokens that ``--h_scale`` names; ``find`` returns the donor's."""
    if h_scale == PUBLISHED:
        return None
    if h_scale == "donor":
        return find()
    if not is_positive(h_scale):
        raise ValueError(
            f"h_scale must be donor, published or a number above 0, not {h_scale!r}: give --h_scale donor, for example"
        )
    return float(h_scale)


def _tested(donor: DonorLayers, dtype: torch.dtype | str | None, **options: Any) -> FrozenBlock:
    """Return the block of these layers after its self-test."""
    block = FrozenBlock(donor, dtype, **options)
    self_test(block, donor.name, in_order=block.in_order)
    block.zero_grad(set_to_none=True)  # the self-test leaves gradients in a trained block
    return block


def _placed(block: FrozenBlock) -> FrozenBlock:
    """Return the block on torch's default device; on the CPU if that is ``meta``, which would lose its weights."""
    device = torch.get_default_device()
    return block if device.type in ("cpu", "meta") else block.to(device)
