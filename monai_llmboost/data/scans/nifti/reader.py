# SPDX-License-Identifier: Apache-2.0
"""Reader of NIfTI voxels in one pass to the end of the file, which finds damage and bounds memory."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from isal import igzip, isal_zlib
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from monai_llmboost.arguments import check_whole
from monai_llmboost.data.scans.nifti.headers import NiftiHeader, find_header_file, read_nifti_header
from monai_llmboost.data.scans.nifti.tolerances import MAX_TRAILING_BYTES
from monai_llmboost.data.scans.planes import write_planes
from monai_llmboost.data.scans.scan import MAX_VOXELS, RefusedScan, check_volume_index, choose_volume, to_refusal

# Number of voxels that are decompressed and scaled at a time; additional memory is a few times this.
CHUNK_VOXELS = 1 << 21


class BoundedNiftiReader(ImageReader):
    """Reader of one volume of a NIfTI file or pair as (i, j, k) float32, with exactly nibabel's values, or refusal.

    The header is checked first, and memory is allocated only for the voxels in the header. A compressed file is read to
    its end, which contains its checksum. ``read`` returns a refusal and ``get_data`` raises it, because ``LoadImage``
    ignores errors of ``read`` and tries other readers.

    Args:
        volume: index of the volume in a file with several.
        max_voxels: maximum number of voxels of a volume; each takes 4 bytes of memory.

    Raises:
        ValueError: an invalid option.
        RefusedScan: from ``get_data``, with what was expected and what was found.

    Example:
        >>> import tempfile, nibabel, numpy as np
        >>> path = f"{tempfile.mkdtemp()}/scan.nii.gz"
        >>> nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4)), path)
        >>> reader = BoundedNiftiReader()
        >>> voxels, meta = reader.get_data(reader.read(path))
        >>> voxels.shape, meta["affine"].shape
        ((4, 5, 6), (4, 4))
    """

    def __init__(self, volume: int | None = None, max_voxels: int = MAX_VOXELS) -> None:
        super().__init__()
        check_volume_index(volume)  # raises ValueError only: on a TypeError, LoadImage makes the reader without options
        check_whole("max_voxels", max_voxels, 1)
        self.volume = volume
        self.max_voxels = max_voxels

    def verify_suffix(self, filename: Sequence[str | os.PathLike] | str | os.PathLike) -> bool:
        """Return True, because the reader checks the content of files instead of their names."""
        return True

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Any:
        """Return the volume and its header, or the refusal, for ``get_data``."""
        try:
            header = read_nifti_header(_get_header_file([Path(file) for file in ensure_tuple(data)]), self.max_voxels)
            return read_voxels(header, self.volume), header
        except Exception as error:  # LoadImage would ignore it
            return to_refusal(error)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Return voxels (i, j, k) float32, and meta: affine (voxel -> RAS+ mm), shape, ``"warnings"`` one per line.

        Raises:
            RefusedScan: the file cannot be read correctly.
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
            "warnings": "\n".join(header.warnings),  # text, so that scans with different warnings can be collated
        }
        return voxels, meta


def _get_header_file(paths: Sequence[Path]) -> Path:
    """Return the file with the header of one scan; for a pair, both files may be given.

    Raises:
        RefusedScan: no file, or several files, which other readers take as channels of one image.
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


