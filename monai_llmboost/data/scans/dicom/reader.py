# SPDX-License-Identifier: Apache-2.0
"""A reader of DICOM volumes for MONAI's ``LoadImage`` that reads them right or says why not."""

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

from monai_llmboost.data.scans.dicom.headers import looks_like_dicom
from monai_llmboost.data.scans.dicom.layout import Layout
from monai_llmboost.data.scans.dicom.pixels import read_volume
from monai_llmboost.data.scans.dicom.stacks import Stack, find_dicom_stacks
from monai_llmboost.data.scans.nifti.headers import MAX_VOXELS
from monai_llmboost.data.scans.scan import RefusedScan, Scan, check_volume, choose_volume

# Between a path and which of its volumes is meant.
CHOICE = "::"
GANTRY_TILT = ("resample", "shear", "refuse")
# So many volumes are listed where one was expected.
LISTED = 5


def get_reader_paths(scan: Scan) -> list[str]:
    """What ``LoadImaged`` with a `DicomSeriesReader` takes to read just this scan."""
    return [f"{path}{CHOICE}{scan.stack}" for path in scan.files]


class DicomSeriesReader(ImageReader):
    """One DICOM volume as MONAI reads a NIfTI file: array (i, j, k), float32, and affine voxel -> RAS+ mm.

    i runs along x of the images, j along y, k from slice to slice in the order of their positions. Values are stored
    values times slope plus intercept, for each slice its own. Where low values are meant to be bright (MONOCHROME1)
    stored values are mirrored within their range.

    It takes a folder (searched to its depths; other files in it are passed over), files, one multi-frame file, or any
    of them followed by ``::`` and a SeriesInstanceUID or the eight characters that a refusal lists for each volume.

    MONAI's ``LoadImage`` passes over what ``read`` raises and tries other readers, which guess. So ``read`` returns a
    refusal, and ``get_data`` raises it.

    Args:
        min_slices: fewer are refused.
        gantry_tilt: slices that are tilted against the direction in which they follow each other are brought onto a
            rectangular grid that holds all of them, by linear interpolation, with the smallest value outside
            (``"resample"``); left as they are, with a sheared affine (``"shear"``); or refused (``"refuse"``).
        volume: which volume of a series that holds several in time, from 0.
    """

    def __init__(self, min_slices: int = 2, gantry_tilt: str = "resample", volume: int | None = None) -> None:
        super().__init__()
        check_volume(volume)
        if not isinstance(min_slices, int) or min_slices < 2:
            raise ValueError(f"expected min_slices of 2 or more, got {min_slices!r}: a single slice is no volume")
        if gantry_tilt not in GANTRY_TILT:
            raise ValueError(f"expected gantry_tilt as one of {', '.join(GANTRY_TILT)}, got {gantry_tilt!r}")
        self.volume = volume
        self.min_slices = min_slices
        self.gantry_tilt = gantry_tilt

    @property
    def is_stricter_than_finding(self) -> bool:
        """Whether a scan that was found may be refused by its headers."""
        return self.min_slices > 2 or self.gantry_tilt == "refuse"

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether it is a folder with DICOM files, or are DICOM files by their content; DICOM has no suffix."""
        try:
            paths, _ = _paths(filename)
            return any(looks_like_dicom(path) for path in _files(paths))
        except OSError:
            return False

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Stack | Exception:
        """The headers of one volume, or the refusal that ``get_data`` is to raise."""
        try:
            return self._one_stack(data)
        except Exception as error:  # whatever it is: raised here, it would be passed over
            return error

    def get_data(self, img: Stack | Exception) -> tuple[np.ndarray, dict]:
        """The volume, (i, j, k) float32, and its meta data as of MONAI's NIfTI reader.

        Beside these: ``series_uid``, ``modality`` and ``warnings`` (a sentence a line). No other tag is copied.

        Raises:
            RefusedScan: what was given is not one volume that can be read rightly.
            FileNotFoundError: there is nothing at a path.
        """
        if isinstance(img, Exception):
            raise img
        layout = self._layout(img)
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
            "warnings": "\n".join(warnings),  # text, so that scans with unlike ones make a batch
        }

    def _layout(self, stack: Stack) -> Layout:
        """The slices of the volume that is asked for, and their geometry."""
        if stack.refused:
            raise RefusedScan(stack.refused, kind=stack.refused_kind)
        return stack.layouts[choose_volume(self.volume, _shape(stack))]

    def _one_stack(self, data: Sequence[PathLike] | PathLike) -> Stack:
        paths, choice = _paths(data)
        stacks, skipped = find_dicom_stacks(_files(paths), self.min_slices)
        if lost := next((file for file in skipped if file.may_pass), None):
            raise RefusedScan(f"{lost.reason} ({lost.path.name}): try again", kind="damaged", may_pass=True)
        if choice:
            chosen = [stack for stack in stacks if choice in (stack.digest, stack.slices[0].series_uid)]
            if not chosen:
                raise RefusedScan(
                    f"expected the volume {choice}, got {_listed(stacks)}: write one of these after {CHOICE}",
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
                f"expected one volume, got {len(stacks)}: {_listed(stacks)}: choose one by writing {CHOICE} and its "
                f"eight characters after the path",
                kind="several-volumes",
            )
        (stack,) = stacks
        layout = self._layout(stack)
        if layout.tilt_deg and self.gantry_tilt == "refuse":
            raise RefusedScan(
                f"expected slices that follow each other at a right angle, got a gantry tilt of "
                f"{layout.tilt_deg:.1f} degrees: allow it with gantry_tilt='resample'",
                kind="gantry-tilt",
            )
        return stack


def resample_tilted(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume of tilted slices on a rectangular grid that holds all of it.

    Each slice is shifted within its plane, linearly interpolated; outside is the smallest value. Shape (i, j, k), of
    which i and j grow.

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
            volume[:, :, k], np.ones(2), low - k * shift, output_shape=size, order=1, mode="constant", cval=outside
        )
    out = affine.copy()
    out[:3, 2] = step - shift @ [x, y]
    out[:3, 3] += low @ [x, y]
    return straight, out


def _shape(stack: Stack) -> tuple[int, ...]:
    first, count = stack.layouts[0].slices, len(stack.layouts)
    return (first[0].columns, first[0].rows, len(first), *([count] if count > 1 else []))


def _paths(data: Sequence[PathLike] | PathLike) -> tuple[list[Path], str]:
    """Paths, and which volume of theirs is meant, if that is said."""
    paths, choices = [], set()
    for item in ensure_tuple(data):
        path, mark, choice = str(item).rpartition(CHOICE)
        if not mark or Path(item).exists():
            path, mark = str(item), ""
        paths.append(Path(path).expanduser())
        choices |= {choice} if mark else set()
    if len(choices) > 1:
        raise RefusedScan(
            f"expected one volume, got {len(choices)} choices after {CHOICE}: give one", kind="several-volumes"
        )
    return paths, next(iter(choices), "")


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as given, which must be DICOM or fail later, and of folders those that look like DICOM."""
    for path in paths:
        if path.is_dir():
            yield from (file for file in path.rglob("*") if file.is_file() and looks_like_dicom(file))
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"expected DICOM files, got nothing at {path}: give a folder or files")


def _listed(stacks: Sequence[Stack]) -> str:
    def words(stack: Stack) -> str:
        first = stack.slices[0]
        what = "refused" if stack.refused else "x".join(map(str, _shape(stack)))
        return f"{stack.digest} ({first.modality or 'no modality'}, {what})"

    more = f" and {len(stacks) - LISTED} more" if len(stacks) > LISTED else ""
    return (", ".join(words(stack) for stack in stacks[:LISTED]) or "none") + more
