# SPDX-License-Identifier: Apache-2.0
"""Matrices with few bits a weight: symmetric, one scale for each group of inputs, some input channels in 16 bits.

Torch and NumPy are enough for this. A library such as torchao has its own tensor classes, which would have to be
dequantised for the exact read-out, adapters and TorchScript all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# 64 inputs with a scale of 16 bits: 0.25 bits a weight. Pairs of scale and offset for 128 inputs cost the same, with a
# larger error at 4 bits.
GROUP = 64
# Fractions of the largest weight of a group that are tried as the end of its grid; the least squared error is chosen.
ENDS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
ROWS = 512  # quantised at a time, to bound the memory
PARTS = ("codes", "scales", "salient", "channels")


@dataclass(frozen=True)
class QuantisedMatrix:
    """A matrix W (out, in) as codes c of ``bits`` bits: ``W[o, j] = (c[o, j] - 2^(bits - 1)) scale[o, j // group]``.

    ``j`` counts the input channels without the salient ones, which are kept as they are.

    Args:
        codes: (bits, out, ceil(K / 8)) uint8, K = in - S: plane b has bit b of the codes, input j in bit j % 8 of byte
            j // 8.
        scales: (out, ceil(K / group)) float16; the sign is that of the grid's longer side.
        salient: (out, S) weights of the salient channels in 16 bits.
        channels: (S,) int32, the salient channels in ascending order.

    Example:
        >>> matrix = quantise_matrix(torch.randn(8, 128), bits=4)
        >>> matrix.dequantise(128, torch.float32).shape, matrix.num_bytes
        (torch.Size([8, 128]), 544)
    """

    codes: Tensor
    scales: Tensor
    salient: Tensor
    channels: Tensor

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return the parts by name."""
        return {name: getattr(self, name) for name in PARTS}

    def dequantise(self, inputs: int, dtype: torch.dtype, group: int = GROUP) -> Tensor:
        """Return the matrix (out, inputs); the same bits on every machine, since code times scale is exact in float32.

        Raises:
            ValueError: the parts contradict each other.
        """
        bits, out = self.codes.shape[:2]
        kept = torch.zeros(inputs, dtype=torch.bool)
        kept[self.channels.long()] = True
        count = inputs - len(self.channels)
        if int(kept.sum()) != len(self.channels) or self.codes.shape[2] != -(-count // 8):
            raise ValueError("the codes do not have the shape of the matrix: extract it again")
        codes = np.zeros((out, count), np.uint8)
        for bit, plane in enumerate(self.codes.numpy()):
            codes |= np.unpackbits(plane, axis=1, count=count, bitorder="little") << bit
        # In groups, so that the scales need no copy of the size of the matrix.
        values = F.pad(torch.from_numpy(codes), (0, -count % group)).view(out, -1, group).float()
        values = values.sub_(2 ** (bits - 1)).mul_(self.scales.float().unsqueeze(-1)).view(out, -1)[:, :count].to(dtype)
        if not len(self.channels):
            return values.contiguous()
        matrix = torch.empty(out, inputs, dtype=dtype)
        matrix[:, ~kept] = values
        matrix[:, kept] = self.salient.to(dtype)
        return matrix


def quantise_matrix(weight: Tensor, bits: int, channels: Tensor | None = None, group: int = GROUP) -> QuantisedMatrix:
    """Quantise a matrix to the nearest of ``2^bits`` values for each group of inputs.

    The grid of a group has one value more on one side of zero than on the other; that side gets the weight of the
    largest size, so no bit is lost to symmetry. The end of the grid is the largest weight, or the fraction of it, down
    to 0.7, that has the least squared error.

    Args:
        weight: (out, in).
        bits: bits of a weight, 2 to 8.
        channels: input channels that are kept in 16 bits; ``None`` for none.
        group: inputs that share a scale.

    Raises:
        ValueError: a weight is too large for float16.
    """
    largest = float(weight.abs().max())
    if not largest <= torch.finfo(torch.float16).max:
        raise ValueError(f"a weight of size {largest:g} does not fit in 16 bits: leave out --bits")
    kept = torch.zeros(weight.shape[1], dtype=torch.bool)
    kept[channels if channels is not None else []] = True
    codes, scales = [], []
    for rows in weight[:, ~kept].split(ROWS):
        count = rows.shape[1]
        grouped = F.pad(rows.float(), (0, -count % group)).view(len(rows), -1, group)
        found, scale = _nearest(grouped, bits)
        codes.append(found.view(len(rows), -1)[:, :count])
        scales.append(scale)
    planes = [np.packbits(torch.cat(codes).numpy() >> bit & 1, axis=1, bitorder="little") for bit in range(bits)]
    dtype = weight.dtype if weight.dtype.itemsize == 2 else torch.float16
    return QuantisedMatrix(
        torch.from_numpy(np.stack(planes)),
        torch.cat(scales),
        weight[:, kept].to(dtype),
        kept.nonzero()[:, 0].to(torch.int32),
    )


def _nearest(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return codes (out, groups, group) uint8 and scales (out, groups) float16 of weights in groups."""
    half = 2 ** (bits - 1)
    largest = weight.gather(-1, weight.abs().argmax(-1, keepdim=True))
    best = torch.full_like(largest, torch.inf)
    codes, scales = torch.zeros_like(weight), torch.zeros_like(largest)
    for end in ENDS if bits < 8 else ENDS[:1]:  # with 8 bits, a shorter grid is never better
        scale = (largest * (-end / half)).half().float()
        # A group of zeros has the scale 0.
        code = (weight / scale.where(scale != 0, 1.0)).round_().clamp_(-half, half - 1)
        error = (code * scale - weight).square_().sum(-1, keepdim=True)
        better = error < best
        best = error.where(better, best)
        codes, scales = code.where(better, codes), scale.where(better, scales)
    return (codes + half).to(torch.uint8), scales.squeeze(-1).half()


def pack(matrices: Mapping[str, QuantisedMatrix]) -> dict[str, Tensor]:
    """Return the parts of matrices as tensors ``NAME.PART``."""
    return {f"{name}.{part}": tensor for name, one in matrices.items() for part, tensor in one.tensors().items()}


def unpack(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, group: int
) -> dict[str, Tensor]:
    """Return tensors with each matrix dequantised that has the parts ``NAME.PART``.

    Args:
        tensors: as :func:`pack` returns them, and other tensors, which stay.
        shapes: shapes of the tensors of the layer by name.
        dtype: dtype of the matrices.
        group: inputs that share a scale.

    Raises:
        ValueError: the parts contradict each other, or one is missing.
    """
    found = {}
    for name, shape in shapes.items():
        parts = {part: tensors[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in tensors}
        if parts:
            try:
                found[name] = QuantisedMatrix(**parts).dequantise(shape[1], dtype, group)
            except (TypeError, RuntimeError, IndexError) as error:  # missing parts or wrong shapes
                raise ValueError(f"{name} is incomplete: extract it again") from error
    used = {f"{name}.{part}" for name in found for part in PARTS}
    return found | {name: tensor for name, tensor in tensors.items() if name not in used}
