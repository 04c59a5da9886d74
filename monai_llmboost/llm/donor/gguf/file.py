# SPDX-License-Identifier: Apache-2.0
"""Named tensors and metadata out of one GGUF file, reading its header and the bytes of these tensors only.

See https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The ``gguf`` package knows the quantised types and what
their bytes mean; its own reader maps whole files, which a model on the hub is not.
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
ALIGNMENT = 32  # of the tensors, unless the metadata say otherwise
LARGEST_COUNT = 1 << 20  # of tensors or metadata; no model comes near
LONGEST_NAME, MOST_AXES = 1 << 16, 8
LONGEST_LIST = 1024  # of numbers that are kept, one for each layer; longer ones are a vocabulary's
FIRST_CHUNK, LARGEST_CHUNK = 1 << 16, 1 << 22
# Types of metadata by their number; text and lists are told apart.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
FLOAT32, TEXT, LIST = 6, 8, 9
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class GgufEntry(NamedTuple):
    """Where one tensor lies: its type as ggml spells it, shape (slowest axis first), bytes ``begin`` to ``end``."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


class GgufFile:
    """The tensors and metadata of one GGUF file; its header is read here, and checked before any of it is used.

    Magic, version, numbers of tensors and of metadata; the metadata; of each tensor name, shape, type and place; then,
    aligned, the tensors' bytes one after the other. There is no checksum.

    Args:
        source: the file's bytes.

    Raises:
        ValueError: no GGUF file, cut short, of a version or type that is not known, or contradicting itself.
        ImportError: the package ``gguf`` is missing.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        header = _Header(source)
        if (magic := header.take(4)) != MAGIC:
            what = "a pointer of Git LFS in place of the weights" if magic == b"vers" else "no GGUF file"
            raise damaged_error(source.name, f"it is {what}")
        version = header.number("<I")
        if version not in VERSIONS:
            what = "big-endian" if version in SWAPPED else f"of version {version}"
            raise ValueError(f"{source.name} is a GGUF file that is {what}: convert the model again with llama.cpp")
        tensors, keys = header.count("tensors"), header.count("metadata")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = header.text()
            if key in self.metadata:
                raise damaged_error(source.name, f"its metadata have {key} twice")
            self.metadata[key] = header.value(header.number("<I"))
        described = [header.tensor() for _ in range(tensors)]
        self.entries = self._place_tensors(described, header.position)

    def _place_tensors(
        self, described: list[tuple[str, int, tuple[int, ...], int]], behind: int
    ) -> dict[str, GgufEntry]:
        sizes = _sizes()
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise damaged_error(self.source.name, f"its tensors are aligned to {alignment!r}")
        start = end = _align(behind, alignment)
        entries: dict[str, GgufEntry] = {}
        for name, number, shape, offset in sorted(described, key=lambda tensor: tensor[3]):
            if number not in sizes:
                raise ValueError(
                    f"{name} in {self.source.name} is of type {number}, which the installed package gguf does not "
                    "know: run `pip install -U gguf`, or choose another form of this model"
                )
            kind, values, size = sizes[number]
            if name in entries or shape[-1] % values or start + offset != end:
                raise damaged_error(self.source.name, f"its header contradicts itself about {name}")
            begin = start + offset
            length = prod(shape) // values * size
            entries[name] = GgufEntry(kind, shape, begin, begin + length)
            end = _align(begin + length, alignment)
        last = max((entry.end for entry in entries.values()), default=start)
        if self.source.size < last:
            raise damaged_error(self.source.name, f"it is cut short, with {self.source.size} bytes of {last}")
        if self.source.size > end:
            raise damaged_error(self.source.name, f"it has {self.source.size} bytes, its header speaks of {end}")
        return entries

    def names(self) -> list[str]:
        """Return every tensor's name, in the order in which they lie in the file."""
        return list(self.entries)

    def num_bytes(self, names: Iterable[str]) -> int:
        """Return the size in bytes, as stored, of those of the named tensors that the file has."""
        return sum(self.entries[name].end - self.entries[name].begin for name in set(names) & self.entries.keys())

    def read(self, names: Iterable[str], progress: Progress = ignore_progress) -> dict[str, Tensor]:
        """Return the named tensors: floats as they are stored, quantised ones as the float32 that they stand for.

        Args:
            names: which tensors.
            progress: called with the number of bytes that have come, each time some have.

        Raises:
            ValueError: the file has no such tensor, or one of a type that cannot be turned into floats.
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
            with np.errstate(all="ignore"):  # what is not finite is refused with its name
                values = dequantize(
                    memory.numpy().reshape(prod(entry.shape[:-1]), -1), GGMLQuantizationType[entry.kind]
                )
        except NotImplementedError as error:
            raise ValueError(
                f"{name} in {self.source.name} is of type {entry.kind}, which cannot be turned into floats: choose "
                "another form of this model"
            ) from error
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(entry.shape)


def _sizes() -> dict[int, tuple[str, int, int]]:
    """Return name, values of a group and bytes of a group of each type by its number."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise ImportError("a GGUF file needs one more package: pip install 'monai-llmboost[gguf]'") from error
    return {int(kind): (kind.name, values, size) for kind, (values, size) in GGML_QUANT_SIZES.items()}


