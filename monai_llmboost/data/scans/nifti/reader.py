# SPDX-License-Identifier: Apache-2.0
"""Voxels of NIfTI files, read in one pass to the very end: damage is noticed, and no memory is taken on trust."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from monai_llmboost.data.scans.nifti.headers import (
    MAX_TRAILING_BYTES,
    MAX_VOXELS,
    NiftiHeader,
    describe_error,
    find_header_file,
    read_nifti_header,
)
from monai_llmboost.data.scans.scan import RefusedScan, check_volume, choose_volume, get_refused_kind

# Voxels that are unpacked and scaled at a time; what a volume needs beyond its float32 is a few times this.
CHUNK = 1 << 19


class BoundedNiftiReader(ImageReader):
    """Reads one volume of a NIfTI file or pair as (i, j, k) float32, with exactly nibabel's values, or refuses it.

    The header is checked first; memory is taken for what it says, and only as voxels come; a compressed file is read to
    its end, where its checksum is. ``read`` gives a refusal back and ``get_data`` raises it, because ``LoadImage``
    answers an error of ``read`` by silently trying other readers.

    Args:
        volume: which volume of a file that holds several, from 0.
        max_voxels: largest volume that is read; 4 bytes of memory each.

    Raises:
        ValueError: a wrong option.
        RefusedScan: from ``get_data``, with what was expected and what came.
    """

    def __init__(self, volume: int | None = None, max_voxels: int = MAX_VOXELS) -> None:
        super().__init__()
        check_volume(volume)  # ValueError throughout: LoadImage answers a TypeError by a reader without options
        if not isinstance(max_voxels, int) or isinstance(max_voxels, bool) or max_voxels < 1:
            raise ValueError(f"expected max_voxels to be a whole number from 1, got {max_voxels!r}: leave it out")
        self.volume = volume
        self.max_voxels = max_voxels

    def verify_suffix(self, filename: Sequence[str | os.PathLike] | str | os.PathLike) -> bool:
        """Whether it is for this reader, which tells by the content what it is."""
        return True

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Any:
        """The volume and its header, or the refusal; for ``get_data`` only."""
        try:
            header = read_nifti_header(_one_file([Path(file) for file in ensure_tuple(data)]), self.max_voxels)
            return read_voxels(header, self.volume), header
        except Exception as error:  # LoadImage would swallow it
            return to_refusal(error)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Voxels (i, j, k) float32, and their meta: affine (voxel -> RAS+ mm), shape, and ``"warnings"``, a line each.

        Raises:
            RefusedScan: the file cannot be read rightly.
        """
        if isinstance(img, Exception):
            raise img
        voxels, header = img
        meta = {
            MetaKeys.AFFINE: header.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: header.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(voxels.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),  # no channel
            "warnings": "\n".join(header.warnings),  # text, so that scans with unlike ones make a batch
        }
        return voxels, meta


def _one_file(paths: Sequence[Path]) -> Path:
    """Return the file of the header of one scan, of which both files of a pair may be given.

    Raises:
        RefusedScan: several files, which elsewhere are the channels of one image, or none.
    """
    files = {find_header_file(path) for path in paths}
    if len(files) == 1 and len(set(paths)) == len(paths):
        return files.pop()
    if not paths:
        raise RefusedScan("expected one NIfTI file, got none: give its path", kind="incomplete")
    raise RefusedScan(
        f"expected one NIfTI file, got {len(paths)} as channels of one image, which is not supported here: give one of "
        "them, combine them into a 4-D file, or load them with MONAI's own LoadImage",
        kind="several-volumes",
    )


def to_refusal(error: Exception) -> RefusedScan:
    """Whatever kept a file from being read, as a refusal that holds no memory of the call that failed."""
    if isinstance(error, RefusedScan):
        return error.with_traceback(None)
    if isinstance(error, MemoryError):
        message = "expected a volume that fits the memory, but there is not enough: use a larger machine"
        return RefusedScan(message, may_pass=True, kind="memory")
    of_the_system = isinstance(error, OSError) and error.errno is not None  # and no BadGzipFile or the like
    return RefusedScan(
        describe_error(error) or type(error).__name__, may_pass=of_the_system, kind=get_refused_kind(error)
    )


