# SPDX-License-Identifier: Apache-2.0
"""A volume that is written plane by plane, into memory or, if it is large, into a temporary file."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class PlaneWriter:
    """Takes the planes of a volume (channels, S0, S1, S2) along its last axis, in order.

    A large volume is written into a temporary file that has no name: it goes with the last tensor that uses it, also
    after an error or a killed process. It is float32 like a small one, so that the size of a scan does not change
    results.

    Args:
        shape: (channels, S0, S1, S2).
        keep_bytes: the largest volume that is kept in memory.
        device: device of a volume in memory; that in a file is on the CPU.
        folder: folder of the file; ``None``: the system's folder for temporary files.

    Example:
        >>> planes = PlaneWriter((2, 4, 4, 3), keep_bytes=0)
        >>> planes.append(torch.ones(3, 2, 4, 4))
        >>> volume = planes.volume()
        >>> planes.close()
        >>> volume.shape, float(volume.mean())
        (torch.Size([2, 4, 4, 3]), 1.0)
    """

    def __init__(
        self,
        shape: Sequence[int],
        keep_bytes: int,
        device: torch.device | str = "cpu",
        folder: str | Path | None = None,
    ) -> None:
        channels, *sides, depth = shape
        self.shape = (depth, channels, *sides)  # planes are contiguous in this order
        self._done = 0
        self._file: Any = None
        if math.prod(self.shape) * 4 > keep_bytes:
            # Planes are written, not assigned to mapped memory: a full disk is then an error and not a crash.
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (see `close`)
        else:
            self._kept = torch.empty(self.shape, dtype=torch.float32, device=device)

    def append(self, planes: Tensor) -> None:
        """Write the next planes, (planes, channels, S0, S1).

        Raises:
            OSError: the disk is full.
        """
        if self._file is None:
            self._kept[self._done : self._done + len(planes)] = planes
        else:
            self._file.write(planes.to("cpu", torch.float32).contiguous().numpy().data)
        self._done += len(planes)

    def volume(self) -> Tensor:
        """Return the volume, (channels, S0, S1, S2) float32, after its last plane was written."""
        if self._file is None:
            return self._kept.permute(1, 2, 3, 0)
        self._file.flush()
        mapped = np.memmap(self._file, np.float32, "r+", shape=self.shape)
        return torch.from_numpy(mapped).permute(1, 2, 3, 0)

    def close(self) -> None:
        """Close the file; volumes that were returned stay."""
        if self._file is not None:
            self._file.close()
