# SPDX-License-Identifier: Apache-2.0
"""Control arms: modules that replace the frozen block while all else stays equal.

They are blocks, not boosters: :class:`ResidualBooster` still provides the trained maps, their initialisation and the
residual. The control with random frozen weights is :func:`monai_llmboost.llm.random_block`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.boosters.residual import ResidualBooster
from monai_llmboost.llm import BlockGeometry, Signature, block_width

REMEDY = "run with the arm it was trained with, or train again"


class MLPControl(nn.Module):
    """A GELU and an RMSNorm instead of the block, without frozen weights or attention: the ``mlp`` arm.

    ``y = RMSNorm(GELU(h))``; with the trained maps around it this is a two-layer MLP with the same number of trained
    parameters as the booster (as in Pang et al. 2024, arXiv:2310.12973, table 6). The control of the published R-LLM
    code has no non-linearity: :class:`IdentityControl`.

    Args:
        width: features of a token between the maps, D.

    Example:
        >>> MLPControl(8)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.tokenwise = True
        self.signature = Signature("block", "mlp control", REMEDY)

    def forward(self, h: Tensor) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D)."""
        return F.rms_norm(F.gelu(h), [self.width])


class IdentityControl(nn.Module):
    """No block, only the two trained maps: ``llm_mlp`` of the published R-LLM code.

    Args:
        width: features of a token between the maps, D.

    Example:
        >>> h = torch.ones(2, 5, 8)
        >>> IdentityControl(8)(h) is h
        True
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.tokenwise = True
        self.signature = Signature("block", "identity control", REMEDY)

    def forward(self, h: Tensor) -> Tensor:
        """Return tokens (B, N, D) unchanged."""
        return h


def mlp_booster(
    channels: int,
    like: str | Path | BlockGeometry,
    residual: str | None = None,
    gate: bool = False,
    start: str | None = None,
) -> ResidualBooster:
    """Make the ``mlp`` arm: as many trained parameters as the booster with the block ``like``, and no frozen ones.

    Args:
        channels: features of a visual token, C.
        like: the block to compare with: a block file, ``"random"`` or a geometry; only its width is read.
        residual: as in :class:`ResidualBooster`.
        gate: as in :class:`ResidualBooster`.
        start: as in :class:`ResidualBooster`.

    Example:
        >>> sum(weight.numel() for weight in mlp_booster(32, like="embedded").parameters()) == 2 * 32 * 256
        True
    """
    return ResidualBooster(channels, MLPControl(block_width(like)), residual, gate=gate, start=start)