def read_voxels(header: NiftiHeader, volume: int | None = None) -> np.ndarray:
    """Read one volume, (i, j, k) float32, scaled; the file is read to its end.

    Raises:
        RefusedScan: the file is damaged or contradicts its header, no volume of several is chosen, or voxels are not
            finite in float32.
        OSError: the file cannot be read.
    """
    volume = choose_volume(volume, header.shape)
    if header.packed:
        # It unpacks twice as fast; whether a stream that it refuses is damaged, and how, is left to the standard one.
        with suppress(EOFError, gzip.BadGzipFile, isal_zlib.error):  # type: ignore[arg-type]  # its stub is wrong
            return _read_voxels(header, volume, igzip.IGzipFile)
    try:
        return _read_voxels(header, volume, gzip.GzipFile)
    except EOFError:
        raise RefusedScan(
            "expected a whole gzip stream, got one that is cut short: copy the file again", kind="damaged"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise RefusedScan(
            f"expected a gzip stream, got one with errors ({error}): copy it again", kind="damaged"
        ) from None


def _read_voxels(header: NiftiHeader, volume: int, unpack: Callable[..., Any]) -> np.ndarray:
    size = math.prod(header.shape[:3]) * header.dtype.itemsize
    start = header.offset + volume * size
    with header.voxels.open("rb") as raw:
        file = cast(BinaryIO, unpack(fileobj=raw) if header.packed else raw)
        file.seek(start)  # a gzip stream is read up to here
        voxels, not_finite, too_large = _read_volume(file, header)
        # The checksum is at the end; the size of an uncompressed file was checked with the header.
        end = _skip_to(file, header.end + MAX_TRAILING_BYTES + 1) if header.packed else header.end
        if end < header.end:
            raise _make_truncated(file, header)
        if end > header.end + MAX_TRAILING_BYTES:
            raise RefusedScan(
                f"expected {header.end} bytes by its header, got at least {end}: not what it says", kind="damaged"
            )
    if not_finite:
        raise RefusedScan(
            f"expected finite voxels, {not_finite} are NaN or infinite: mend the file, if you know how",
            kind="not-finite",
        )
    if too_large:
        raise RefusedScan(
            f"expected voxels within float32, {too_large} are too large (overflow): scale them", kind="not-finite"
        )
    return voxels


def _read_volume(file: BinaryIO, header: NiftiHeader) -> tuple[np.ndarray, int, int]:
    """Return the volume that begins here, and the numbers of voxels that are not finite and too large for float32."""
    voxels = np.empty(header.shape[:3], dtype=np.float32)
    most = min(max(CHUNK_VOXELS, len(voxels)), voxels.size)  # a single row may be longer than a part
    buffer = memoryview(bytearray(most * header.dtype.itemsize))
    not_finite = too_large = 0
    for place in _parts(voxels.shape):
        part = voxels[place]
        stored = buffer[: part.size * header.dtype.itemsize]
        if _fill(file, stored) < len(stored):
            raise _make_truncated(file, header)
        values = np.frombuffer(stored, header.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            if (header.slope, header.inter) != (1.0, 0.0):
                values = values.astype(np.float64) * header.slope + header.inter
            elif header.dtype.itemsize == 8:
                values = values.astype(np.float64)  # 64-bit integers are rounded twice, as by nibabel's get_fdata
            if values.dtype.kind == "f":
                narrow = values.astype(np.float32, copy=False)
                if not np.isfinite(narrow).all():
                    bad = int((~np.isfinite(values)).sum())
                    not_finite, too_large = not_finite + bad, too_large + int((~np.isfinite(narrow)).sum()) - bad
                values = narrow
            write_planes(part, values)
    return voxels, not_finite, too_large


def _parts(shape: Sequence[int]) -> Iterator[tuple[slice | int, ...]]:
    """Yield the places of the parts that are read together: some planes, or some rows of a large plane."""
    rows, planes = (max(1, CHUNK_VOXELS // math.prod(shape[:axis])) for axis in (1, 2))
    if rows >= shape[1]:
        yield from ((slice(None), slice(None), slice(k, k + planes)) for k in range(0, shape[2], planes))
    else:
        for k in range(shape[2]):
            yield from ((slice(None), slice(j, j + rows), k) for j in range(0, shape[1], rows))


def _fill(file: BinaryIO, buffer: memoryview) -> int:
    """Read into the whole buffer, or up to the end of the file, and return the number of bytes."""
    filled = 0
    while filled < len(buffer) and (count := file.readinto(buffer[filled:])):  # type: ignore[attr-defined]
        filled += count
    return filled


def _skip_to(file: BinaryIO, offset: int) -> int:
    """Read up to an offset, or to the end of a shorter file, and return the position."""
    buffer = memoryview(bytearray(1 << 20))
    while (left := offset - file.tell()) > 0 and _fill(file, buffer[:left]):
        pass
    return file.tell()


def _make_truncated(file: BinaryIO, header: NiftiHeader) -> RefusedScan:
    return RefusedScan(
        f"expected {header.end} bytes by its header, got {file.tell()}: it is cut short, copy it again", kind="damaged"
    )
