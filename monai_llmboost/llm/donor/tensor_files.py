# SPDX-License-Identifier: Apache-2.0
"""Named tensors out of one weight file, reading no other byte of it; nothing in the file is ever executed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

HEADER_LIMIT = 100_000_000  # bytes, which the safetensors library sets too
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
    """Tell nobody that ``count`` more bytes have come."""


def damaged_error(name: str, why: str) -> ValueError:
    """The one sentence for a file that is not what it should be."""
    return ValueError(f"cannot read {name}: {why}. Download it again")


class ByteSource(Protocol):
    """A file whose bytes can be had from any position: its name, its size in bytes, and a way to read."""

    name: str
    size: int

    def read_into(self, offset: int, buffer: memoryview, progress: Progress = ignore_progress) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on, telling ``progress`` how many came each time."""


class LocalBytes:
    """A file on disk, read at positions rather than mapped: what is read is what was asked for, page by page or not."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.size = path, path.name, path.stat().st_size

    def read_into(self, offset: int, buffer: memoryview, progress: Progress = ignore_progress) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on; ValueError if the file ends before."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < len(buffer):  # the system hands out 2 GiB at most at a time
                count = file.readinto(buffer[done:])
                if not count:
                    raise damaged_error(self.name, f"it is cut short, at {offset + done} bytes")
                done += count
                progress(count)


class Entry(NamedTuple):
    """Where one tensor lies: dtype as safetensors spells it, shape, and bytes ``begin`` to ``end`` of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """The tensors of one safetensors file; only its header is read here, and checked before any of it is used.

    8 bytes with the header's length n (little-endian), n bytes of JSON ``{name: {dtype, shape, data_offsets}}``, then
    the tensors' bytes without a gap to the end of the file.

    Args:
        source: the file's bytes.

    Raises:
        ValueError: no safetensors file, cut short, or with a header that contradicts itself.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        header, start = _read_header(source)
        try:
            entries = {name: _entry(value, start) for name, value in header.items() if name != "__metadata__"}
        except (KeyError, TypeError, ValueError) as error:
            raise damaged_error(source.name, f"its header describes a tensor wrongly ({str(error)[:200]})") from error
        self.entries = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
        position = start
        for name, entry in self.entries.items():
            if entry.begin != position:
                raise damaged_error(source.name, f"its header leaves a gap or an overlap before {name}")
            position = entry.end
        if position > source.size:
            raise damaged_error(source.name, f"it is cut short, with {source.size} bytes of {position}")
        if position < source.size:
            raise damaged_error(source.name, f"it has {source.size} bytes, its header speaks of {position}")

    def names(self) -> list[str]:
        """Every tensor's name, in the order in which they lie in the file."""
        return list(self.entries)

    def num_bytes(self, names: Iterable[str]) -> int:
        """Size in bytes of those of the named tensors that the file has."""
        wanted = set(names)
        return sum(entry.end - entry.begin for name, entry in self.entries.items() if name in wanted)

    def read(self, names: Iterable[str], progress: Progress = ignore_progress) -> dict[str, Tensor]:
        """The named tensors, by one read for each run of neighbours; neighbours share one piece of memory.

        Args:
            names: which tensors.
            progress: is told how many bytes have come, each time some have.

        Raises:
            ValueError: the file has no such tensor, or of a dtype that torch does not have.
        """
        wanted = list(dict.fromkeys(names))
        check_present(self.source.name, wanted, self.entries)
        for name in wanted:
            if self.entries[name].dtype not in DTYPES:
                raise ValueError(
                    f"expected one of the dtypes {', '.join(DTYPES)} for {name} in {self.source.name}, "
                    f"got {self.entries[name].dtype!r}: choose another form of this model"
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
        """The wanted names in runs that lie side by side, each tensor aligned to its dtype from the run's begin on."""
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
    """Raise ValueError if not all wanted names are found."""
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise ValueError(f"expected {missing} in {file}, found none: index and weights are not of one model")


def _read_header(source: ByteSource) -> tuple[dict[str, Any], int]:
    """The header, and the position of the first byte behind it."""
    if source.size < 8:
        raise damaged_error(source.name, f"it is cut short, with {source.size} bytes in all")
    first = bytearray(8)
    source.read_into(0, memoryview(first))
    if first == b"version ":
        raise damaged_error(source.name, "it is a pointer of Git LFS in the place of the weights")
    length = int.from_bytes(first, "little")
    if length > HEADER_LIMIT:
        raise damaged_error(source.name, f"its header would have {length} bytes, at most {HEADER_LIMIT} are allowed")
    if 8 + length > source.size:
        raise damaged_error(source.name, f"it is cut short within its header, with {source.size} bytes of {8 + length}")
    raw = bytearray(length)
    source.read_into(8, memoryview(raw))
    try:
        header = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged_error(source.name, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise damaged_error(source.name, f"its header is a {type(header).__name__}, not an object")
    return header, 8 + length


def _entry(value: Any, start: int) -> Entry:
    """One tensor's place, or what is wrong with it as KeyError, TypeError or ValueError."""
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError(f"dtype {dtype!r} and shape {shape!r}")
    if any(type(number) is not int or not 0 <= number < 2**63 for number in (*shape, begin, end)) or begin > end:
        raise ValueError(f"shape {shape} at {begin!r} to {end!r}")
    # Beyond 64 axes or 2**63 elements torch itself gives up, even where another axis is empty.
    if len(shape) > 64 or prod(max(length, 1) for length in shape) >= 2**63:
        raise ValueError(f"a shape of {len(shape)} axes that no tensor has")
    if dtype in DTYPES and end - begin != prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{end - begin} bytes for {dtype} of shape {shape}")
    return Entry(dtype, tuple(shape), start + begin, start + end)
