# SPDX-License-Identifier: Apache-2.0
"""Uncompressed stored values, read from their place in the file while its header is the one that was checked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from monai_llmboost.data.scans.dicom.values import read_value
from monai_llmboost.data.scans.scan import RefusedScan

if TYPE_CHECKING:
    from monai_llmboost.data.scans.dicom.slices import SliceHeader

# Attributes without which pydicom decodes no pixels; its refusal is left to it.
NEEDED = ("SamplesPerPixel", "BitsStored", "PixelRepresentation")


@dataclass(frozen=True)
class PlainPixels:
    """Place of uncompressed, little-endian stored values in a file.

    Args:
        offset: number of bytes before the first value.
        header: digest of these bytes, by which a rewritten file is noticed.
        file_bytes: size of the file.
        dtype: of a stored value.
    """

    offset: int
    header: bytes
    file_bytes: int
    dtype: str


def find_plain_pixels(file: BinaryIO, data: Dataset, syntax: UID) -> PlainPixels | None:
    """Return the place of the values if they can be read without a decoder; None if they cannot.

    Args:
        file: open at the first value; the length of the values was checked.
        data: the header.
        syntax: transfer syntax of the file.
    """
    little = data.original_encoding[1] and syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    if not little or any(read_value(data, keyword) is None for keyword in NEEDED):
        return None
    offset = file.tell()
    file.seek(0)
    dtype = f"<{'i' if read_value(data, 'PixelRepresentation') else 'u'}{read_value(data, 'BitsAllocated') // 8}"
    return PlainPixels(offset, _digest(file.read(offset)), os.fstat(file.fileno()).st_size, dtype)


def is_unchanged(file: BinaryIO, pixels: PlainPixels) -> bool:
    """Return whether a file, open at its beginning, still has its size and header; it is then at its first value."""
    return os.fstat(file.fileno()).st_size == pixels.file_bytes and _digest(file.read(pixels.offset)) == pixels.header


def iterate_plain(
    file: BinaryIO, path: Path, pixels: PlainPixels, parts: Sequence[SliceHeader]
) -> Iterator[np.ndarray]:
    """Yield the stored values of the frames of an unchanged file, each (rows, columns).

    Raises:
        RefusedScan: the file is being rewritten.
    """
    for part in parts:
        plane = np.empty((part.rows, part.columns), pixels.dtype)
        file.seek(pixels.offset + part.frame * plane.nbytes)
        if file.readinto(plane.data.cast("B")) < plane.nbytes:  # type: ignore[attr-defined]
            raise make_rewritten(path)
        if unused := 8 * plane.itemsize - part.bits_stored:  # they may hold anything
            np.left_shift(plane, unused, out=plane)
            np.right_shift(plane, unused, out=plane)
        yield plane


def make_rewritten(path: Path) -> RefusedScan:
    """Return the refusal of a file that changed after its header was read."""
    what = f"expected {path.name} as it was found, it was rewritten meanwhile: try again"
    return RefusedScan(what, kind="damaged", may_pass=True)


def _digest(header: bytes) -> bytes:
    return blake2b(header, digest_size=16).digest()
