# SPDX-License-Identifier: Apache-2.0
"""Maps over a network's tokens as files on the grid of the volume that was read, and a picture of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.utils import ensure_tuple_rep
from scipy import ndimage
from torch import Tensor, nn

from monai_llmboost.artifacts.files import placed_whole
from monai_llmboost.inference.maps.previews import save_preview
from monai_llmboost.inference.maps.relevance import relevance_maps

FOLDER = "saliency"
PREVIEW = "preview.webp"
# Two grids whose axes drift apart by less than this many tokens over the whole volume are parallel.
PARALLEL = 1e-4
# Written values are whole multiples of this: the digits below it mean nothing, and would not compress.
STEP = 1 / 256
# A part of a case's name that is longer is cut; file systems take 255 bytes.
LONGEST_PART = 60
WHAT = {
    "network": "gradient x token of the whole network",
    "before_booster": "Grad-CAM of tokens before the booster",
    "after_booster": "Grad-CAM of tokens after the booster",
}


def on_input_grid(
    relevance: Tensor | np.ndarray,
    image_size: Sequence[int],
    affine: Tensor | np.ndarray,
    input_affine: Tensor | np.ndarray,
    input_shape: Sequence[int],
) -> np.ndarray:
    """A map over tokens as a map over the voxels of the volume that was read.

    Each voxel's place in mm is looked up among the centres of the tokens, linearly between centres; from an outermost
    centre to the edge of its token the value stays, and outside of what the network saw it is zero.

    Args:
        relevance: (G0, G1, G2), over the patches of the network's image.
        image_size: (S0, S1, S2) of that image, voxels.
        affine: (4, 4), that image's voxels to RAS+ mm.
        input_affine: (4, 4), voxels of the volume that was read to RAS+ mm.
        input_shape: (3,), that volume's voxels.

    Returns:
        float32, ``input_shape``.

    Raises:
        ValueError: an affine that cannot be inverted, or holds NaN.
    """
    values = np.asarray(torch.as_tensor(relevance).detach().cpu(), dtype=np.float32)
    shape = tuple(int(size) for size in input_shape)
    patch = np.asarray([int(size) for size in image_size]) / values.shape  # voxels of the network's image
    _inverse(_matrix(input_affine))  # raises
    to_token = _inverse(_matrix(affine) @ _affine(patch, (patch - 1) / 2)) @ _matrix(input_affine)
    axes, start = to_token[:3, :3], to_token[:3, 3]
    source = np.abs(axes).argmax(axis=1)  # the volume's axis along each of the tokens' axes
    rest = np.abs(axes) * (np.asarray(shape) - 1)
    rest[range(3), source] = 0
    if sorted(source) == [0, 1, 2] and rest.max() < PARALLEL:
        return _along_axes(values, axes[range(3), source], start, source, shape)
    return _across_axes(values, axes, start, shape)


def _along_axes(
    values: np.ndarray, step: np.ndarray, start: np.ndarray, source: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Grids with parallel axes, as reorienting, resampling and cropping leave them: one matrix product an axis."""
    weights: list[np.ndarray] = [np.empty(0)] * 3
    for axis, n in enumerate(values.shape):
        place = step[axis] * np.arange(shape[source[axis]]) + start[axis]  # tokens
        distance = np.abs(np.clip(place, 0, n - 1)[:, None] - np.arange(n))
        seen = (place > -0.5 - PARALLEL) & (place < n - 0.5 + PARALLEL)
        weights[source[axis]] = (np.clip(1 - distance, 0, 1) * seen[:, None]).astype(np.float32)  # (voxels, n)
    out = values.transpose(np.argsort(source)).T  # (tokens along k, along j, along i)
    for voxels in weights[::-1]:
        out = np.tensordot(out, voxels, axes=(0, 1))  # the front axis becomes voxels, at the end: (k, j, i) after three
    return out.T  # ordered in memory as in a NIfTI file


