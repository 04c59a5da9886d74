# SPDX-License-Identifier: Apache-2.0
"""Reader of DICOM volumes for MONAI's ``LoadImage``, which reads a volume correctly or refuses it with a reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from scipy.ndimage import affine_transform

from monai_llmboost.arguments import check_choice, check_whole
from monai_llmboost.data.scans.dicom.headers import looks_like_dicom
from monai_llmboost.data.scans.dicom.layout import Layout
from monai_llmboost.data.scans.dicom.paths import SEPARATOR
from monai_llmboost.data.scans.dicom.pixels import read_volume
from monai_llmboost.data.scans.dicom.stacks import Stack, find_dicom_stacks
from monai_llmboost.data.scans.scan import MAX_VOXELS, RefusedScan, check_volume_index, choose_volume

GANTRY_TILT = ("resample", "shear", "refuse")
# Maximum number of volumes listed in a refusal.
MAX_LISTED = 5


class DicomSeriesReader(ImageReader):
    """Reader of one DICOM volume, as MONAI reads NIfTI: array (i, j, k), float32, and affine voxel -> RAS+ mm.

    i runs along x of the images, j along y, k from slice to slice in the order of their positions. Values are
    slope * stored value + intercept of each slice; stored values of MONOCHROME1 images are mirrored within their range.

    The input is a folder (with subfolders; other files in it are ignored), files, one multi-frame file, or any of these
    followed by ``::`` and a SeriesInstanceUID or the eight characters that a refusal lists for each volume.

    MONAI's ``LoadImage`` ignores errors of ``read`` and tries other readers, which may guess. So ``read`` returns a
    refusal, and ``get_data`` raises it.

    Args:
        min_slices: minimum number of slices; series with fewer are refused.
        gantry_tilt: what to do with slices that are not perpendicular to the step from slice to slice:
            ``"resample"`` them linearly onto a rectangular grid that contains all of them, with the smallest value
            outside; ``"shear"`` the affine and keep the voxels; or ``"refuse"`` them.
        volume: index of the volume in a series with several volumes in time.

    Raises:
        ValueError: an invalid option.

    Example:
        >>> reader = DicomSeriesReader(gantry_tilt="refuse")
        >>> isinstance(reader.read("no-such-folder"), FileNotFoundError)
        True
    """

    def __init__(self, min_slices: int = 2, gantry_tilt: str = "resample", volume: int | None = None) -> None:
        super().__init__()
        check_volume_index(volume)
        check_whole("min_slices", min_slices, 2, advice="a single slice is not a volume")
        check_choice("gantry_tilt", gantry_tilt, GANTRY_TILT)
        self.volume = volume
        self.min_slices = min_slices
        self.gantry_tilt = gantry_tilt

    @property
    def is_stricter_than_finding(self) -> bool:
        """Return whether reading may refuse a scan by its headers that :func:`find_scans` accepts."""
        return self.min_slices > 2 or self.gantry_tilt == "refuse"

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Return whether the input is a folder with DICOM files, or DICOM files by content; suffixes are not used."""
        try:
            paths, _ = _split_choice(filename)
            return any(looks_like_dicom(path) for path in _iterate_files(paths))
        except OSError:
            return False

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Stack | Exception:
        """Return the headers of one volume, or the refusal for ``get_data`` to raise."""
        try:
            return self._find_stack(data)
        except Exception as error:  # LoadImage would ignore it
            return error

    def get_data(self, img: Stack | Exception) -> tuple[np.ndarray, dict]:
        """Return the volume, (i, j, k) float32, and the metadata of MONAI's NIfTI reader.

        Additional keys are ``series_uid``, ``modality`` and ``warnings`` (one sentence per line). No other tag is
        copied.

        Raises:
            RefusedScan: the input is not one volume that can be read correctly.
            FileNotFoundError: a path does not exist.
        """
        if isinstance(img, Exception):
            raise img
        layout = self._choose_layout(img)
        volume, padding = read_volume(layout.slices)
        affine, warnings = layout.affine, list(img.warnings)
        if padding:
            share = 100 * padding / volume.size
            warnings.append(
                f"{share:.2g} % of its voxels are padding (PixelPaddingValue): set to the lowest other value"
            )
        if layout.tilt_deg and self.gantry_tilt == "resample":
            volume, affine = resample_tilted(volume, affine)
            warnings.append("resampled onto a rectangular grid")
        return volume, {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(volume.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),  # "no_channel"
            "series_uid": img.slices[0].series_uid,
            "modality": img.slices[0].modality,
            "warnings": "\n".join(warnings),  # text, so that scans with different warnings can be collated
        }

    def _choose_layout(self, stack: Stack) -> Layout:
        """Return the slices and geometry of the chosen volume."""
        if stack.refused:
            raise RefusedScan(stack.refused, kind=stack.refused_kind)
        return stack.layouts[choose_volume(self.volume, stack.shape)]

    def _find_stack(self, data: Sequence[PathLike] | PathLike) -> Stack:
        paths, choice = _split_choice(data)
        stacks, skipped = find_dicom_stacks(_iterate_files(paths), self.min_slices)
        if unread := next((file for file in skipped if file.may_pass), None):
            raise RefusedScan(f"{unread.reason} ({unread.path.name}): try again", kind="damaged", may_pass=True)
        if choice:
            chosen = [stack for stack in stacks if choice in (stack.digest, stack.slices[0].series_uid)]
            if not chosen:
                raise RefusedScan(
                    f"expected the volume {choice}, got {_list_stacks(stacks)}: write one of these after {SEPARATOR}",
                    kind="several-volumes",
                )
            stacks = chosen
        if not stacks:
            first = f", the first: {skipped[0].reason}" if skipped else ""
            raise RefusedScan(
                f"expected a DICOM volume, got {len(skipped) or 'no'} DICOM files, none of them part of one{first}: "
                "give the folder or the files of one",
                kind="format",
            )
        if len(stacks) > 1:
            raise RefusedScan(
                f"expected one volume, got {len(stacks)}: {_list_stacks(stacks)}: choose one by writing {SEPARATOR} "
                "and its eight characters after the path",
                kind="several-volumes",
            )
        (stack,) = stacks
        layout = self._choose_layout(stack)
        if layout.tilt_deg and self.gantry_tilt == "refuse":
            raise RefusedScan(
                f"expected slices that follow each other at a right angle, got a gantry tilt of "
                f"{layout.tilt_deg:.1f} degrees: allow it with gantry_tilt='resample'",
                kind="gantry-tilt",
            )
        return stack


