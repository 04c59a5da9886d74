# SPDX-License-Identifier: Apache-2.0
"""The mean shape of the training label maps: a floor of segmentations, which looks at no image or only registers it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import nibabel
import numpy as np
import SimpleITK
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d, interpolate

from monai_llmboost.tasks.segmentation import mean_dice

# Sides of the mean shape, voxels: ITK smooths along 4 or more, and a larger shape is slow, not better.
LEAST_SIDE, LARGEST_SIDE = 4, 64
THRESHOLDS = tuple(np.linspace(0.1, 0.9, 9).round(1).tolist())  # of the probability of any structure
RAS = axcodes2ornt("RAS")


@dataclass(frozen=True)
class Atlas:
    """The mean of the training cases, whose boxes were scaled to one box.

    Args:
        structures: (structures, X, Y, Z), the part of the training cases with each structure in a voxel.
        image: (X, Y, Z), the mean image; ``None`` without registration.

    Example:
        >>> import numpy as np
        >>> label = np.zeros((4, 4, 4), np.uint8)
        >>> label[:2] = 1
        >>> atlas = make_atlas([label], structures=1, shape=(4, 4, 4))
        >>> int(atlas.predict((8, 4, 4), threshold=0.5).sum())
        64
    """

    structures: Tensor
    image: Tensor | None = None

    def at(self, image: Tensor | None) -> Tensor:
        """Return the probabilities of the structures in the box of a case, registered to its image if it is given.

        They stay as they are for an image that cannot be registered, such as one without any contrast.
        """
        if image is None or self.image is None:
            return self.structures
        try:
            transform = register(self.image, image)
        except RuntimeError:  # of ITK; a floor needs a mask of each case
            return self.structures
        return torch.stack([_warp(each, transform) for each in self.structures])

    def predict(self, shape: Sequence[int], threshold: float, image: Tensor | None = None) -> np.ndarray:
        """Return class numbers (i, j, k) in a box of ``shape`` voxels along R, A and S.

        Args:
            shape: voxels of the scan.
            threshold: probability of any structure from which a voxel is of the most probable one.
            image: image of the case on the grid of the atlas, see :func:`to_box`.
        """
        return _choose([_resize(each, shape) for each in self.at(image)], threshold)


def make_atlas(
    labels: Iterable[np.ndarray], structures: int, shape: Sequence[int], images: Iterable[Tensor] | None = None
) -> Atlas:
    """Return the mean of training cases.

    Args:
        labels: class numbers of each case (i, j, k), along R, A and S.
        structures: number of structures.
        shape: voxels of the atlas along each axis.
        images: image of each case on the grid of the atlas, see :func:`to_box`.
    """
    totals, cases = torch.zeros(structures, *shape), 0
    for label in labels:
        cases += 1
        for number in range(structures):
            totals[number] += to_box(label == number + 1, shape)
    image = None if images is None else torch.stack(list(images)).mean(dim=0)
    return Atlas(totals / max(cases, 1), image)


def choose_threshold(atlas: Atlas, cases: Iterable[tuple[np.ndarray, Tensor | None]]) -> tuple[float, float]:
    """Return the threshold with the largest mean Dice on validation cases, and this Dice, on the grid of the atlas.

    As in an evaluation, a structure that is neither in the label map nor in the mask does not count.

    Args:
        atlas: the mean of the training cases.
        cases: class numbers of each validation case along R, A and S, and its image on the grid of the atlas.
    """
    found: dict[float, list[np.ndarray]] = {threshold: [] for threshold in THRESHOLDS}
    for label, image in cases:
        shape = atlas.structures.shape[1:]
        parts = [to_box(label == number + 1, shape) for number in range(len(atlas.structures))]
        own, probabilities = _choose(parts, 0.5), list(atlas.at(image))
        for threshold, values in found.items():
            values.append(_dice(_choose(probabilities, threshold), own, len(parts)))
    means = {threshold: _mean(values) for threshold, values in found.items()}
    best = max(means, key=means.__getitem__)
    return best, means[best]


def atlas_shape(shapes: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Return the median shape of some volumes, 4 to 64 voxels along each axis."""
    median = np.median(np.array(list(shapes)), axis=0).round().astype(int)
    return tuple(int(size) for size in np.clip(median, LEAST_SIDE, LARGEST_SIDE))


