# SPDX-License-Identifier: Apache-2.0
"""Fewer tokens for a booster on a feature map: means over cells, and what the booster changes spread out again.

Cells are cubes of ``stride`` voxels along each axis; those at the end of an axis may be smaller, and none is larger
than the map. The change of a cell is interpolated linearly between the centres of cells and not repeated for each of
its voxels, because steps at the borders of cells would be edges to the convolutions after the joint.
"""

from torch import Tensor
from torch.nn import functional as F


def pool_map(x: Tensor, stride: int) -> Tensor:
    """Return the mean of each cell of a map (B, C, *spatial), (B, C, *cells)."""
    cell = [min(stride, size) for size in x.shape[2:]]
    if x.dim() == 3:
        return F.avg_pool1d(x, cell, cell, [0], True, False)
    if x.dim() == 4:
        return F.avg_pool2d(x, cell, cell, [0, 0], True, False)
    return F.avg_pool3d(x, cell, cell, [0, 0, 0], True, False)


def spread_map(change: Tensor, x: Tensor, stride: int) -> Tensor:
    """Return a change of cells (B, C, *cells) at the voxels of the map x (B, C, *spatial), in the dtype of x."""
    scale = [float(min(stride, size)) for size in x.shape[2:]]
    mode = "linear" if x.dim() == 3 else "bilinear" if x.dim() == 4 else "trilinear"
    change = F.interpolate(change, None, scale, mode, False)
    for axis, size in enumerate(x.shape[2:]):
        change = change.narrow(axis + 2, 0, size)  # the last cells may be smaller
    return change.to(x.dtype)
