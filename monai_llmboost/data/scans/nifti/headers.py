# SPDX-License-Identifier: Apache-2.0
"""Headers of NIfTI files, checked before any voxel is read; the format: https://nifti.nimh.nih.gov/nifti-1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from monai_llmboost.data.scans.kinds import (
    ANALYZE,
    CONVERTIBLE,
    GZIP,
    NIFTI_SUFFIXES,
    count_gzip_layers,
    identify_kind,
    read_first_bytes,
)
from monai_llmboost.data.scans.nifti.geometry import get_orientation, read_affine
from monai_llmboost.data.scans.nifti.tolerances import FIELD_ROUNDING, MAX_GZIP_RATIO, MAX_TRAILING_BYTES
from monai_llmboost.data.scans.scan import MAX_VOXELS, RefusedScan, Scan, describe_error, get_refused_kind

NIFTI1_HEADER_BYTES, NIFTI2_HEADER_BYTES = 348, 540
# Above every level of a problem in nibabel, so that it repairs what it can and raises nothing.
NO_PROBLEM_LEVEL = 100


@dataclass(frozen=True)
class NiftiHeader:
    """Position, type and geometry of the voxels of a NIfTI file.

    Args:
        voxels: file with the voxels: the file itself, or the .img of a pair.
        packed: whether that file is a gzip stream.
        offset: bytes before the first voxel.
        dtype: type of the stored voxels, with their byte order.
        shape: voxels along (i, j, k), and the number of volumes if there are several; i varies fastest.
        slope: value = slope * stored + inter.
        inter: see ``slope``.
        affine: (4, 4) float64, voxel (i, j, k) -> RAS+ mm.
        warnings: oddities that do not prevent reading.
    """

    voxels: Path
    packed: bool
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    slope: float
    inter: float
    affine: np.ndarray
    warnings: tuple[str, ...]

    @property
    def end(self) -> int:
        """Return the number of bytes up to the end of the last voxel in the decompressed file."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def read_nifti_scan(path: Path, name: str, max_voxels: int = MAX_VOXELS) -> Scan:
    """Return a NIfTI file as a scan, from its header only; if it cannot be read correctly, ``refused`` says why."""
    try:
        header = read_nifti_header(path, max_voxels)
    except (RefusedScan, OSError) as error:
        return Scan(name, (path,), "NIfTI", refused=describe_error(error), refused_kind=get_refused_kind(error))
    spacing = np.linalg.norm(header.affine[:3, :3], axis=0)
    return Scan(
        name,
        tuple(dict.fromkeys((find_header_file(path), header.voxels))),
        "NIfTI",
        shape=header.shape,
        spacing_mm=tuple(float(size) for size in spacing),
        orientation=get_orientation(header.affine),
        warnings=header.warnings,
    )


def read_nifti_header(path: Path, max_voxels: int = MAX_VOXELS) -> NiftiHeader:
    """Read a header and check it, also against the size of the file.

    Raises:
        RefusedScan: the file cannot be read correctly.
        OSError: the file cannot be opened or read.
    """
    warnings: list[str] = []
    path = find_header_file(path)
    head, packed = read_first_bytes(path)
    if packed and head.startswith(GZIP):
        _refuse_nested_gzip(path)
    header = _parse(head)
    if path.name.lower().endswith(".gz") != packed:
        contrast = (
            "does not end with .gz, but it is compressed" if packed else "ends with .gz, but it is not compressed"
        )
        warnings.append(f"its name {contrast}")
    shape = _read_shape(header, max_voxels, warnings)
    dtype = _read_dtype(header, warnings)
    slope, inter = _read_scaling(header, warnings)
    affine = read_affine(header, shape, warnings)
    voxels = path
    if header["magic"].item() == header.pair_magic:
        voxels = _require_partner(path, "img")
        beginning, packed = read_first_bytes(voxels)
        if packed and beginning.startswith(GZIP):
            _refuse_nested_gzip(voxels)
    offset = _read_offset(header, voxels == path, warnings)
    found = NiftiHeader(voxels, packed, offset, dtype, shape, slope, inter, affine, tuple(warnings))
    _check_size(found)
    return found


