# SPDX-License-Identifier: Apache-2.0
"""NIfTI files as cases: found, checked, and refused one by one without stopping the others."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import Dataset
from monai.transforms import MapTransform
from monai.utils import TransformBackends, ensure_tuple_rep

SUFFIXES = (".nii", ".nii.gz")
# 4 GiB in float32; a header that asks for more is refused before memory is taken.
LARGEST_VOLUME = 1 << 30
# Three directions whose box has less than this part of the volume of a straight one lie in a plane.
FLAT = 1e-6
# Bytes behind the voxels that a writer may have left there.
LARGEST_REST = 1 << 20
# A volume that uses less of the range than this was most likely scaled before.
SMALLEST_USE_OF_RANGE = 0.01


def find_nifti(where: str | Path) -> dict[str, Path]:
    """The NIfTI files of a folder (searched to its depths), of a glob pattern, or one file: case name -> path.

    Links to folders are not followed. A case is named by its path below the folder, so two files of one name in two
    folders stay two cases.

    Raises:
        FileNotFoundError: nothing found.
    """
    path = Path(where).expanduser()
    found: Iterator[Path]
    if path.is_dir():
        root, found = path, path.rglob("*")
    elif path.is_file():
        root, found = path.parent, iter([path])
    else:
        known = 0  # leading parts that are folders are taken literally, brackets and all
        while known < len(path.parts) and Path(*path.parts[: known + 1]).is_dir():
            known += 1
        root, pattern = Path(*path.parts[:known]), "/".join(path.parts[known:])
        found = root.glob(pattern)
    files = sorted(file for file in found if file.is_file() and file.name.lower().endswith(SUFFIXES))
    if not files:
        raise FileNotFoundError(
            f"no NIfTI files (.nii, .nii.gz) at {where}: give a folder, a file or a pattern with --dataset_dir"
        )
    return {str(file.relative_to(root)): file for file in files}


def check_file(path: Path) -> None:
    """Look at a NIfTI file before its voxels are used: the header, then the checksum of a compressed one.

    Raises:
        ValueError: not one scalar volume of a sensible size with a usable affine; the message says what it is.
        OSError, EOFError, zlib.error: damaged; nibabel itself reads a .nii.gz with flipped bits without a word.
    """
    image: Any = nibabel.load(path)
    shape, dtype = image.shape, image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ValueError(f"expected one number per voxel, got {'colour' if dtype.kind == 'V' else dtype}")
    if len(shape) < 3 or min(shape) < 1 or min(shape[:3]) < 2:
        raise ValueError(f"expected a volume, got an image of shape {shape}")
    if int(np.prod(shape[3:])) > 1:
        raise ValueError(f"expected one volume, got {int(np.prod(shape[3:]))} (shape {shape}): split the file first")
    if int(np.prod(shape)) > LARGEST_VOLUME:
        raise ValueError(f"expected at most {LARGEST_VOLUME} voxels, got {int(np.prod(shape))} (shape {shape})")
    affine = np.asarray(image.affine)
    axes = affine[:3, :3]  # mm per voxel; how far from flat they are does not depend on the unit
    if not np.isfinite(affine).all() or abs(np.linalg.det(axes)) <= FLAT * np.linalg.norm(axes, axis=0).prod():
        raise ValueError("expected an affine that can be inverted: its voxel size or directions are broken")
    if path.name.lower().endswith(".gz"):
        expected = int(image.dataobj.offset) + int(np.prod(shape)) * dtype.itemsize
        with gzip.open(path) as file:
            length = 0
            while chunk := file.read(1 << 20):  # the checksum is compared at the end
                length += len(chunk)
                if length > expected + LARGEST_REST:
                    raise ValueError(
                        f"expected {expected} bytes by its header, got more than {length}: not what it says"
                    )


class CheckVolumed(MapTransform):
    """Refuse a volume that the network would answer with a confident guess.

    Args:
        keys: keys of channel-first volumes.
        channels: number of channels that the network takes.
        intensity_range: lowest and highest voxel value that the network was trained for.
        clip_intensities: whether values outside the range are to be clipped (by a later transform) rather than refused.

    Raises:
        ValueError: from the call, with what was expected and what came.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (as in every transform of MONAI)

    def __init__(
        self,
        keys: KeysCollection,
        channels: int = 1,
        intensity_range: Sequence[float] = (0, 255),
        clip_intensities: bool = False,
    ) -> None:
        super().__init__(keys)
        self.channels = channels
        self.low, self.high = float(intensity_range[0]), float(intensity_range[1])
        if not self.low < self.high:
            raise ValueError(f"expected intensity_range as [low, high], got {list(intensity_range)}")
        if not isinstance(clip_intensities, bool):  # the word "false" on a command line would be true
            raise ValueError(f"expected clip_intensities to be True or False, got {clip_intensities!r}")
        self.clip_intensities = clip_intensities

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The data unchanged, if every volume passes."""
        for key in self.key_iterator(dict(data)):
            self._check(torch.as_tensor(data[key]))
        return dict(data)

    def _check(self, volume: torch.Tensor) -> None:
        if volume.dim() != 4 or volume.shape[0] != self.channels:
            raise ValueError(f"expected a volume with {self.channels} channel(s), got shape {tuple(volume.shape)}")
        if not torch.isfinite(volume).all():
            raise ValueError(f"expected finite voxels, {int((~torch.isfinite(volume)).sum())} are NaN or infinite")
        low, high = float(volume.min()), float(volume.max())
        if low == high:
            raise ValueError(f"expected an image, every voxel is {low:g}")
        advice = "if this is right for your data, give --intensity_range '[low,high]' --clip_intensities True"
        if not self.clip_intensities and (low < self.low or high > self.high):
            raise ValueError(
                f"expected voxels from {self.low:g} to {self.high:g}, as in training, got {low:g} to {high:g}: {advice}"
            )
        if (high - low) < SMALLEST_USE_OF_RANGE * (self.high - self.low):
            raise ValueError(
                f"expected voxels that use the range {self.low:g} to {self.high:g}, got {low:g} to {high:g}, "
                f"perhaps scaled before: {advice}"
            )


class NiftiVolumes(Dataset):
    """NIfTI files as items ``{"image": (channels, *img_size), "case": name, "refused": reason or ""}``.

    A file that cannot be read rightly becomes an item with its reason and an empty image, so that one bad file among
    many costs one case and not the run.

    Args:
        where: a folder, a file or a glob pattern.
        transform: MONAI transform from ``{"image": path}`` to ``{"image": tensor}``.
        img_size: size of the transformed volumes.
        channels: channels of the transformed volumes.

    Raises:
        FileNotFoundError: nothing found.
    """

    def __init__(
        self, where: str | Path, transform: Callable, img_size: Sequence[int] | int = 28, channels: int = 1
    ) -> None:
        super().__init__([{"image": path, "case": case} for case, path in find_nifti(where).items()], transform)
        self.shape = (channels, *ensure_tuple_rep(img_size, 3))

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        """One case, read or refused."""
        item = self.data[index]
        try:
            check_file(item["image"])
            image = torch.as_tensor(self.transform({"image": item["image"]})["image"], dtype=torch.float32)
            image, refused = getattr(image, "as_tensor", lambda: image)(), ""
        except Exception as error:  # whatever a reader or a transform raises concerns this case alone
            image, refused = torch.zeros(self.shape), _reason(error)
        return {"image": image, "case": item["case"], "refused": refused}


def _reason(error: BaseException) -> str:
    """The message at the root of what MONAI wraps ("applying transform ..."), on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join((str(error) or type(error).__name__).split())[:300]
