# SPDX-License-Identifier: Apache-2.0
"""Untrained convolutions as features of volumes: the cheapest strong ones, and they need no file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from monai_llmboost.arguments import check_whole
from monai_llmboost.networks.features.embedding import Embedding

LARGEST_SIDE = 64  # voxels; larger volumes are averaged to it
WIDTHS = (16, 32, 64)  # channels
KERNEL = 5
GRID = 3  # places along each axis at which the outputs are averaged


class UntrainedConvolutions(Embedding):
    """The outputs of three untrained convolutions, averaged on a grid: (B, C, S0, S1, S2) -> (B, 3024).

    Each layer is a convolution, a ReLU, and, except after the last, an average over 2 x 2 x 2 voxels; all three layers
    give features. The weights are those of He et al. (2015, arXiv:1502.01852).

    Args:
        image_shape: (C, S0, S1, S2) of a volume.
        seed: seed of the weights; the global random state is not changed.

    Example:
        >>> UntrainedConvolutions((1, 28, 28, 28), seed=1)(torch.rand(2, 1, 28, 28, 28)).shape
        torch.Size([2, 3024])
    """

    def __init__(self, image_shape: Sequence[int], seed: int = 0) -> None:
        super().__init__(image_shape)
        check_whole("the seed of the features", seed, 0)
        random = torch.Generator().manual_seed(seed)
        for number, (channels, width) in enumerate(zip((image_shape[0], *WIDTHS), WIDTHS)):
            weight = torch.empty(width, channels, *[KERNEL] * 3)
            self.register_buffer(
                f"weight{number}", nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=random)
            )
        self.finish()

    def embed(self, x: Tensor) -> Tensor:
        """Map volumes (B, C, S0, S1, S2) to features (B, 3024)."""
        first, second, third = (min(side, LARGEST_SIDE) for side in x.shape[2:])
        x = functional.adaptive_avg_pool3d(x, (first, second, third))
        features = []
        for number in range(len(WIDTHS)):
            if number:
                x = functional.avg_pool3d(x, [min(2, side) for side in x.shape[2:]])
            x = functional.conv3d(x, self.get_buffer(f"weight{number}"), padding="same").relu()
            features.append(functional.adaptive_avg_pool3d(x, GRID).flatten(1))  # (B, width * 27)
        return torch.cat(features, dim=1)
