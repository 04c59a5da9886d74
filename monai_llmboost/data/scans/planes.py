# SPDX-License-Identifier: Apache-2.0
"""Planes of a volume, written from the order of files into the order of arrays.

Files have the columns of a plane innermost, arrays the planes. So a plane writes a few bytes to each line of the cache,
and several planes at once are several times as fast as one by one, or as the whole volume afterwards.
"""

from __future__ import annotations

import numpy as np

# Bytes between planes in a block; with a power of two as their distance, they would share few lines of the cache.
GAP_BYTES = 64


def make_block(planes: int, rows: int, columns: int, dtype: np.dtype) -> np.ndarray:
    """Return an empty block of planes, (planes, rows, columns)."""
    size = rows * columns
    block = np.empty((planes, size + GAP_BYTES // dtype.itemsize), dtype)
    return block[:, :size].reshape(planes, rows, columns)


def get_row(block: np.ndarray, row: int) -> np.ndarray:
    """Return a row of all planes of a block in the order of arrays, (columns, planes)."""
    return np.ascontiguousarray(block[:, row].T)


def write_planes(into: np.ndarray, values: np.ndarray) -> None:
    """Write values in the order of a file into an array (columns, rows, planes), or of one plane (columns, rows)."""
    if into.ndim == 2:
        into[...] = values.reshape(into.shape, order="F")
        return
    columns, rows, planes = into.shape
    block = make_block(planes, rows, columns, values.dtype)
    block[...] = values.reshape(planes, rows, columns)
    for row in range(rows):
        into[:, row] = get_row(block, row)