def _across_axes(values: np.ndarray, axes: np.ndarray, start: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Grids at any angle, slice by slice."""
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
    """The (4, 4) matrix of a scaling along the axes and an offset."""
    affine = np.diag([*scale, 1.0])
    affine[:3, 3] = offset
    return affine


def _matrix(affine: Tensor | np.ndarray) -> np.ndarray:
    return np.asarray(torch.as_tensor(affine).detach().cpu(), dtype=np.float64)


def _inverse(affine: np.ndarray) -> np.ndarray:
    try:
        inverse = np.linalg.inv(affine)
    except np.linalg.LinAlgError:
        inverse = np.full((4, 4), np.nan)
    if not np.isfinite(inverse).all():
        raise ValueError(
            f"expected an affine that can be inverted, got {affine.tolist()}: the transforms must keep the geometry of "
            "the volume (MetaTensor), or run without saliency maps"
        )
    return inverse


class SaliencyMaps:
    """Writes a case's maps, as NIfTI files on the case's own grid, and a picture of them.

    ``output_dir/saliency/NAME/{network,before_booster,after_booster}.nii.gz`` and ``preview.webp``; NAME is the case's
    name where every file system takes it, and otherwise one made of it, different for different cases. Each file
    appears whole or not at all. The maps' values are rounded to multiples of 1/256.

    Args:
        network: see :func:`relevance_maps`.
        output_dir: folder of the run.
        image_size: (S0, S1, S2) of the network's images, voxels; one number for a cube.
    """

    def __init__(self, network: nn.Module, output_dir: str | Path, image_size: Sequence[int] | int) -> None:
        self.network = network
        self.output_dir = Path(output_dir)
        self.image_size = ensure_tuple_rep(image_size, 3)

    def __call__(
        self,
        name: str,
        image: Tensor,
        class_index: int,
        affine: Tensor | np.ndarray,
        input_affine: Tensor | np.ndarray,
        input_shape: Sequence[int],
        volume_of: Callable[[], np.ndarray],
        title: str,
    ) -> dict[str, str]:
        """Write the files of one case.

        Args:
            name: the case's name.
            image: (1, channels, S0, S1, S2), as the network takes it.
            class_index: the class whose evidence is shown.
            affine: (4, 4), voxels of ``image`` to RAS+ mm.
            input_affine: (4, 4), voxels of the volume that was read to RAS+ mm.
            input_shape: (3,), that volume's voxels.
            volume_of: gives that volume, (i, j, k).
            title: what stands above the picture.

        Returns:
            Paths below ``output_dir``, parted by "/": ``"network"``, ``"before_booster"`` and ``"after_booster"`` where
            there are such maps, and ``"preview"``.

        Raises:
            TypeError, ValueError: see :func:`relevance_maps` and :func:`on_input_grid`; or a volume of another shape.
        """
        maps = relevance_maps(self.network, image, class_index)
        grid = next(iter(maps.values())).shape
        input_affine, shape = _matrix(input_affine), tuple(int(size) for size in input_shape)
        on_grid = {
            what: on_input_grid(relevance, self.image_size, affine, input_affine, shape)
            for what, relevance in maps.items()
        }
        volume = np.asarray(volume_of())
        if volume.ndim == 4 and volume.shape[3] == 1:
            volume = volume[..., 0]
        if volume.shape != shape:
            raise ValueError(f"expected the volume of shape {shape}, got {volume.shape}: give the one that was read")
        folder = self.output_dir / FOLDER / folder_of(name)
        files = {}
        for what, values in on_grid.items():
            files[what] = folder / f"{what}.nii.gz"
            with placed_whole(files[what]) as path:
                nibabel.save(_nifti(values, input_affine, f"{WHAT[what]}, class {class_index}"), path)
        token_mm = np.linalg.norm(_matrix(affine)[:3, :3], axis=0) * self.image_size / grid
        note = f"token size {' x '.join(f'{size:.1f}' for size in token_mm)} mm"
        files["preview"] = folder / PREVIEW
        with placed_whole(files["preview"]) as path:
            save_preview(path, volume, input_affine, on_grid, title, note)
        return {what: path.relative_to(self.output_dir).as_posix() for what, path in files.items()}


def folder_of(name: str) -> Path:
    """A relative folder for a case, which leads nowhere but downwards; different names give different folders."""
    return Path(*(_folder_part(part) for part in name.split("/")))


def _folder_part(part: str) -> str:
    kept = re.sub(r"[^\w .,()+=@-]", "_", part)[:LONGEST_PART]
    own = {PREVIEW, "preview.png", *(f"{what}.nii.gz" for what in WHAT)}
    if kept == part and part not in own and part.strip(". ") and part[-1] not in ". ":
        return part
    digest = hashlib.sha256(part.encode(errors="surrogateescape")).hexdigest()[:12]
    return f"{kept.strip('. ')}_{digest}"


def _nifti(values: np.ndarray, affine: np.ndarray, descrip: str) -> nibabel.Nifti1Image:
    """A map (i, j, k) as NIfTI, with both of its forms of geometry where a quaternion can hold the axes."""
    rounded = np.rint(values * np.float32(1 / STEP))
    rounded *= np.float32(STEP)
    image = nibabel.Nifti1Image(rounded, affine)
    image.set_sform(affine, code="aligned")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    straight = np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
    image.set_qform(affine if straight else None, code="aligned" if straight else "unknown")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = descrip
    image.header["cal_max"] = 1
    return image