def read_stored_header(path: Path) -> nibabel.Nifti1Header:
    """Return the fields of a header with the repairs that nibabel makes, whatever the name of the file.

    Raises:
        RefusedScan: it is no NIfTI file.
        OSError: the file cannot be opened or read.
    """
    header = _parse(read_first_bytes(find_header_file(path))[0])
    header.check_fix(error_level=NO_PROBLEM_LEVEL)
    return header


def find_header_file(path: Path) -> Path:
    """Return the file with the header: the .hdr if the path is the .img of a pair, else the file itself."""
    if path.name.lower().endswith((".img", ".img.gz")):
        return _require_partner(path, "hdr")
    return path


def find_partner(path: Path, kind: str) -> Path | None:
    """Return the file of a pair with ``kind`` ``"hdr"`` or ``"img"``; None if it does not exist."""
    stem = path.with_suffix("") if path.name.lower().endswith(".gz") else path
    for suffix in (f".{kind}", f".{kind}.gz", f".{kind.upper()}"):
        if (other := stem.with_suffix(suffix)).is_file():
            return other
    return None


def _require_partner(path: Path, kind: str) -> Path:
    other = find_partner(path, kind)
    if other is None:
        raise RefusedScan(
            f"expected a pair of .hdr and .img, but the .{kind} of {path.name} is missing: put it next to the other",
            kind="incomplete",
        )
    return other


def _refuse_nested_gzip(path: Path) -> None:
    """Raise RefusedScan if a gzip stream contains another one."""
    times = count_gzip_layers(path)
    if times > 1:
        raise RefusedScan(
            f"expected a file compressed once, got one that is compressed {'twice' if times == 2 else 'more often'}"
            f" (gzip within gzip, {times} times): unpack it with gunzip, then give what comes of it",
            kind="format",
        )


def _parse(head: bytes) -> nibabel.Nifti1Header:
    """Return the header as nibabel parses it, NIfTI-1 or NIfTI-2, in either byte order."""
    kind = identify_kind(head)
    if kind != "NIfTI":
        if kind == ANALYZE and len(head) < NIFTI1_HEADER_BYTES:
            raise _make_truncated(NIFTI1_HEADER_BYTES, len(head))
        if kind == "a compressed file":
            raise RefusedScan(
                "expected a NIfTI file, got a gzip stream that is damaged or cut short: copy it again", kind="damaged"
            )
        advice = "convert it to NIfTI" if kind in CONVERTIBLE else "give the scan itself"
        raise RefusedScan(
            f"expected a NIfTI file ({', '.join(NIFTI_SUFFIXES[:2])}), got {kind}: {advice}", kind="format"
        )
    classes = {NIFTI1_HEADER_BYTES: nibabel.Nifti1Header, NIFTI2_HEADER_BYTES: nibabel.Nifti2Header}
    size = NIFTI2_HEADER_BYTES if head[4:6] in (b"n+", b"ni") else NIFTI1_HEADER_BYTES
    if len(head) < size:
        raise _make_truncated(size, len(head))
    for order in "<>":
        header = classes[size](head[:size], endianness=order, check=False)
        if int(header["sizeof_hdr"]) == size:
            return header
    raise RefusedScan(
        f"expected {size} as the length of its header, got another: it is damaged, copy the file again", kind="damaged"
    )


def _make_truncated(size: int, got: int) -> RefusedScan:
    return RefusedScan(
        f"expected a header of {size} bytes, got {got}: it is cut short, copy the file again", kind="damaged"
    )