def read_voxels(header: NiftiHeader, volume: int | None = None) -> np.ndarray:
    """One volume, (i, j, k) float32 in Fortran order, scaled; the file is read to its end.

    Raises:
        RefusedScan: damaged, not what its header says, several volumes and none chosen, or not finite in float32.
        OSError: the file cannot be read.
    """
    volume = choose_volume(volume, header.shape)
    size = math.prod(header.shape[:3]) * header.dtype.itemsize
    start = header.offset + volume * size
    with header.voxels.open("rb") as raw:
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw) if header.packed else raw)
        try:
            file.seek(start)  # of a gzip stream it reads what it skips
            voxels, broken, too_large = _volume(file, header)
            # A checksum stands at the end; the size of what is not compressed was checked with the header.
            end = _read_away(file, header.end + MAX_TRAILING_BYTES + 1) if header.packed else header.end
            if end < header.end:
                raise _too_short(file, header)
            if end > header.end + MAX_TRAILING_BYTES:
                raise RefusedScan(
                    f"expected {header.end} bytes by its header, got at least {end}: not what it says", kind="damaged"
                )
        except EOFError:
            raise RefusedScan(
                "expected a whole gzip stream, got one that is cut short: copy the file again", kind="damaged"
            ) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise RefusedScan(
                f"expected a gzip stream, got one with errors ({error}): copy it again", kind="damaged"
            ) from None
    if broken:
        raise RefusedScan(
            f"expected finite voxels, {broken} are NaN or infinite: mend the file, if you know how", kind="not-finite"
        )
    if too_large:
        raise RefusedScan(
            f"expected voxels within float32, {too_large} are too large (overflow): scale them", kind="not-finite"
        )
    return voxels


def _volume(file: BinaryIO, header: NiftiHeader) -> tuple[np.ndarray, int, int]:
    """The volume that begins here, how many voxels are not finite, and how many only in float32 are not."""
    shape = header.shape[:3]
    voxels = np.empty(math.prod(shape), dtype=np.float32)
    buffer = memoryview(bytearray(CHUNK * header.dtype.itemsize))
    broken = too_large = 0
    for start in range(0, len(voxels), CHUNK):
        part = voxels[start : start + CHUNK]
        stored = buffer[: len(part) * header.dtype.itemsize]
        if _fill(file, stored) < len(stored):
            raise _too_short(file, header)
        values = np.frombuffer(stored, header.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            if (header.slope, header.inter) != (1.0, 0.0):
                values = values.astype(np.float64) * header.slope + header.inter
            elif header.dtype.itemsize == 8:
                values = values.astype(np.float64)  # 64-bit integers are rounded twice, as by nibabel's get_fdata
            part[:] = values
        if values.dtype.kind == "f" and not np.isfinite(part).all():
            bad = int((~np.isfinite(values)).sum())
            broken, too_large = broken + bad, too_large + int((~np.isfinite(part)).sum()) - bad
    return voxels.reshape(shape, order="F"), broken, too_large


def _fill(file: BinaryIO, buffer: memoryview) -> int:
    """Bytes read into the buffer: all of it, but at the end of the file."""
    filled = 0
    while filled < len(buffer) and (came := file.readinto(buffer[filled:])):  # type: ignore[attr-defined]
        filled += came
    return filled


def _read_away(file: BinaryIO, place: int) -> int:
    """Read up to a place, or to the end of the file if that comes before; returns where that is."""
    buffer = memoryview(bytearray(1 << 20))
    while (left := place - file.tell()) > 0 and _fill(file, buffer[:left]):
        pass
    return file.tell()


def _too_short(file: BinaryIO, header: NiftiHeader) -> RefusedScan:
    return RefusedScan(
        f"expected {header.end} bytes by its header, got {file.tell()}: it is cut short, copy it again", kind="damaged"
    )
