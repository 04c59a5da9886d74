# SPDX-License-Identifier: Apache-2.0
"""Read named tensors and metadata from one GGUF file: only its header and the bytes of these tensors.

See https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The ``gguf`` package dequantises the tensors. Its own
reader memory-maps whole files, which is not possible for a model on the hub.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from monai_llmboost.llm.donor.tensor_files import (
    HEADER_LIMIT,
    ByteSource,
    Progress,
    check_present,
    damaged_error,
    ignore_progress,
)

MAGIC, VERSIONS, SWAPPED = b"GGUF", (2, 3), (2 << 24, 3 << 24)
ALIGNMENT = 32  # default alignment of tensors, in bytes
LARGEST_COUNT = 1 << 20  # of tensors or metadata; far above any model
LONGEST_NAME, MOST_AXES = 1 << 16, 8
LONGEST_LIST = 1024  # lists of numbers per layer are kept; longer ones belong to the vocabulary
FIRST_CHUNK, LARGEST_CHUNK = 1 << 16, 1 << 22
# Metadata types by number; text and arrays are handled separately.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
FLOAT32, TEXT, LIST = 6, 8, 9
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class GgufEntry(NamedTuple):
    """Location of one tensor: ggml type, shape (slowest axis first), bytes ``begin`` to ``end`` of the file."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


class GgufFile:
    """Tensors and metadata of one GGUF file; the constructor reads and checks its header.

    Format: magic, version, number of tensors, number of metadata entries; the metadata; name, shape, type and offset of
    each tensor; then the aligned bytes of the tensors. There is no checksum.

    Args:
        source: the file's bytes.

    Raises:
        ValueError: not a GGUF file, truncated, inconsistent, or with an unknown version or tensor type.
        ImportError: the package ``gguf`` is missing.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        header = _Header(source)
        if (magic := header.read_bytes(4)) != MAGIC:
            kind = "a Git LFS pointer instead of the weights" if magic == b"vers" else "not a GGUF file"
            raise damaged_error(source.name, f"it is {kind}")
        version = header.read_number("<I")
        if version not in VERSIONS:
            kind = "a big-endian GGUF file" if version in SWAPPED else f"a GGUF file of version {version}"
            raise ValueError(f"{source.name} is {kind}, which is not supported: convert the model again with llama.cpp")
        tensors, keys = header.read_count("tensors"), header.read_count("metadata")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = header.read_text()
            if key in self.metadata:
                raise damaged_error(source.name, f"its metadata contain {key} twice")
            self.metadata[key] = header.read_value(header.read_number("<I"))
        described = [header.read_tensor() for _ in range(tensors)]
        self.entries = self._place_tensors(described, header.position)

    def _place_tensors(
        self, described: list[tuple[str, int, tuple[int, ...], int]], header_end: int
    ) -> dict[str, GgufEntry]:
        sizes = _list_type_sizes()
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise damaged_error(self.source.name, f"its alignment {alignment!r} is invalid")
        start = end = _align(header_end, alignment)
        entries: dict[str, GgufEntry] = {}
        for name, number, shape, offset in sorted(described, key=lambda tensor: tensor[3]):
            if number not in sizes:
                raise ValueError(
                    f"{name} in {self.source.name} has the type {number}, unknown to the installed package gguf: run "
                    "`pip install -U gguf`, or choose another form of this model"
                )
            kind, values, size = sizes[number]
            if name in entries or shape[-1] % values or start + offset != end:
                raise damaged_error(self.source.name, f"its header is inconsistent for {name}")
            begin = start + offset
            length = prod(shape) // values * size
            entries[name] = GgufEntry(kind, shape, begin, begin + length)
            end = _align(begin + length, alignment)
        last = max((entry.end for entry in entries.values()), default=start)
        if self.source.size < last:
            raise damaged_error(self.source.name, f"it is truncated, with {self.source.size} bytes of {last}")
        if self.source.size > end:
            raise damaged_error(self.source.name, f"it has {self.source.size} bytes, but {end} by its header")
        return entries

    def names(self) -> list[str]:
        """Return the names of all tensors, in file order."""
        return list(self.entries)

    def num_bytes(self, names: Iterable[str]) -> int:
        """Return the total stored size in bytes of the named tensors that the file has."""
        return sum(self.entries[name].end - self.entries[name].begin for name in set(names) & self.entries.keys())

    def read(self, names: Iterable[str], progress: Progress = ignore_progress) -> dict[str, Tensor]:
        """Return the named tensors: floats as stored, quantised ones dequantised to float32.

        Args:
            names: names of the tensors.
            progress: called with the number of bytes of each read.

        Raises:
            ValueError: a tensor is missing, or has a type that cannot be dequantised.
        """
        wanted = list(dict.fromkeys(names))
        check_present(self.source.name, wanted, self.entries)
        return {name: self._read(name, self.entries[name], progress) for name in wanted}

    def _read(self, name: str, entry: GgufEntry, progress: Progress) -> Tensor:
        memory = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
        if memory.numel():
            self.source.read_into(entry.begin, memory.numpy().data, progress)
        if entry.kind in FLOATS:
            return memory.view(FLOATS[entry.kind]).view(entry.shape)
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        try:
            with np.errstate(all="ignore"):  # non-finite values are refused later, with the tensor name
                values = dequantize(
                    memory.numpy().reshape(prod(entry.shape[:-1]), -1), GGMLQuantizationType[entry.kind]
                )
        except NotImplementedError as error:
            raise ValueError(
                f"{name} in {self.source.name} has the type {entry.kind}, which cannot be dequantised: choose another "
                "form of this model"
            ) from error
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(entry.shape)


def _list_type_sizes() -> dict[int, tuple[str, int, int]]:
    """Return name, block size in values and block size in bytes of each ggml type, by its number."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise ImportError("a GGUF file needs one more package: pip install 'monai-llmboost[gguf]'") from error
    return {int(kind): (kind.name, values, size) for kind, (values, size) in GGML_QUANT_SIZES.items()}


