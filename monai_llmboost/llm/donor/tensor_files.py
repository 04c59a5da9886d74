# SPDX-License-Identifier: Apache-2.0
"""Read named tensors from one weight file, and no other bytes of it; nothing in the file is executed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
Progress = Callable[[int], object]


def ignore_progress(count: int) -> None:
    """Report no progress."""


def damaged_error(name: str, why: str) -> ValueError:
    """Return the error for a damaged file."""
    return ValueError(f"cannot read {name}: {why}. Download it again")


class ByteSource(Protocol):
    """A file with random access: its name, its size in bytes, and a reader."""

    name: str
    size: int

    def read_into(self, offset: int, buffer: memoryview, progress: Progress = ignore_progress) -> None:
        """Fill ``buffer`` with the bytes from ``offset``, and call ``progress`` with the number of each read."""


class LocalBytes:
    """A file on disk, read at given positions instead of memory-mapped, so that only the requested bytes are read."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.size = path, path.name, path.stat().st_size

    def read_into(self, offset: int, buffer: memoryview, progress: Progress = ignore_progress) -> None:
        """Fill ``buffer`` with the bytes from ``offset``; raise ValueError if the file ends before."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < len(buffer):  # the system reads at most 2 GiB at a time
                count = file.readinto(buffer[done:])
                if not count:
                    raise damaged_error(self.name, f"it is truncated at {offset + done} bytes")
                done += count
                progress(count)


class Entry(NamedTuple):
    """Location of one tensor: safetensors dtype, shape, and bytes ``begin`` to ``end`` of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """Tensors of one safetensors file; the constructor reads and checks only its header.

    Format: 8 bytes with the header's length n (little-endian), n bytes of JSON ``{name: {dtype, shape,
    data_offsets}}``, then the tensors' bytes without gaps to the end of the file.

    Args:
        source: the file's bytes.

    Raises:
        ValueError: not a safetensors file, truncated, or with an inconsistent header.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        header, start = _read_header(source)
        try:
            entries = {name: _parse_entry(value, start) for name, value in header.items() if name != "__metadata__"}
        except (KeyError, TypeError, ValueError) as error:
            raise damaged_error(source.name, f"its header has an invalid tensor ({str(error)[:200]})") from error
        self.entries = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
        position = start
        for name, entry in self.entries.items():
            if entry.begin != position:
                raise damaged_error(source.name, f"its header has a gap or an overlap before {name}")
            position = entry.end
        if position > source.size:
            raise damaged_error(source.name, f"it is truncated, with {source.size} bytes of {position}")
        if position < source.size:
            raise damaged_error(source.name, f"it has {source.size} bytes, but {position} by its header")

    def names(self) -> list[str]:
        """Return the names of all tensors, in file order."""
        return list(self.entries)

    def num_bytes(self, names: Iterable[str]) -> int:
        """Return the total size in bytes of the named tensors that the file has."""
        wanted = set(names)
        return sum(entry.end - entry.begin for name, entry in self.entries.items() if name in wanted)

    def read(self, names: Iterable[str], progress: Progress = ignore_progress) -> dict[str, Tensor]:
        """Return the named tensors; adjacent tensors are read together and share memory.

        Args:
            names: names of the tensors.
            progress: called with the number of bytes of each read.

        Raises:
            ValueError: a tensor is missing, or has a dtype that torch does not have.
        """
        wanted = list(dict.fromkeys(names))
        check_present(self.source.name, wanted, self.entries)
        for name in wanted:
            if self.entries[name].dtype not in DTYPES:
                raise ValueError(
                    f"{name} in {self.source.name} has an unsupported dtype {self.entries[name].dtype!r}: choose a "
                    f"form of this model in one of {', '.join(DTYPES)}"
                )
        tensors = {}
        for run in self._runs(set(wanted)):
            begin, end = self.entries[run[0]].begin, self.entries[run[-1]].end
            memory = torch.empty(end - begin, dtype=torch.uint8)
            if end > begin:
                self.source.read_into(begin, memory.numpy().data, progress)
            for name in run:
                entry = self.entries[name]
                piece = memory[entry.begin - begin : entry.end - begin]
                tensors[name] = piece.view(DTYPES[entry.dtype]).view(entry.shape)
        return {name: tensors[name] for name in wanted}

    def _runs(self, wanted: set[str]) -> Iterator[list[str]]:
        """Yield the wanted names in runs of adjacent tensors, each aligned to its dtype relative to the run's start."""
        run: list[str] = []
        for name, entry in self.entries.items():
            if name not in wanted:
                continue
            if run:
                aligned = (entry.begin - self.entries[run[0]].begin) % DTYPES[entry.dtype].itemsize == 0
                if entry.begin != self.entries[run[-1]].end or not aligned:
                    yield run
                    run = []
            run.append(name)
        if run:
            yield run


def check_present(file: str, wanted: Iterable[str], found: Iterable[str]) -> None:
    """Check that a file has all wanted tensors; raise ValueError otherwise."""
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise ValueError(
            f"{file} lacks the tensors {missing}: index and weights belong to different models, download them again"
        )


def _read_header(source: ByteSource) -> tuple[dict[str, Any], int]:
    """Return the header, and the position of the first byte after it."""
    if source.size < 8:
        raise damaged_error(source.name, f"it is truncated, with {source.size} bytes in all")
    first = bytearray(8)
    source.read_into(0, memoryview(first))
    if first == b"version ":
        raise damaged_error(source.name, "it is a Git LFS pointer instead of the weights")
    length = int.from_bytes(first, "little")
    if length > HEADER_LIMIT:
        raise damaged_error(source.name, f"its header has {length} bytes, more than the limit of {HEADER_LIMIT}")
    if 8 + length > source.size:
        raise damaged_error(source.name, f"it is truncated within its header, with {source.size} bytes of {8 + length}")
    raw = bytearray(length)
    source.read_into(8, memoryview(raw))
    try:
        header = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged_error(source.name, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise damaged_error(source.name, f"its header is a {type(header).__name__}, not an object")
    return header, 8 + length


def _parse_entry(value: Any, start: int) -> Entry:
    """Return the location of one tensor; raise KeyError, TypeError or ValueError if its description is invalid."""
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError(f"dtype {dtype!r} and shape {shape!r}")
    if any(type(number) is not int or not 0 <= number < 2**63 for number in (*shape, begin, end)) or begin > end:
        raise ValueError(f"shape {shape} at {begin!r} to {end!r}")
    # torch fails beyond 64 axes or 2**63 elements, even if another axis is empty.
    if len(shape) > 64 or prod(max(length, 1) for length in shape) >= 2**63:
        raise ValueError(f"a shape of {len(shape)} axes that no tensor can have")
    if dtype in DTYPES and end - begin != prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{end - begin} bytes for {dtype} of shape {shape}")
    return Entry(dtype, tuple(shape), start + begin, start + end)
