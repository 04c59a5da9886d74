# SPDX-License-Identifier: Apache-2.0
"""Kinds of files, identified by their first bytes instead of their names."""

from __future__ import annotations

import gzip
import re
import stat
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# Number of bytes to read: a NIfTI-2 header and its extension flag, the longest signature.
HEAD_BYTES = 544
GZIP = b"\x1f\x8b"
MAX_GZIP_LAYERS = 10  # nested gzip streams that are counted
NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
ANALYZE = "an Analyze file, which does not tell its orientation"

# Offset, bytes and kind; the first match is used.
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (344, b"n+1\0", "NIfTI"),
    (344, b"ni1\0", "NIfTI"),
    (4, b"n+2\0\r\n\x1a\n", "NIfTI"),
    (4, b"ni2\0\r\n\x1a\n", "NIfTI"),
    (128, b"DICM", "DICOM"),
    (0, b"\x5c\x01\0\0", ANALYZE),
    (0, b"\0\0\x01\x5c", ANALYZE),
    (0, GZIP, "a compressed file"),
    (0, b"NRRD", "an NRRD image"),
    (0, b"ObjectType", "a MetaImage"),
    (0, b"NDims", "a MetaImage"),
    (0, b"MINC", "a MINC image"),
    (0, b"CDF", "a NetCDF or MINC file"),
    (0, b"\x89HDF\r\n", "an HDF5 file"),
    (0, b"\0\0\0\x01\0\0", "an MGH image"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"BM", "a BMP picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a zip file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
    (0, b"\x93NUMPY", "a NumPy file"),
    (0, b"\0\x05\x16\x07", "a side file of macOS"),
    (0, b"version https://git-lfs", "a pointer of Git LFS in place of the file"),
)
# Kinds that may be a damaged slice, because nothing shows that they are something else.
UNKNOWN_KINDS = (
    "an empty file",
    "a file of an unknown kind",
    "a compressed file",
    "a pointer of Git LFS in place of the file",
)
# Kinds that may have replaced a slice, such as an error page of a server, if the file is named like a slice.
TEXT_KINDS = ("a text file", "an HTML or XML file")
# Suffixes of unfinished downloads, and of web pages sent by a server instead of the file.
DOWNLOAD_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload", ".download", ".filepart", ".html", ".htm")
# Hidden files, files of desktop systems, and lists of checksums.
NEVER_SLICES = re.compile(r"\..*|thumbs\.db|desktop\.ini|.*sums?", re.IGNORECASE)
CONVERTIBLE = ("an NRRD image", "a MetaImage", "a MINC image", "an MGH image", "a NetCDF or MINC file", ANALYZE)


def read_first_bytes(path: Path) -> tuple[bytes, bool]:
    """Return the first bytes of a regular file, decompressed if it is a gzip stream, and whether it is a gzip stream.

    Raises:
        OSError: the file cannot be read, or is not a regular file (a pipe may never end).
    """
    if path.is_dir():
        raise IsADirectoryError("expected a file, got a folder: give the file itself")
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("expected a regular file, got a pipe, a socket or a device: give the scan itself")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head.startswith(GZIP):
        return head, False
    try:
        with gzip.open(path) as file:
            return file.read(HEAD_BYTES), True
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return head, True  # not even its beginning can be decompressed


def may_be_slice(name: str, kind: str, suffixes: set[str]) -> bool:
    """Return whether a file may be a damaged slice.

    Args:
        name: name of the file.
        kind: kind of its content, see :func:`identify_kind`.
        suffixes: suffixes of the slices next to it, such as ``".dcm"``.
    """
    if NEVER_SLICES.fullmatch(name):
        return False
    if kind in TEXT_KINDS:  # under the name of a slice, such as IM0012, but not LICENSE, report.html or report.txt
        path = Path(name)
        stem = Path(path.stem) if path.suffix.lower() in DOWNLOAD_SUFFIXES and Path(path.stem).suffix else path
        suffix = stem.suffix.lower()
        own = suffix in suffixes or not suffix.strip(".0123456789")
        return own and (kind == TEXT_KINDS[1] or any(character.isdigit() for character in name))
    return kind in UNKNOWN_KINDS


def count_gzip_layers(path: Path) -> int:
    """Return the number of nested gzip streams, each readable at its beginning; at most ``MAX_GZIP_LAYERS``."""
    with ExitStack() as stack:
        stream: Any = stack.enter_context(path.open("rb"))
        for layers in range(MAX_GZIP_LAYERS):
            try:
                if stream.read(len(GZIP)) != GZIP:
                    return layers
                stream.seek(0)
                stream = stack.enter_context(gzip.GzipFile(fileobj=stream, mode="rb"))
            except (EOFError, zlib.error, gzip.BadGzipFile):
                return layers - 1  # it begins like a gzip stream, but cannot be decompressed
    return MAX_GZIP_LAYERS


def identify_kind(head: bytes) -> str:
    """Return ``"NIfTI"``, ``"DICOM"`` or a description of another kind of file, from its first bytes.

    Example:
        >>> identify_kind(b"%PDF-1.7")
        'a PDF'
    """
    if not head:
        return "an empty file"
    for offset, signature, kind in SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return kind
    if head.lstrip()[:1] == b"<":
        return "an HTML or XML file"
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The last character may be cut; an error before it means that this is not text.
        text = head[: error.start].decode() if error.start >= len(head) - 3 else "\0"
    if all(character.isprintable() or character in "\t\r\n\f" for character in text):
        return "a text file"
    return "a file of an unknown kind"