def resample_tilted(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Resample a volume of tilted slices onto a rectangular grid that contains all of it.

    Each slice is shifted within its plane by linear interpolation; voxels outside get the smallest value. The grid is
    larger along i and j.

    Raises:
        RefusedScan: the grid would be too large.
    """
    x, y, step = affine[:3, :3].T
    # The shift from slice to slice, in voxels along i and j.
    shift = np.array([step @ x / (x @ x), step @ y / (y @ y)])
    last = shift * (volume.shape[2] - 1)
    low, high = np.floor(np.minimum(last, 0)).astype(int), np.ceil(np.maximum(last, 0)).astype(int)
    size = tuple(np.array(volume.shape[:2]) + high - low)
    if (voxels := math.prod(map(int, size)) * volume.shape[2]) > MAX_VOXELS:
        raise RefusedScan(
            f"expected a tilt that a grid of {MAX_VOXELS} voxels can hold, got one for {voxels}: "
            f"read it with gantry_tilt='shear'",
            kind="too-large",
        )
    straight = np.empty((*size, volume.shape[2]), np.float32, order="F")
    outside = volume.min()
    for k in range(volume.shape[2]):
        straight[:, :, k] = affine_transform(
            volume[:, :, k], np.eye(2), low - k * shift, output_shape=size, order=1, mode="constant", cval=outside
        )
    out = affine.copy()
    out[:3, 2] = step - shift @ [x, y]
    out[:3, 3] += low @ [x, y]
    return straight, out


def _split_choice(data: Sequence[PathLike] | PathLike) -> tuple[list[Path], str]:
    """Split the input into paths and the chosen volume; the choice is empty if there is none."""
    paths, choices = [], set()
    for item in ensure_tuple(data):
        path, separator, choice = str(item).rpartition(SEPARATOR)
        if not separator or Path(item).exists():
            path, separator = str(item), ""
        paths.append(Path(path).expanduser())
        choices |= {choice} if separator else set()
    if len(choices) > 1:
        raise RefusedScan(
            f"expected one volume, got {len(choices)} choices after {SEPARATOR}: give one", kind="several-volumes"
        )
    return paths, next(iter(choices), "")


def _iterate_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield given files, which fail later if they are not DICOM, and the files in folders that look like DICOM."""
    for path in paths:
        if path.is_dir():
            yield from (file for file in path.rglob("*") if file.is_file() and looks_like_dicom(file))
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"expected DICOM files, got nothing at {path}: give a folder or files")


def _list_stacks(stacks: Sequence[Stack]) -> str:
    def describe(stack: Stack) -> str:
        first = stack.slices[0]
        what = "refused" if stack.refused else "x".join(map(str, stack.shape))
        return f"{stack.digest} ({first.modality or 'no modality'}, {what})"

    more = f" and {len(stacks) - MAX_LISTED} more" if len(stacks) > MAX_LISTED else ""
    return (", ".join(describe(stack) for stack in stacks[:MAX_LISTED]) or "none") + more
