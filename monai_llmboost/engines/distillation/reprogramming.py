# SPDX-License-Identifier: Apache-2.0
"""A small trained map from a teacher's features to a student's."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn
from torch.nn import functional

from monai_llmboost.arguments import check_choice, check_whole

INTERPOLATION = {2: "bilinear", 3: "trilinear"}


class ReprogrammingHead(nn.Module):
    """Maps a teacher's features to the size of a student's: a linear map and a residual with one hidden layer.

    ``z = A x``, ``out = z + W2 gelu(W1 norm(z))``. W2 starts at zero, so that training starts at a linear map. For
    feature maps, W1 and W2 are convolutions over 3 voxels along each axis, and the map is resampled to the student's
    grid first. The head of Reprogramming Distillation (arXiv:2407.06504) is described as a small residual network; its
    exact layers are not known to us, so that their number and width are our choice.

    Args:
        in_features: features, or channels, of the teacher.
        out_features: features, or channels, of the student.
        spatial_dims: 0: features are the last axis, of vectors (B, F) or tokens (B, N, F); 2 or 3: they are the axis 1
            of feature maps (B, F, S0, S1) or (B, F, S0, S1, S2).
        hidden_features: width of the hidden layer; ``None``: ``out_features``.
        size: voxels of the student's feature map along each axis; ``None`` keeps the teacher's.

    Raises:
        ValueError: numbers below 1, other ``spatial_dims``, a size that does not fit them; in ``forward``, features of
            another shape.

    Example:
        >>> import torch
        >>> ReprogrammingHead(1024, 128)(torch.zeros(4, 1024)).shape
        torch.Size([4, 128])
        >>> ReprogrammingHead(32, 16, spatial_dims=3, size=[4, 4, 4])(torch.zeros(1, 32, 8, 8, 8)).shape
        torch.Size([1, 16, 4, 4, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        spatial_dims: int = 0,
        hidden_features: int | None = None,
        size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        hidden = out_features if hidden_features is None else hidden_features
        for name, number in (
            ("in_features", in_features),
            ("out_features", out_features),
            ("hidden_features", hidden),
            *(("each number of size", number) for number in size or ()),
        ):
            check_whole(name, number, 1)
        check_choice("spatial_dims", spatial_dims, (0, 2, 3))
        if size is not None and len(size) != spatial_dims:
            raise ValueError(f"size {list(size)} has not {spatial_dims} axes: give one number of voxels for each axis")
        self.in_features = in_features
        self.spatial_dims = spatial_dims
        self.size = None if size is None else [*size]
        if spatial_dims:
            conv = Conv[Conv.CONV, spatial_dims]
            self.linear: nn.Module = conv(in_features, out_features, 1)
            wide = [conv(out_features, hidden, 3, padding=1), conv(hidden, out_features, 3, padding=1)]
            norm: nn.Module = nn.GroupNorm(1, out_features)
        else:
            self.linear = nn.Linear(in_features, out_features)
            wide = [nn.Linear(out_features, hidden), nn.Linear(hidden, out_features)]
            norm = nn.LayerNorm(out_features)
        self.residual = nn.Sequential(norm, wide[0], nn.GELU(), wide[1])
        nn.init.zeros_(wide[1].weight)
        nn.init.zeros_(wide[1].bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map features of the teacher to features of the student."""
        axis = 1 if self.spatial_dims else -1
        axes = (2 + self.spatial_dims,) if self.spatial_dims else (2, 3)
        if x.dim() not in axes or x.shape[axis] != self.in_features:
            raise ValueError(
                f"features of shape {list(x.shape)} do not fit a head for {self.in_features} features on axis {axis} "
                f"of {' or '.join(map(str, axes))}: build the head for this teacher and this stage"
            )
        if self.size is not None and [*x.shape[2:]] != self.size:
            x = resampled(x, self.size)
        z = self.linear(x)
        return z + self.residual(z)


def resampled(x: Tensor, size: list[int]) -> Tensor:
    """Resample feature maps to a grid: the mean of voxels where it is coarser, interpolated where it is finer."""
    coarser = [min(there, wanted) for there, wanted in zip(x.shape[2:], size, strict=True)]
    pooled: Tensor = Pool[Pool.ADAPTIVEAVG, len(size)](coarser)(x)
    if coarser == size:
        return pooled
    return functional.interpolate(pooled, size, mode=INTERPOLATION[len(size)], align_corners=False)  # type: ignore[arg-type]
