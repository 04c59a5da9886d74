# SPDX-License-Identifier: Apache-2.0
"""Length of the pixel data of a DICOM file, checked against the header before decoding."""

from __future__ import annotations

import os
from typing import BinaryIO, Literal

from pydicom import Dataset
from pydicom.uid import UID

from monai_llmboost.data.scans.dicom.values import read_value

PIXEL_DATA = (0x7FE0, 0x0010)
ITEM, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
UNDEFINED = 0xFFFFFFFF
CUT_SHORT = "the file is cut short, copy it again"


def find_pixel_data_problem(file: BinaryIO, data: Dataset, syntax: UID, frames: int) -> str:
    """Return why the pixel data of a file do not match its header; empty if they do.

    Args:
        file: open at the first byte of the element PixelData, where pydicom stops.
        data: the header.
        syntax: transfer syntax of the file.
        frames: number of images according to the header.
    """
    rows, columns, bits = (read_value(data, keyword) for keyword in ("Rows", "Columns", "BitsAllocated"))
    needed = frames * rows * columns * bits // 8
    implicit, little = data.original_encoding
    order: Literal["little", "big"] = "little" if little else "big"
    end = os.fstat(file.fileno()).st_size
    head = file.read(8 if implicit else 12)
    tag = (int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order))
    if len(head) < (8 if implicit else 12) or tag != PIXEL_DATA:
        return f"expected {needed} bytes of pixels, got none: {CUT_SHORT}"
    length = int.from_bytes(head[-4:], order)
    if syntax.is_encapsulated:
        return _find_item_problem(file, frames, length, end)
    rest = end - file.tell()
    if length == UNDEFINED:
        return f"expected {needed} bytes of pixels, got a length that is not given: export it again"
    if rest < length:
        return f"expected {max(length, needed)} bytes of pixels, got at most {rest}: {CUT_SHORT}"
    if not needed <= length <= needed + needed % 2:  # an odd number of bytes is padded to an even one
        return (
            f"expected {needed} bytes of pixels ({frames} x {rows} x {columns}, {bits} bits), "
            f"got {length}: header and pixels are not of one image, export it again"
        )
    return ""


def _find_item_problem(file: BinaryIO, frames: int, length: int, end: int) -> str:
    """Return what is wrong with the list of compressed fragments; decoding checks the fragments themselves."""
    last = end if length == UNDEFINED else min(end, file.tell() + length)
    fragments = -1  # the first item is the offset table
    while True:
        head = file.read(8)  # items are little-endian in every syntax
        tag = (int.from_bytes(head[:2], "little"), int.from_bytes(head[2:4], "little"))
        if tag == SEQUENCE_END or (length != UNDEFINED and not head):
            break
        size = int.from_bytes(head[4:8], "little")
        if len(head) < 8 or tag != ITEM or file.tell() + size > last:
            return f"expected compressed pixels up to their end mark, got fewer: {CUT_SHORT}"
        file.seek(size, os.SEEK_CUR)
        fragments += 1
    if fragments < frames:
        return f"expected compressed pixels of {frames} images, got {max(fragments, 0)}: export it again"
    return ""