def _align(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


class _Header:
    """A file's beginning, read on in growing chunks; whatever it says of lengths is checked against the file's size."""

    def __init__(self, source: ByteSource) -> None:
        self.source, self.position = source, 0
        self._start, self._buffer, self._chunk = 0, b"", FIRST_CHUNK

    def take(self, length: int) -> bytes:
        begin = self.position - self._start
        if begin < 0 or begin + length > len(self._buffer):
            if self.position + length > min(self.source.size, HEADER_LIMIT):
                raise damaged_error(self.source.name, "it is cut short within its header")
            wanted = min(max(length, self._chunk), self.source.size - self.position)
            buffer = bytearray(wanted)
            self.source.read_into(self.position, memoryview(buffer))
            self._start, self._buffer, begin = self.position, bytes(buffer), 0
            self._chunk = min(2 * self._chunk, LARGEST_CHUNK)
        self.position += length
        return self._buffer[begin : begin + length]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, what: str) -> int:
        number = self.number("<Q")
        if number > LARGEST_COUNT:
            raise damaged_error(self.source.name, f"its header speaks of {number} {what}")
        return number

    def text(self) -> str:
        length = self.number("<Q")
        if length > LONGEST_NAME:
            raise damaged_error(self.source.name, f"its header has a name of {length} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise damaged_error(self.source.name, "its header has a name that is no text") from error

    def value(self, kind: int) -> Any:
        """Return one value of the metadata, ``None`` for one that is skipped: a vocabulary, a long text."""
        if kind == FLOAT32:  # the number that was written, 1e-05, not its neighbour 9.99999974738e-06
            return float(str(np.float32(self.number("<f"))))
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            length = self.number("<Q")
            if length > LONGEST_NAME:
                return self.skip(length)
            return self.take(length).decode("utf-8", errors="replace")
        if kind != LIST:
            raise damaged_error(self.source.name, f"its metadata have a value of type {kind}")
        inner, length = self.number("<I"), self.number("<Q")
        if inner in SCALARS:
            size = struct.calcsize(SCALARS[inner])
            if length > LONGEST_LIST:
                return self.skip(length * size)
            return list(struct.unpack(f"<{length}{SCALARS[inner][1]}", self.take(length * size)))
        if inner != TEXT or length > HEADER_LIMIT // 8:
            raise damaged_error(self.source.name, f"its metadata have a list of {length} values of type {inner}")
        for _ in range(length):
            self.skip(self.number("<Q"))
        return None

    def skip(self, length: int) -> None:
        self.position += length

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Return name, type, shape (slowest axis first) and place of one tensor."""
        name, axes = self.text(), self.number("<I")
        if not 1 <= axes <= MOST_AXES:
            raise damaged_error(self.source.name, f"its header gives {name} {axes} axes")
        shape = struct.unpack(f"<{axes}Q", self.take(8 * axes))[::-1]
        if not 0 < prod(shape) < 2**63:
            raise damaged_error(self.source.name, f"its header gives {name} the shape {shape}")
        return name, self.number("<I"), shape, self.number("<Q")