def _align(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


class _Header:
    """Header of a file, read in growing chunks; every length in it is checked against the file size."""

    def __init__(self, source: ByteSource) -> None:
        self.source, self.position = source, 0
        self._start, self._buffer, self._chunk = 0, b"", FIRST_CHUNK

    def read_bytes(self, length: int) -> bytes:
        begin = self.position - self._start
        if begin < 0 or begin + length > len(self._buffer):
            if self.position + length > min(self.source.size, HEADER_LIMIT):
                raise damaged_error(self.source.name, "it is truncated within its header")
            wanted = min(max(length, self._chunk), self.source.size - self.position)
            buffer = bytearray(wanted)
            self.source.read_into(self.position, memoryview(buffer))
            self._start, self._buffer, begin = self.position, bytes(buffer), 0
            self._chunk = min(2 * self._chunk, LARGEST_CHUNK)
        self.position += length
        return self._buffer[begin : begin + length]

    def read_number(self, form: str) -> Any:
        return struct.unpack(form, self.read_bytes(struct.calcsize(form)))[0]

    def read_count(self, what: str) -> int:
        number = self.read_number("<Q")
        if number > LARGEST_COUNT:
            raise damaged_error(self.source.name, f"its header has an invalid number of {what}, {number}")
        return number

    def read_text(self) -> str:
        length = self.read_number("<Q")
        if length > LONGEST_NAME:
            raise damaged_error(self.source.name, f"its header has a name of {length} bytes")
        try:
            return self.read_bytes(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise damaged_error(self.source.name, "its header has a name that is not UTF-8") from error

    def read_value(self, kind: int) -> Any:
        """Return one metadata value; ``None`` for a value that is skipped, such as a vocabulary or a long text."""
        if kind == FLOAT32:  # shortest decimal: 1e-05, not 9.99999974738e-06
            return float(str(np.float32(self.read_number("<f"))))
        if kind in SCALARS:
            return self.read_number(SCALARS[kind])
        if kind == TEXT:
            length = self.read_number("<Q")
            if length > LONGEST_NAME:
                return self.skip(length)
            return self.read_bytes(length).decode("utf-8", errors="replace")
        if kind != LIST:
            raise damaged_error(self.source.name, f"its metadata contain a value of unknown type {kind}")
        inner, length = self.read_number("<I"), self.read_number("<Q")
        if inner in SCALARS:
            size = struct.calcsize(SCALARS[inner])
            if length > LONGEST_LIST:
                return self.skip(length * size)
            return list(struct.unpack(f"<{length}{SCALARS[inner][1]}", self.read_bytes(length * size)))
        if inner != TEXT or length > HEADER_LIMIT // 8:
            raise damaged_error(
                self.source.name, f"its metadata contain an invalid list of {length} values, type {inner}"
            )
        for _ in range(length):
            self.skip(self.read_number("<Q"))
        return None

    def skip(self, length: int) -> None:
        self.position += length

    def read_tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Return name, type, shape (slowest axis first) and offset of one tensor."""
        name, axes = self.read_text(), self.read_number("<I")
        if not 1 <= axes <= MOST_AXES:
            raise damaged_error(self.source.name, f"its header gives {name} {axes} axes")
        shape = struct.unpack(f"<{axes}Q", self.read_bytes(8 * axes))[::-1]
        if not 0 < prod(shape) < 2**63:
            raise damaged_error(self.source.name, f"its header gives {name} the shape {shape}")
        return name, self.read_number("<I"), shape, self.read_number("<Q")