def to_ras(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return a volume with its axes along R, A and S as nearly as flips and exchanges of axes allow."""
    return apply_orientation(volume, nibabel.io_orientation(affine))


def from_ras(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return a volume along R, A and S with the axes of an affine, the inverse of :func:`to_ras`."""
    return apply_orientation(volume, ornt_transform(RAS, nibabel.io_orientation(affine)))


def to_box(volume: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Return a volume scaled to a box of ``shape`` voxels, by means of whole voxels and linear interpolation."""
    whole = torch.from_numpy(np.ascontiguousarray(volume)).float()[None, None]
    i, j, k = (min(own, wanted) for own, wanted in zip(volume.shape, shape))
    return _resize(adaptive_avg_pool3d(whole, (i, j, k))[0, 0], shape)


def normalized(image: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Return an image scaled to a box, with intensities from 0 to 1 between its 1st and 99th percentile."""
    boxed = to_box(np.asarray(image, dtype=np.float32), shape)
    low, high = np.percentile(boxed.numpy(), (1, 99))
    return ((boxed - low) / max(high - low, np.finfo(np.float32).tiny)).clamp(0, 1)


def register(moving: Tensor, fixed: Tensor) -> SimpleITK.Transform:
    """Return the affine transform that maps points of an image to those of another one (Mattes mutual information)."""
    one, other = (SimpleITK.GetImageFromArray(image.numpy()) for image in (fixed, moving))
    start = SimpleITK.CenteredTransformInitializer(
        one, other, SimpleITK.AffineTransform(3), SimpleITK.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    method.SetNumberOfThreads(1)  # the same result on any machine
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(one, other)


def _warp(volume: Tensor, transform: SimpleITK.Transform) -> Tensor:
    image = SimpleITK.GetImageFromArray(volume.numpy())
    warped = SimpleITK.Resample(image, image, transform, SimpleITK.sitkLinear, 0.0)
    return torch.from_numpy(SimpleITK.GetArrayFromImage(warped))


def _resize(volume: Tensor, shape: Sequence[int]) -> Tensor:
    return interpolate(volume[None, None], list(shape), mode="trilinear", align_corners=False)[0, 0]


def _choose(parts: Sequence[Tensor], threshold: float) -> np.ndarray:
    """Return the most probable structure, where the probability of any structure reaches the threshold."""
    best, number, total = parts[0].clone(), torch.ones(parts[0].shape, dtype=torch.uint8), parts[0].clone()
    for index, part in enumerate(parts[1:], start=2):
        number[part > best] = index
        best = torch.maximum(best, part)
        total += part
    return (number * (total >= threshold)).numpy()


def _dice(mask: np.ndarray, label: np.ndarray, structures: int) -> np.ndarray:
    """Return the Dice of each structure, NaN for one that is in neither."""
    pairs = np.bincount(
        mask.ravel().astype(np.int64) * (structures + 1) + label.ravel(), minlength=(structures + 1) ** 2
    ).reshape(structures + 1, structures + 1)
    both, sums = np.diag(pairs)[1:], (pairs.sum(axis=0) + pairs.sum(axis=1))[1:]
    return np.where(sums > 0, 2 * both / np.maximum(sums, 1), np.nan)


def _mean(scores: Sequence[np.ndarray]) -> float:
    """Return the mean over the cases with a Dice, 0 if there are none."""
    means = [float(mean_dice(each, np.zeros(0))) for each in scores]
    finite = [mean for mean in means if np.isfinite(mean)]
    return float(np.mean(finite)) if finite else 0.0
