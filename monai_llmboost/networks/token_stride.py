# SPDX-License-Identifier: Apache-2.0
"""Fewer tokens for a booster on a feature map: means over cells, and what the booster changes spread out again.

Cells are cubes of ``stride`` voxels along each axis; where one reaches over the end of an axis, the mean is that of the
voxels inside. The change of a cell is interpolated linearly between the centres of cells and not repeated for each of
its voxels, because steps at the borders of cells would be edges to the convolutions after the joint.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def pool_map(x: Tensor, stride: int) -> Tensor:
    """Return the mean of each cell of a map (B, C, *spatial), (B, C, *cells)."""
    missing: list[int] = []
    for size in x.shape[2:]:
        missing.insert(0, (stride - size % stride) % stride)  # the last axis comes first, as F.pad takes them
        missing.insert(0, 0)
    inside = torch.ones_like(x[:1, :1])
    return mean_of_cells(F.pad(x, missing), stride) / mean_of_cells(F.pad(inside, missing), stride)


def mean_of_cells(x: Tensor, stride: int) -> Tensor:
    """Return the mean of each cell of a map whose sizes are multiples of the stride."""
    if x.dim() == 3:
        return F.avg_pool1d(x, stride)
    if x.dim() == 4:
        return F.avg_pool2d(x, stride)
    return F.avg_pool3d(x, stride)


def spread_map(change: Tensor, x: Tensor, stride: int) -> Tensor:
    """Return a change of cells (B, C, *cells) at the voxels of the map x (B, C, *spatial), in the dtype of x."""
    mode = "linear" if x.dim() == 3 else "bilinear" if x.dim() == 4 else "trilinear"
    change = F.interpolate(change, scale_factor=float(stride), mode=mode, align_corners=False)
    for axis, size in enumerate(x.shape[2:]):
        change = change.narrow(axis + 2, 0, size)
    return change.to(x.dtype)
