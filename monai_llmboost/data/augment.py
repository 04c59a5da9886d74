# SPDX-License-Identifier: Apache-2.0
"""Random affine of a batch of volumes on its device, with the same result for each volume as MONAI's RandAffined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import TransformBackends, convert_to_tensor, ensure_tuple
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import grid_sample

# One entry for each axis: r for the interval from -r to r, or a pair.
AxisRanges = Sequence[float | Sequence[float]] | None


class RandAffineBatchd(MapTransform, RandomizableTransform):
    """Random rotation, shift, scaling and flip of each volume of a batch, in one operation on their device.

    A voxel at ``x`` (voxels from the volume's centre) gets its value from ``R (scale * x + shift)``, as in MONAI's
    ``RandAffined``: trilinear, zeros outside, R = R0 R1 R2 about the three axes. With a spacing, R is a rotation in mm,
    and no shear of anisotropic volumes. All keys of a case share one draw.

    Args:
        keys: keys of volumes (B, channels, S0, S1, S2), of real numbers.
        prob: probability that a case is changed; the other cases are returned bit for bit.
        rotate_range: three ranges of angles in radians; each a number ``r`` for -r to r, or a pair; ``None`` for none.
        translate_range: three ranges of ``shift`` in voxels; as above.
        scale_range: three ranges of ``scale - 1``; as above.
        flip_prob: probability that an axis of a changed case is flipped (by a negative scale).
        spacing: distances of voxels along the axes, of which only the ratios count.
        nearest: those of the keys whose voxels are whole numbers, such as label maps: they get the nearest value.
        allow_missing_keys: accept batches without some of the keys.

    Raises:
        ValueError: a probability outside 0 to 1, or not three ranges; from the call, for other volumes.

    Example:
        >>> import torch
        >>> augment = RandAffineBatchd("image", prob=0.5, rotate_range=[0.3, 0.3, 0.3])
        >>> augment({"image": torch.rand(4, 1, 8, 8, 8)})["image"].shape
        torch.Size([4, 1, 8, 8, 8])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (as in every transform of MONAI)

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        rotate_range: AxisRanges = None,
        translate_range: AxisRanges = None,
        scale_range: AxisRanges = None,
        flip_prob: float = 0.0,
        allow_missing_keys: bool = False,
        nearest: KeysCollection = (),
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.nearest = ensure_tuple(nearest)
        if unknown := [key for key in self.nearest if key not in self.keys]:
            raise ValueError(f"nearest has the key {unknown[0]!r}, which is none of the keys: add it to both")
        for name, value in (("prob", prob), ("flip_prob", flip_prob)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability from 0 to 1, not {value!r}")
        RandomizableTransform.__init__(self, prob)
        self.rotate_range = _read_bounds("rotate_range", rotate_range)
        self.translate_range = _read_bounds("translate_range", translate_range)
        self.scale_range = _read_bounds("scale_range", scale_range)
        self.flip_prob = flip_prob
        self.spacing = np.array(spacing, dtype=np.float64)
        if self.spacing.shape != (3,) or not (np.isfinite(self.spacing) & (self.spacing > 0)).all():
            raise ValueError(f"spacing must be three positive numbers, not {spacing!r}: give that of the volumes")
        self.chosen = np.empty(0, dtype=np.int64)
        self.matrices = np.empty((0, 3, 4))

    def randomize(self, data: int) -> None:
        """Draw the cases to change of a batch of ``data`` cases, and their matrices (chosen, 3, 4) in voxels."""
        self.chosen = np.flatnonzero(self.R.random_sample(data) < self.prob)
        angles, shift, scale = (
            self.R.uniform(bounds[0], bounds[1], size=(data, 3))[self.chosen]
            for bounds in (self.rotate_range, self.translate_range, self.scale_range)
        )
        scale = 1 + scale
        if self.flip_prob:  # at 0, no random numbers are used up
            scale = np.where(self.R.random_sample((data, 3))[self.chosen] < self.flip_prob, -scale, scale)
        rotation = Rotation.from_euler("XYZ", angles).as_matrix() if len(self.chosen) else np.empty((0, 3, 3))
        rotation = rotation * self.spacing / self.spacing[:, None]
        self.matrices = np.concatenate([rotation * scale[:, None], rotation @ shift[:, :, None]], axis=2)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the batch with its chosen cases changed."""
        batch = dict(data)
        present = list(self.key_iterator(batch))
        for key in present:
            batch[key] = convert_to_tensor(batch[key], track_meta=False)
            is_real = batch[key].is_floating_point() or key in self.nearest
            if batch[key].dim() != 5 or not is_real:
                raise ValueError(
                    f"{key!r} must be a batch of volumes (B, channels, S0, S1, S2) of real numbers, not of shape "
                    f"{tuple(batch[key].shape)} and {batch[key].dtype}: use BatchedVolumes and EnsureTyped before, "
                    "or MONAI's RandAffined for single volumes"
                )
        if present:
            self.randomize(len(batch[present[0]]))
        if len(self.chosen):
            batch.update({key: self._resample(batch[key], key in self.nearest) for key in present})
        return batch

    def _resample(self, volumes: Tensor, nearest: bool) -> Tensor:
        # From voxels to the units of grid_sample: an axis is from -1 to 1 between its outer edges (not the centres of
        # its outer voxels, hence align_corners=False), and the last axis comes first.
        size = np.array(volumes.shape[2:])
        units = self.matrices * np.append(size, 2) / size[:, None]  # (chosen, 3, 4)
        units = np.concatenate([units[:, ::-1, 2::-1], units[:, ::-1, 3:]], axis=2)
        real = torch.promote_types(volumes.dtype, torch.float32)
        # Neither copy waits for the device: CUDA has read pageable memory before it returns.
        theta = torch.from_numpy(units).to(real).to(volumes.device, non_blocking=True)
        index = torch.from_numpy(self.chosen).to(volumes.device, non_blocking=True)
        old = volumes.index_select(0, index)  # (chosen, channels, S0, S1, S2)
        grid = _make_grid(theta, old.shape[2:])  # (chosen, S0, S1, S2, 3)
        mode = "nearest" if nearest else "bilinear"
        new = grid_sample(old.to(real), grid, mode=mode, padding_mode="zeros", align_corners=False)
        return volumes.index_copy(0, index, new.to(volumes.dtype))


def _make_grid(theta: Tensor, size: Sequence[int]) -> Tensor:
    """Return what ``affine_grid(theta, size, align_corners=False)`` returns, five times as fast on a CPU.

    Each coordinate is a sum of one term for each axis; only the last sum is over all voxels.

    Args:
        theta: (n, 3, 4), of the units of ``grid_sample``, whose last axis comes first.
        size: (S0, S1, S2).
    """
    terms = []
    for axis, length in enumerate(size):
        centres = (torch.arange(length, dtype=theta.dtype, device=theta.device) * 2 + 1) / length - 1
        shape = [1, 1, 1, 1, 1]
        shape[axis + 1] = length
        terms.append(centres.reshape(shape) * theta[:, None, None, None, :, 2 - axis])
    return (terms[0] + theta[:, None, None, None, :, 3] + terms[1]) + terms[2]


def _read_bounds(name: str, ranges: Any) -> np.ndarray:
    """Return the lowest and highest value for each axis, (2, 3)."""
    if ranges is None:
        return np.zeros((2, 3))
    try:
        pairs = np.array([(-entry, entry) if np.ndim(entry) == 0 else entry for entry in ranges], dtype=np.float64)
    except (TypeError, ValueError):
        pairs = np.empty(0)
    if pairs.shape != (3, 2) or not np.isfinite(pairs).all():
        raise ValueError(f"{name} must be three numbers or pairs, one for each axis, not {ranges!r}: write [r, r, r]")
    return pairs.T
