# SPDX-License-Identifier: Apache-2.0
"""A scan that was read for the network, as a record and as an item for MONAI's loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _unknown_affine() -> Tensor:
    return torch.full((4, 4), torch.nan, dtype=torch.float64)


@dataclass
class Case:
    """A scan that was read for the network, or refused with the reason.

    Affines map voxels to RAS+ mm in float64; they are NaN if the transform keeps none.

    Args:
        image: (channels, S0, S1, S2) float32, the network's input; zeros if refused.
        index: index among the scans of the run.
        refused: reason of the refusal; empty if the scan was read.
        refused_kind: kind of the refusal.
        may_pass: whether another run may succeed.
        warnings: sentences.
        input_sha256: digest of the bytes that were read.
        affine: (4, 4), affine of ``image``.
        input_affine: (4, 4), affine of the original volume.
        input_shape: (3,), voxels of the original volume.
        voxels: the original volume, float32 with i fastest, if a picture of it is needed; else empty. It is kept as
            bytes, because loaders batch bytes of any length and move them between processes without shared memory.
        seconds: time for reading.

    Example:
        >>> case = Case(torch.zeros(1, 4, 4, 4), index=7, warnings=["odd", "spacing"])
        >>> batch = torch.utils.data.default_collate([case.to_item()])
        >>> Case.from_batch(batch, 0).warnings
        ['odd', 'spacing']
    """

    image: Tensor
    index: int
    refused: str = ""
    refused_kind: str = ""
    may_pass: bool = False
    warnings: list[str] = field(default_factory=list)
    input_sha256: str = ""
    affine: Tensor = field(default_factory=_unknown_affine)
    input_affine: Tensor = field(default_factory=_unknown_affine)
    input_shape: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.int64))
    voxels: bytes = b""
    seconds: float = 0.0

    def to_item(self) -> dict[str, Any]:
        """Return the case as an item that a loader can collate."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"warnings": "\n".join(self.warnings)}

    @classmethod
    def from_batch(cls, batch: Mapping[str, Any], position: int) -> Case:
        """Return a case of a collated batch."""
        # Items of other data sets and transforms may have more or fewer keys.
        item = {each.name: batch[each.name][position] for each in fields(cls) if each.name in batch}
        return cls(
            **item
            | {
                "index": int(item["index"]),
                "may_pass": bool(item["may_pass"]),
                "warnings": item["warnings"].split("\n") if item["warnings"] else [],
                "seconds": float(item["seconds"]),
            }
        )

    @property
    def volume(self) -> np.ndarray | None:
        """The original volume, (i, j, k) float32; None if it was not kept."""
        shape = tuple(self.input_shape.tolist())
        return np.frombuffer(self.voxels, np.float32).reshape(shape, order="F") if self.voxels else None
