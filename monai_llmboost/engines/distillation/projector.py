# SPDX-License-Identifier: Apache-2.0
"""Maps features of one kind to another: vectors, tokens and feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import check_choice, check_whole
from monai_llmboost.engines.distillation.reprogramming import ReprogrammingHead, resampled


class Projector(nn.Module):
    """Maps a network's features to the shape of another's: a change of their kind, and a :class:`ReprogrammingHead`.

    A feature map or tokens become a vector by their mean. Tokens become a feature map on the grid of their patches, and
    a CLS token, the first one, is left out. A feature map becomes tokens by resampling to the grid of the wanted
    patches, with the mean as the CLS token. Tokens of another number are put on a grid and taken from it again; a CLS
    token then stays one. Only ``head`` has weights.

    Args:
        given: shape of the features without the axis of the batch: (F,) a vector, (N, C) tokens, (C, S0, S1) or
            (C, S0, S1, S2) a feature map.
        wanted: shape of the features that are returned.
        image_size: pixels or voxels of the networks' input along each axis, which tells tokens' grid.

    Raises:
        ValueError: features of another number of axes; tokens without a grid; a vector where tokens or a feature map
            are wanted; in ``forward``, features of another shape.

    Example:
        >>> Projector([512], [64], [28, 28, 28])(torch.zeros(4, 512)).shape
        torch.Size([4, 64])
        >>> Projector([344, 192], [32, 14, 14, 14], [28, 28, 28])(torch.zeros(1, 344, 192)).shape
        torch.Size([1, 32, 14, 14, 14])
    """

    def __init__(self, given: Sequence[int], wanted: Sequence[int], image_size: Sequence[int]) -> None:
        super().__init__()
        image = [*image_size]
        check_choice("number of axes of image_size", len(image), (2, 3))
        axes = [_axes(shape, image) for shape in (given, wanted)]
        self.shape = [*given]
        self.change = nn.Sequential()
        if axes[0] < axes[1]:
            if axes[0] == 1:
                raise ValueError(
                    f"features of shape {self.shape} are a vector, which says nothing of places, and cannot be mapped "
                    f"to {[*wanted]}: take features from a layer before the pooling, or distil by logits"
                )
            self.change.append(TokensToMap(*_grid(given[0], image)))
        elif axes[1] == 1 and axes[0] > 1:
            self.change.append(MeanOfPlaces(axis=1 if axes[0] == 2 else 2))
        elif axes[1] == 2 and axes[0] > 2:
            self.change.append(MapToTokens(*_grid(wanted[0], image)))
        elif axes[1] == 2 and given[0] != wanted[0]:
            self.change.append(OtherTokens(_grid(given[0], image), _grid(wanted[0], image)))
        if axes[1] > 2:
            self.head = ReprogrammingHead(_width(given), wanted[0], len(image), size=[*wanted[1:]])
        else:
            self.head = ReprogrammingHead(_width(given), wanted[-1])

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, *given) to (B, *wanted)."""
        if list(features.shape[1:]) != self.shape:
            raise ValueError(
                f"features of shape {list(features.shape)} do not fit a projector of {self.shape}: build it for the "
                "network and the volumes that they come from"
            )
        mapped: Tensor = self.head(self.change(features))
        return mapped


class MeanOfPlaces(nn.Module):
    """The mean over the tokens, axis 1 of (B, N, C), or over the voxels, the axes from 2 of (B, C, S0, ...)."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Return vectors (B, C)."""
        return x.mean(1) if self.axis == 1 else x.flatten(2).mean(2)


class TokensToMap(nn.Module):
    """Puts tokens (B, [1 +] N, C) on the grid of their patches, (B, C, G0, G1[, G2]), without a CLS token."""

    def __init__(self, grid: Sequence[int], with_cls: bool) -> None:
        super().__init__()
        self.grid = [*grid]
        self.first = int(with_cls)

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map."""
        return x[:, self.first :].transpose(1, 2).unflatten(2, self.grid)


class MapToTokens(nn.Module):
    """Resamples a feature map to a grid, and returns its voxels as tokens, after their mean as a CLS token."""

    def __init__(self, grid: Sequence[int], with_cls: bool) -> None:
        super().__init__()
        self.grid = [*grid]
        self.with_cls = with_cls

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, [1 +] N, C)."""
        tokens = resampled(x, self.grid).flatten(2).transpose(1, 2)
        return torch.cat([x.flatten(2).mean(2)[:, None], tokens], dim=1) if self.with_cls else tokens


class OtherTokens(nn.Module):
    """Resamples tokens from one grid of patches to another; a CLS token of both stays as it is."""

    def __init__(self, given: tuple[Sequence[int], bool], wanted: tuple[Sequence[int], bool]) -> None:
        super().__init__()
        self.keeps_cls = given[1] and wanted[1]
        self.to_map = TokensToMap(*given)
        self.to_tokens = MapToTokens(wanted[0], wanted[1] and not given[1])

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, [1 +] N, C)."""
        tokens: Tensor = self.to_tokens(self.to_map(x))
        return torch.cat([x[:, :1], tokens], dim=1) if self.keeps_cls else tokens


def _axes(shape: Sequence[int], image: Sequence[int]) -> int:
    """Return the number of axes of a shape: 1 for a vector, 2 for tokens, more for a feature map.

    Raises:
        ValueError: another number, or a size that is no whole number from 1.
    """
    for number in shape:
        check_whole("each number of a shape of features", number, 1)
    if len(shape) not in (1, 2, len(image) + 1):
        voxels = ", ".join(f"S{axis}" for axis in range(len(image)))
        raise ValueError(
            f"features of shape {[*shape]} are neither a vector (F,), nor tokens (N, C), nor a feature map "
            f"(C, {voxels}): choose another layer"
        )
    return len(shape)


def _width(shape: Sequence[int]) -> int:
    """Return the number of features: the last axis of a vector and of tokens, the first of a feature map."""
    return shape[-1] if len(shape) < 3 else shape[0]


def _grid(tokens: int, image: Sequence[int]) -> tuple[list[int], bool]:
    """Return the grid of the patches that tokens are of, and whether there is a CLS token before them.

    There is at most one such grid: the numbers of two are never one apart.

    Raises:
        ValueError: no whole size of a patch gives this number of tokens.
    """
    for with_cls in (False, True):
        for patch in range(1, min(image) + 1):
            grid = [size // patch for size in image]
            if all(size % patch == 0 for size in image) and math.prod(grid) == tokens - with_cls:
                return grid, with_cls
    raise ValueError(
        f"{tokens} tokens are not those of cubic patches of a volume of {' x '.join(map(str, image))}, with or without "
        "a CLS token: their places are unknown, and they can only be mapped to as many tokens, or to a vector"
    )
