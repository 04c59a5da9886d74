# SPDX-License-Identifier: Apache-2.0
"""The control arms: what takes the frozen block's place so that only one thing differs.

They are blocks, not boosters: the two trained maps, their initialisation and the residual stay those of
:class:`ResidualBooster`. The random-frozen control is :func:`monai_llmboost.llm.random_block`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.boosters.residual import ResidualBooster
from monai_llmboost.llm import BlockGeometry, Signature, block_width

REMEDY = "run with the arm it was trained with, or train again"


class MLPControl(nn.Module):
    """In the block's place a GELU and an RMSNorm, nothing frozen, nothing mixed between tokens: the ``mlp`` arm.

    ``y = RMSNorm(GELU(h))``; with the trained maps around it this is a two-layer MLP with exactly the booster's
    trained parameters (Pang et al. 2024, arXiv:2310.12973, table 6, whose control also has a non-linearity; the one
    in the published R-LLM code has none and is :class:`IdentityControl`).

    Args:
        width: features of a token between the maps, D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.tokenwise = True
        self.signature = Signature("block", "mlp control", REMEDY)

    def forward(self, h: Tensor) -> Tensor:
        """Tokens (B, N, D) to tokens (B, N, D)."""
        return F.rms_norm(F.gelu(h), [self.width])


class IdentityControl(nn.Module):
    """In the block's place nothing: the two trained maps alone, ``llm_mlp`` of the published R-LLM code.

    Args:
        width: features of a token between the maps, D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.tokenwise = True
        self.signature = Signature("block", "identity control", REMEDY)

    def forward(self, h: Tensor) -> Tensor:
        """Tokens (B, N, D), unchanged."""
        return h


def mlp_booster(
    channels: int, like: str | Path | BlockGeometry, residual: str = "inner", gate: bool = False
) -> ResidualBooster:
    """The ``mlp`` arm: as many trained parameters as the booster with the block ``like`` has, no frozen ones.

    Args:
        channels: features of a visual token, C.
        like: the block it is compared with: a block file, ``"random"`` or a geometry; only its width is read.
        residual: as in :class:`ResidualBooster`.
        gate: as in :class:`ResidualBooster`.
    """
    return ResidualBooster(channels, MLPControl(block_width(like)), residual, gate=gate)
