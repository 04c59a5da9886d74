# SPDX-License-Identifier: Apache-2.0
"""Class probabilities on the network's grid as classes, or as probabilities, on the grid of the scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monai_llmboost.inference.maps.grid import PARALLEL, across_axes, grid_between, parallel_axes

# Voxels of the scan that are interpolated at once, for bounded memory.
SLAB_VOXELS = 1 << 23


def to_own_grid(
    probabilities: Tensor | np.ndarray,
    affine: Tensor | np.ndarray,
    shape: Sequence[int],
    onto_affine: Tensor | np.ndarray,
) -> np.ndarray:
    """Return the most probable class of each voxel of a scan.

    Probabilities are interpolated linearly between the centres of voxels, slab by slab, and then compared. They are
    constant from an outermost centre to the edge of its voxel; the scan's voxels outside of the network's grid are of
    class 0, the background. Where the grids differ only in the order and direction of their axes, or by whole voxels
    cut off or padded, nothing is interpolated.

    Args:
        probabilities: (classes, S0, S1, S2), also mapped from a file.
        affine: (4, 4), voxels of the network's grid to RAS+ mm.
        shape: (i, j, k) voxels of the scan.
        onto_affine: (4, 4), voxels of the scan to RAS+ mm.

    Returns:
        uint8, ``shape``, ordered in memory as in a NIfTI file.

    Raises:
        ValueError: an affine that cannot be inverted, or contains NaN; more than 256 classes.

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.2], [0.1, 0.8]]).view(2, 1, 1, 2)
        >>> to_own_grid(probabilities, np.eye(4), (1, 1, 4), np.diag([1, 1, 0.5, 1])).tolist()
        [[[0, 0, 1, 1]]]
    """
    if len(probabilities) > 256:
        raise ValueError(f"{len(probabilities)} classes are more than the 256 of a mask of bytes: use fewer")
    values = torch.as_tensor(probabilities).detach().cpu()
    classes = np.zeros(shape, dtype=np.uint8, order="F")
    for slab in _slabs(values.shape[1:], affine, shape, onto_affine):
        best, most = slab(values[0]), None
        for number in range(1, len(values)):
            here = slab(values[number])
            larger = here > best
            if most is None:
                most = np.zeros(best.shape, dtype=np.uint8)
            most[larger] = number
            np.maximum(best, here, out=best)
        if most is not None:
            slab.write(classes, most)
    return classes


def on_own_grid(
    values: Tensor | np.ndarray,
    affine: Tensor | np.ndarray,
    shape: Sequence[int],
    onto_affine: Tensor | np.ndarray,
) -> np.ndarray:
    """Return the values of one class, (S0, S1, S2), on the grid of the scan, float32, zero outside.

    The arguments are those of :func:`to_own_grid`.

    Example:
        >>> on_own_grid(torch.ones(1, 1, 2), np.eye(4), (1, 1, 3), np.eye(4)).tolist()
        [[[1.0, 1.0, 0.0]]]
    """
    values = torch.as_tensor(values).detach().cpu()
    found = np.zeros(shape, dtype=np.float32, order="F")
    for slab in _slabs(values.shape, affine, shape, onto_affine):
        slab.write(found, slab(values))
    return found


@dataclass(frozen=True)
class _Slab:
    """Some voxels of a scan, and the interpolation of values (S0, S1, S2) to them; voxels in no slab are outside."""

    place: tuple[slice, ...]
    interpolate: Callable[[Tensor], np.ndarray]

    def __call__(self, values: Tensor) -> np.ndarray:
        return self.interpolate(values)

    def write(self, whole: np.ndarray, part: np.ndarray) -> None:
        whole[self.place] = part


def _slabs(
    sizes: Sequence[int], affine: Tensor | np.ndarray, shape: Sequence[int], onto_affine: Tensor | np.ndarray
) -> Iterator[_Slab]:
    axes, start = grid_between(affine, onto_affine)
    source = parallel_axes(axes, shape)
    if source is None:
        return _oblique_slabs(axes, start, shape)
    lines = [
        _Line.between(float(axes[axis, own]), float(start[axis]), int(shape[own]), int(sizes[axis]))
        for axis, own in enumerate(source)
    ]
    return _parallel_slabs(lines, source)


@dataclass(frozen=True)
class _Line:
    """The voxels of a scan along one axis of the network's grid.

    Args:
        first: index of the first voxel of the scan that lies in the network's grid.
        lower: (voxels,), the network's voxels from which on they are.
        part: (voxels,), the part of the way from there to the next one; ``None`` if it is zero everywhere.
        last: the network's last voxel.
    """

    first: int
    lower: Tensor
    part: Tensor | None
    last: int

    @classmethod
    def between(cls, step: float, start: float, voxels: int, sizes: int) -> _Line:
        place = step * np.arange(voxels) + start
        (seen,) = np.nonzero((place > -0.5 - PARALLEL) & (place < sizes - 0.5 + PARALLEL))
        if not len(seen):
            return cls(0, torch.zeros(0, dtype=torch.int64), None, sizes - 1)
        place = place[seen].clip(0, sizes - 1)
        whole = np.rint(place)
        if np.abs(place - whole).max() < PARALLEL:
            return cls(int(seen[0]), torch.from_numpy(whole.astype(np.int64)), None, sizes - 1)
        lower = np.floor(place)
        part = torch.from_numpy((place - lower).astype(np.float32))
        return cls(int(seen[0]), torch.from_numpy(lower.astype(np.int64)), part, sizes - 1)

    def __len__(self) -> int:
        return len(self.lower)

    def interpolate(self, values: Tensor, axis: int, where: slice = slice(None)) -> Tensor:
        """Return values at the voxels ``where`` along an axis."""
        lower = self.lower[where]
        low = values.index_select(axis, lower)
        if self.part is None:
            return low
        high = values.index_select(axis, (lower + 1).clamp(max=self.last))
        shape = [1] * values.ndim
        shape[axis] = -1
        return low.lerp_(high, self.part[where].view(shape))


def _parallel_slabs(lines: Sequence[_Line], source: Sequence[int]) -> Iterator[_Slab]:
    """Yield slabs between grids with parallel axes, along the network's last axis, by which volumes are stored."""
    if not all(map(len, lines)):
        return
    order = [source.index(own) for own in range(3)]  # the network's axis along each of the scan's
    thick = max(1, SLAB_VOXELS // (len(lines[0]) * len(lines[1])))
    for start in range(0, len(lines[2]), thick):
        here = slice(start, min(start + thick, len(lines[2])))

        def interpolate(values: Tensor, here: slice = here) -> np.ndarray:
            planes = lines[2].interpolate(values.permute(2, 0, 1), 0, here).float()
            part = lines[1].interpolate(lines[0].interpolate(planes, 1), 2)  # (S2, S0, S1), in the scan's voxels
            return part.permute(1, 2, 0).permute(*order).numpy()

        starts = [lines[0].first, lines[1].first, lines[2].first + here.start]
        sizes = [len(lines[0]), len(lines[1]), here.stop - here.start]
        yield _Slab(tuple(slice(starts[axis], starts[axis] + sizes[axis]) for axis in order), interpolate)


def _oblique_slabs(axes: np.ndarray, start: np.ndarray, shape: Sequence[int]) -> Iterator[_Slab]:
    """Yield the planes of a scan at any angle to the network's grid."""
    for plane in range(shape[2]):
        offset = start + plane * axes[:, 2]

        def interpolate(values: Tensor, offset: np.ndarray = offset) -> np.ndarray:
            return across_axes(values.float().numpy(), axes, offset, (shape[0], shape[1], 1))

        yield _Slab((slice(None), slice(None), slice(plane, plane + 1)), interpolate)