def _read_shape(header: nibabel.Nifti1Header, max_voxels: int, warnings: list[str]) -> tuple[int, ...]:
    """Return the voxels along (i, j, k), and the number of volumes if there are several."""
    dimensions, *sizes = (int(size) for size in header["dim"])
    if not 1 <= dimensions <= 7:
        raise RefusedScan(
            f"expected 3 dimensions, its header says {dimensions}: it is damaged, write the file again", kind="damaged"
        )
    shape = tuple(sizes[:dimensions])
    if 0 in shape[3:]:  # some writers leave 0 for unused axes
        warnings.append(f"its header says {shape} voxels: 0 is taken as 1 behind the third axis")
        shape = (*shape[:3], *(size or 1 for size in shape[3:]))
    if min(shape) < 1:
        raise RefusedScan(
            f"expected at least one voxel along each axis, its header says {shape}: it is damaged", kind="damaged"
        )
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise RefusedScan(
            f"expected a volume, got an image of shape {shape}: give the whole scan, not a slice of it",
            kind="single-slice",
        )
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4:
        raise RefusedScan(
            f"expected a volume, got {math.prod(shape[3:])} numbers per voxel in {len(shape)} dimensions (shape "
            f"{shape}), such as vectors: give the scan itself",
            kind="voxel-type",
        )
    if math.prod(shape[:3]) > max_voxels:
        raise RefusedScan(
            f"expected at most {max_voxels} voxels, its header says {math.prod(shape[:3])} (shape {shape}): if this is "
            "right, raise max_voxels",
            kind="too-large",
        )
    return shape


def _read_dtype(header: nibabel.Nifti1Header, warnings: list[str]) -> np.dtype:
    code = int(header["datatype"])
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise RefusedScan(
            f"expected a type of voxels that NIfTI knows, its header says {code}: it is damaged", kind="damaged"
        ) from None
    if dtype.kind not in "iuf":
        name = "colour" if code in (128, 2304) else str(dtype) if dtype.kind == "c" else f"type {code}"
        raise RefusedScan(
            f"expected one number per voxel, got {name}: convert it to one number per voxel",
            kind="colour" if name == "colour" else "voxel-type",
        )
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        warnings.append(f"its header says {int(header['bitpix'])} bits per voxel, but {dtype.name} is taken")
    return dtype


def _read_scaling(header: nibabel.Nifti1Header, warnings: list[str]) -> tuple[float, float]:
    """Return slope and intercept; without a usable slope, 1 and 0, as in the standard and nibabel."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        warnings.append(f"its header gives no scaling (slope {slope:g}): voxels are taken as they are stored")
        return 1.0, 0.0
    if not math.isfinite(inter):
        raise RefusedScan(
            f"expected a finite scl_inter next to slope {slope:g}, got {inter:g}: write the file again", kind="damaged"
        )
    return slope, inter


def _read_offset(header: nibabel.Nifti1Header, is_single_file: bool, warnings: list[str]) -> int:
    given = offset = float(header["vox_offset"])
    if math.isfinite(given):
        offset = round(given)
        if abs(given - offset) > FIELD_ROUNDING:
            raise RefusedScan(
                f"expected voxels from a whole byte on, its header says byte {given:g}: it is damaged", kind="damaged"
            )
        if given != offset:
            warnings.append(f"its header says that voxels begin at byte {given:.7g}: {offset} is taken")
    least = int(header["sizeof_hdr"]) + 4 if is_single_file else 0
    if not math.isfinite(offset) or offset < least:
        raise RefusedScan(
            f"expected voxels from byte {least} on, its header says byte {offset:g}: it is damaged", kind="damaged"
        )
    return int(offset)


def _check_size(header: NiftiHeader) -> None:
    size = header.voxels.stat().st_size
    if size == 0:
        raise RefusedScan(f"expected {header.end} bytes of voxels, got an empty file: copy it again", kind="damaged")
    most = size * MAX_GZIP_RATIO if header.packed else size
    if most < header.end:
        found = f"a compressed file of {size} bytes, which cannot hold them" if header.packed else f"{size}"
        raise RefusedScan(
            f"expected {header.end} bytes by its header, got {found}: it is cut short, copy it again", kind="damaged"
        )
    if not header.packed and size > header.end + MAX_TRAILING_BYTES:
        raise RefusedScan(f"expected {header.end} bytes by its header, got {size}: not what it says", kind="damaged")
