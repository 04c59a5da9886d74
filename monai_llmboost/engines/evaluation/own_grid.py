# SPDX-License-Identifier: Apache-2.0
"""Probabilities of classes on a prepared grid, as class numbers on the scan's own grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


def to_own_grid(probabilities: Tensor, affine: np.ndarray, shape: Sequence[int], onto_affine: np.ndarray) -> np.ndarray:
    """Return the most probable class of each voxel of another grid, by linear interpolation of the probabilities.

    Args:
        probabilities: (classes, X, Y, Z).
        affine: (4, 4), its voxels to RAS+ mm.
        shape: (i, j, k) of the other grid.
        onto_affine: (4, 4), its voxels to RAS+ mm.

    Returns:
        uint8 (i, j, k); 0 outside of the grid of the probabilities.
    """
    to_voxel = np.linalg.inv(affine) @ onto_affine  # (i, j, k) -> (x, y, z)

    def to_unit(sizes: Sequence[int]) -> np.ndarray:  # voxels -> -1 to 1 between the outer edges
        scale = 2.0 / np.asarray(sizes)
        unit = np.diag([*scale, 1.0])
        unit[:3, 3] = scale / 2 - 1
        return unit

    theta = to_unit(probabilities.shape[1:]) @ to_voxel @ np.linalg.inv(to_unit(shape))
    flip = np.eye(4)[[2, 1, 0, 3]]  # torch has the last axis first
    theta = torch.as_tensor((flip @ theta @ flip)[None, :3], dtype=torch.float64)
    grid = affine_grid(theta, [1, 1, *shape], align_corners=False)
    inside = (grid.abs() <= 1 + 1e-6).all(dim=-1)[0]
    whole = probabilities[None].cpu().double()
    sampled = grid_sample(whole, grid, padding_mode="border", align_corners=False)[0]
    return (sampled.argmax(dim=0) * inside).to(torch.uint8).numpy()
