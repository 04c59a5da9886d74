# SPDX-License-Identifier: Apache-2.0
"""Volumes made of slices: rescaled to their unit, without padding, and written once in the order of arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.dicom.tolerances import DARK_PADDING
from monai_llmboost.data.scans.planes import get_row, make_block
from monai_llmboost.data.scans.scan import RefusedScan

# Slices that are written together.
MOST_SLICES, MOST_BYTES = 50, 1 << 25
# Sums of stored values of 16 bits and whole numbers below this are exact in float32.
MAX_EXACT = 1 << 23


def get_block_slices(voxels: int) -> int:
    """Return the number of slices of so many voxels, 16 bits each, that are written together."""
    return max(1, min(MOST_SLICES, MOST_BYTES // (2 * voxels)))


class Blocks:
    """A volume (columns, rows, slices), float32, that is written slice by slice, also by several threads.

    Args:
        slices: headers of the slices, in their order.
    """

    def __init__(self, slices: Sequence[SliceHeader]) -> None:
        shape = (slices[0].columns, slices[0].rows, len(slices))
        self.slices = slices
        self.volume = np.empty(shape, np.float32)
        self.outside = np.zeros(shape, bool) if any(part.padding for part in slices) else None
        self.slope = np.array([1.0 if part.slope is None else part.slope for part in slices])
        self.intercept = np.array([0.0 if part.intercept is None else part.intercept for part in slices])
        self.is_finite = True

    def write(self, planes: Iterable[tuple[int, np.ndarray]]) -> None:
        """Write the stored values, (rows, columns), of slices by their numbers."""
        numbers: list[int] = []
        block = np.empty((0, 0, 0))
        for number, plane in planes:
            if len(numbers) == len(block) or plane.dtype != block.dtype or number != numbers[-1] + 1:
                self._flush(numbers, block)
                rows, columns = plane.shape
                numbers, block = [], make_block(get_block_slices(plane.size), rows, columns, plane.dtype)
            block[len(numbers)] = plane
            numbers.append(number)
        self._flush(numbers, block)

    def _flush(self, numbers: Sequence[int], block: np.ndarray) -> None:
        """Write successive slices."""
        if not numbers:
            return
        place = slice(numbers[0], numbers[-1] + 1)
        parts = self.slices[place]
        paddings = [
            (bounds, np.array([part.padding == bounds for part in parts]))
            for bounds in {part.padding for part in parts}
            if bounds is not None
        ]
        is_inverted = any(part.inverted for part in parts)
        slope, intercept = self.slope[place], self.intercept[place]
        scaled = (slope != 1).any() or (np.abs(intercept) > MAX_EXACT).any() or (intercept % 1 != 0).any()
        for row in range(block.shape[1]):
            stored = get_row(block[: len(numbers)], row)  # (columns, slices)
            for (low, high), own in paddings:
                found = stored == low if low == high else (stored >= low) & (stored <= high)
                if self.outside is not None and found.any():
                    self.outside[:, row, place] |= found & own
            if is_inverted:
                stored = _mirror_inverted(stored, parts)
            into = self.volume[:, row, place]
            if scaled:
                into[...] = stored.astype(np.float64) * slope + intercept
                if not np.isfinite(into).all():
                    self.is_finite = False
            elif intercept.any():
                np.add(stored, intercept, out=into, dtype=np.float32, casting="unsafe")
            else:
                into[...] = stored

    def finish(self) -> tuple[np.ndarray, int]:
        """Return the volume after all slices, and the number of its voxels that are padding.

        Padding is set to the lowest value of all other voxels, unless it is dark enough, such as 0 in MR.

        Raises:
            RefusedScan: values are not finite.
        """
        if not self.is_finite:
            what = "expected finite voxels, got values beyond float32: export the series again"
            raise RefusedScan(what, kind="damaged")
        volume, outside = self.volume, self.outside
        count = 0 if outside is None else int(np.count_nonzero(outside))
        if outside is None or not 0 < count < volume.size:
            return volume, 0
        filled = [np.min(volume, where=outside, initial=math.inf), np.max(volume, where=outside, initial=-math.inf)]
        np.logical_not(outside, out=outside)
        lowest = np.min(volume, where=outside, initial=math.inf)
        highest = np.max(volume, where=outside, initial=-math.inf)
        if filled[1] <= lowest and filled[0] >= lowest - DARK_PADDING * (highest - lowest):
            return volume, 0
        np.logical_not(outside, out=outside)
        np.copyto(volume, lowest, where=outside)
        return volume, count


def _mirror_inverted(stored: np.ndarray, parts: Sequence[SliceHeader]) -> np.ndarray:
    """Mirror the values of MONOCHROME1 slices within their range."""
    lowest_plus_highest = np.array([-1 if part.signed else (1 << part.bits_stored) - 1 for part in parts], np.int32)
    inverted = np.array([part.inverted for part in parts])
    return np.where(inverted, lowest_plus_highest - stored.astype(np.int32), stored)
