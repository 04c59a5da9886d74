# SPDX-License-Identifier: Apache-2.0
"""A block that is trained on with the network around it: the control of what freezing does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from monai_llmboost.artifacts.signature import Signature
from monai_llmboost.llm.block_file import read_block
from monai_llmboost.llm.frozen import SMALL_GEOMETRY
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import DonorLayers, random_layer
from monai_llmboost.llm.self_test import self_test


class TrainedBlock(nn.Module):
    """Layers of a language model whose weights are where training begins: ``y = norm(layer(... layer(h)))``.

    They are ordinary float32 parameters: an optimizer sees them and a checkpoint holds them. All tokens are computed,
    for nothing can be folded into weights that change.

    Args:
        donor: the layers, one or several.
        final_norm: as in :class:`FrozenBlock`.
        causal: as in :class:`FrozenBlock`.
        rotary: as in :class:`FrozenBlock`.
    """

    def __init__(
        self, donor: DonorLayers, final_norm: str = "unit", causal: bool = False, rotary: bool = False
    ) -> None:
        super().__init__()
        layers = [layer.module(torch.float32, causal, rotary) for layer in donor.layers]
        self.width = layers[-1].width
        self.in_order = causal or rotary
        self.layers = nn.Sequential(*layers)
        self.final_norm = donor.final_norm_module(final_norm)
        for name, parameter in list(self.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            # A copy: the donor's tensors may be a file that is mapped into memory.
            setattr(self.get_submodule(owner), leaf, nn.Parameter(parameter.detach().float().clone()))
        options = "".join(f", {word}" for word, asked in (("causal", causal), ("rotary", rotary)) if asked)
        self.signature = Signature(
            "block",
            f"trained on from {donor.name} ({donor.fingerprint[:12]}{options}, final norm {final_norm})",
            "run with the block and options it was trained with (--block FILE), or train again",
        )

    def forward(self, h: Tensor) -> Tensor:
        """Tokens (B, N, D) to tokens (B, N, D), of the dtype that came in."""
        return self.final_norm(self.layers(h)).to(h.dtype)


def trained_block(
    source: str | Path | BlockGeometry,
    seed: int = 0,
    final_norm: str = "unit",
    causal: bool = False,
    rotary: bool = False,
) -> TrainedBlock:
    """What ``--block SOURCE`` says, to be trained on: the ``pretrained-trained`` arm.

    Args:
        source: as in :func:`frozen_block`.
        seed: seed of a random block.
        final_norm: as in :class:`FrozenBlock`.
        causal: as in :class:`FrozenBlock`.
        rotary: as in :class:`FrozenBlock`.
    """
    if isinstance(source, BlockGeometry) or source == "random":
        donor = random_layer(source if isinstance(source, BlockGeometry) else SMALL_GEOMETRY, seed)
    else:
        donor = read_block(source)
    block = TrainedBlock(donor, final_norm, causal, rotary)
    self_test(block, donor.name, in_order=block.in_order)
    block.zero_grad(set_to_none=True)
    return block
