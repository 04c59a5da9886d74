# SPDX-License-Identifier: Apache-2.0
"""Interpolation of maps over a network's tokens to the grid of the original volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

# Two grids are parallel if their axes differ by less than this number of tokens over the whole volume.
PARALLEL = 1e-4


def on_input_grid(
    relevance: Tensor | np.ndarray,
    image_size: Sequence[int],
    affine: Tensor | np.ndarray,
    input_affine: Tensor | np.ndarray,
    input_shape: Sequence[int],
) -> np.ndarray:
    """Return a map over tokens as a map over the voxels of the original volume.

    Values are interpolated linearly between the centres of tokens. They are constant from an outermost centre to the
    edge of its token, and zero outside of the network's input.

    Args:
        relevance: (G0, G1, G2), over the patches of the network's input image.
        image_size: (S0, S1, S2) of the input image, voxels.
        affine: (4, 4), voxels of the input image to RAS+ mm.
        input_affine: (4, 4), voxels of the original volume to RAS+ mm.
        input_shape: (3,), voxels of the original volume.

    Returns:
        float32, ``input_shape``.

    Raises:
        ValueError: an affine that cannot be inverted, or contains NaN.

    Example:
        >>> tokens = np.arange(8.0).reshape(2, 2, 2)
        >>> on_input_grid(tokens, (4, 4, 4), np.eye(4), np.eye(4), (4, 4, 4)).shape
        (4, 4, 4)
    """
    values = np.asarray(torch.as_tensor(relevance).detach().cpu(), dtype=np.float32)
    shape = tuple(int(size) for size in input_shape)
    patch = np.asarray([int(size) for size in image_size]) / values.shape  # voxels of the network's image
    axes, start = grid_between(to_matrix(affine) @ _affine(patch, (patch - 1) / 2), input_affine)
    source = parallel_axes(axes, shape)
    if source is None:
        return across_axes(values, axes, start, shape)
    return _along_axes(values, axes[range(3), source], start, np.array(source), shape)


def grid_between(affine: Tensor | np.ndarray, onto_affine: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how voxels of a second grid lie in a first one: axes (3, 3) and start (3,), in voxels of the first.

    Raises:
        ValueError: an affine that cannot be inverted, or contains NaN.

    Example:
        >>> axes, start = grid_between(np.diag([2, 2, 2, 1]), np.eye(4))
        >>> (axes @ [4, 0, 0] + start).tolist()
        [2.0, 0.0, 0.0]
    """
    _inverse(to_matrix(onto_affine))  # raises
    to_voxel = _inverse(to_matrix(affine)) @ to_matrix(onto_affine)
    return to_voxel[:3, :3], to_voxel[:3, 3]


def parallel_axes(axes: np.ndarray, shape: Sequence[int]) -> list[int] | None:
    """Return the axis of the second grid along each axis of the first; ``None`` if the grids are not parallel.

    Args:
        axes: (3, 3), see :func:`grid_between`.
        shape: voxels of the second grid.
    """
    source = np.abs(axes).argmax(axis=1)
    rest = np.abs(axes) * (np.asarray(shape) - 1)
    rest[range(3), source] = 0
    return source.tolist() if sorted(source) == [0, 1, 2] and rest.max() < PARALLEL else None


def _along_axes(
    values: np.ndarray, step: np.ndarray, start: np.ndarray, source: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Interpolate between grids with parallel axes, as after reorienting, resampling and cropping.

    This needs one matrix product per axis.
    """
    weights: list[np.ndarray] = [np.empty(0)] * 3
    for axis, n in enumerate(values.shape):
        place = step[axis] * np.arange(shape[source[axis]]) + start[axis]  # tokens
        distance = np.abs(np.clip(place, 0, n - 1)[:, None] - np.arange(n))
        seen = (place > -0.5 - PARALLEL) & (place < n - 0.5 + PARALLEL)
        weights[source[axis]] = (np.clip(1 - distance, 0, 1) * seen[:, None]).astype(np.float32)  # (voxels, n)
    out = values.transpose(np.argsort(source)).T  # (tokens along k, along j, along i)
    for voxels in weights[::-1]:
        out = np.tensordot(out, voxels, axes=(0, 1))  # the first axis becomes the last, in voxels; finally (k, j, i)
    return out.T  # ordered in memory as in a NIfTI file


def across_axes(values: np.ndarray, axes: np.ndarray, start: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate between grids at any angle, slice by slice; see :func:`grid_between`."""
    out = np.empty(shape, dtype=np.float32, order="F")
    last = np.reshape(values.shape, (3, 1, 1)) - 1
    i, j = np.mgrid[: shape[0], : shape[1]]
    slice_places = axes[:, 0, None, None] * i + axes[:, 1, None, None] * j + start[:, None, None]  # (3, i, j) tokens
    for k in range(shape[2]):
        place = slice_places + k * axes[:, 2, None, None]
        seen = ((place > -0.5 - PARALLEL) & (place < last + 0.5 + PARALLEL)).all(axis=0)
        out[:, :, k] = ndimage.map_coordinates(values, place, order=1, mode="nearest") * seen
    return out


def _affine(scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return the (4, 4) matrix of a scaling along the axes and an offset."""
    affine = np.diag([*scale, 1.0])
    affine[:3, 3] = offset
    return affine


def to_matrix(affine: Tensor | np.ndarray) -> np.ndarray:
    """Return an affine as a float64 array on the CPU."""
    return np.asarray(torch.as_tensor(affine).detach().cpu(), dtype=np.float64)


def _inverse(affine: np.ndarray) -> np.ndarray:
    try:
        inverse = np.linalg.inv(affine)
    except np.linalg.LinAlgError:
        inverse = np.full((4, 4), np.nan)
    if not np.isfinite(inverse).all():
        raise ValueError(
            f"an affine cannot be inverted: {affine.tolist()}; use transforms that keep the geometry of the volume "
            "(MetaTensor)"
        )
    return inverse
