# SPDX-License-Identifier: Apache-2.0
"""The residual booster of R-LLM: a frozen block between two trained linear maps."""

from __future__ import annotations

from torch import Tensor, nn

from monai_llmboost.llm import Signature

RESIDUALS = ("inner", "outer", "both", "none", "projected")


class ResidualBooster(nn.Module):
    """Visual tokens through a frozen block, between two trained linear maps and a residual.

    ``h = F_E(x)``; ``y = block(h) [+ h]``; ``z = F_D(y) [+ x | + LeakyReLU(P x)]``

    Lai et al. 2024, arXiv:2403.17343; ``residual="inner"`` is the paper's best, its published code calls the five
    ``llm_in``, ``llm_out``, ``llm_hybrid``, ``llm`` and ``llm_out_nn``.

    Args:
        channels: features of a visual token, C.
        block: tokens (B, N, D) -> (B, N, D) with an attribute ``width`` = D, such as
            :class:`monai_llmboost.llm.FrozenBlock`.
        residual: ``"inner"`` adds h to the block's output, ``"outer"`` adds x to the booster's, ``"both"`` both,
            ``"none"`` neither, ``"projected"`` adds ``LeakyReLU(P x)`` with a trained P to the booster's output.

    Raises:
        ValueError: an unknown residual or channels below 1.
        TypeError: the block has no whole-number attribute ``width``.
    """

    def __init__(self, channels: int, block: nn.Module, residual: str = "inner") -> None:
        super().__init__()
        if residual not in RESIDUALS:
            raise ValueError(f"expected residual to be one of {', '.join(RESIDUALS)}, got {residual!r}")
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"expected channels to be a whole number from 1, got {channels!r}")
        width = getattr(block, "width", None)
        if not isinstance(width, int):
            raise TypeError(f"expected a block with an attribute `width`, got {type(block).__name__}: see FrozenBlock")
        self.channels = channels
        self.signature = Signature("residual", residual, "give the --residual that it was trained with")
        self.inner = residual in ("inner", "both")
        self.outer = residual in ("outer", "both", "projected")
        self.encode = nn.Linear(channels, width, bias=False)
        self.block = block
        self.decode = nn.Linear(width, channels, bias=False)
        self.skip: nn.Module = nn.Identity()
        if residual == "projected":
            self.skip = nn.Sequential(nn.Linear(channels, channels, bias=False), nn.LeakyReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C)."""
        h = self.encode(x)  # (B, N, D)
        y = self.block(h)
        if self.inner:
            y = y + h
        z = self.decode(y)  # (B, N, C)
        if self.outer:
            z = z + self.skip(x)
        return z
