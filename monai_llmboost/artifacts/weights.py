# SPDX-License-Identifier: Apache-2.0
"""Read weight files written by ``torch.save``; nothing in them is used before its checksum is compared.

Such a file is a zip archive: ``data.pkl`` describes the tensors, each ``data/N`` holds the bytes of one storage, and a
directory at the end holds the CRC-32 of every member. torch itself never compares them. Here they are compared, and the
archive must have the form that torch writes: uncompressed members without gaps from the first byte to the directory,
each with the same name in its header and in the directory. So every reader finds the same bytes under the same name.

A CRC finds damage, not intent: other weights come with other checksums.
"""

from __future__ import annotations

import errno
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

ZIP, SAFETENSORS, LFS = b"PK\x03\x04", b"{", b"version https://git-lfs"
BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that torch's former format begins with
END_OF_ARCHIVE, END_SIZE = b"PK\x05\x06", 22
LOCAL_HEADER = struct.Struct("<4s22x2H")  # its signature, and the lengths of the name and the padding after it
LONGEST_DESCRIPTOR = 24  # bytes that may follow a member: its checksum and sizes again
TORCH_FLAGS = 0x0808  # the sizes follow the member; its name is UTF-8
IS_FOLDER = 0x10  # of such a member torch reads nothing, and leaves the memory uninitialised
CHUNK = 1 << 20
ONLY_WEIGHTS = "only tensors, numbers and text are read"


class Unfit(ValueError):
    """The reason why a file is not read; ``advice`` says what to do if downloading it again does not help."""

    def __init__(self, why: str, advice: str = "") -> None:
        super().__init__(why)
        self.advice = advice


class Member(NamedTuple):
    """Position of a member of an archive in the file, and its CRC-32."""

    begin: int
    size: int
    crc: int


def load_weights(path: str | Path, advice: str = "Copy it again") -> Any:
    """Load what ``torch.save`` wrote, on the CPU, after comparing all checksums.

    Args:
        path: the file.
        advice: what to do about a damaged file.

    Raises:
        ValueError: the file is damaged, of another format or of torch before 1.6, or holds other objects than tensors,
            numbers and text.
        OSError: the file cannot be read.
    """
    with _in_one_sentence(str(path), advice), Path(path).open("rb") as file:
        for name, member in _members(file).items():
            _compare(name, member, _crc_of(file, member))
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


class TensorArchive:
    """Named tensors in a file of ``torch.save``, such as ``pytorch_model.bin``; the file is mapped, not read.

    The checksum of the pickle is compared at once, that of a storage before its first tensor is returned; other
    storages are not read.

    Args:
        path: the file.
        advice: what to do about a damaged file.

    Raises:
        ValueError: as :func:`load_weights`, and if the file holds anything but named tensors.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, advice: str = "Download it again") -> None:
        self._name, self._advice = path.name, advice
        with _in_one_sentence(self._name, advice), path.open("rb") as file:
            members = _members(file)
            for name, member in members.items():
                if not name.startswith("data/"):
                    _compare(name, member, _crc_of(file, member))
            if (order := members.get("byteorder")) and _bytes_of(file, order) != b"little":
                raise Unfit("its numbers are big-endian", _convert(self._name))
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
        check_named(content, self._name)
        if odd := [name for name, tensor in content.items() if tensor.layout != torch.strided or tensor.is_meta]:
            raise ValueError(
                f"expected tensors with all their numbers in {self._name}, {odd[0]} is sparse or without any"
            )
        self._tensors = content
        self._places = _in_memory([member for name, member in members.items() if name.startswith("data/")], content)
        self._compared: set[int] = set()

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._tensors)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return contiguous copies of the named tensors; KeyError for an unknown name.

        Raises:
            ValueError: a checksum does not match.
        """
        wanted = {name: self._tensors[name].detach() for name in names}
        with _in_one_sentence(self._name, self._advice):
            return {name: self._copy(name, tensor) for name, tensor in wanted.items()}

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if storage.nbytes() and address not in self._compared:
            content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data  # type: ignore[call-overload]
            member = self._places.get(address)
            if member is None or member.size != storage.nbytes():
                raise Unfit(f"{name} does not lie where its directory says")
            _compare(name, member, zlib.crc32(content))
            self._compared.add(address)
        return tensor.clone(memory_format=torch.contiguous_format)


def check_named(content: Any, file: str) -> None:
    """Raise ValueError unless the content of a file is named tensors and nothing else."""
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise ValueError(f"expected tensors by name in {file}, got something else: give the model's weight file")


def _in_memory(storages: list[Member], tensors: dict[str, Tensor]) -> dict[int, Member]:
    """Return the storages of a mapped file by their addresses in memory: the first has the lowest address."""
    addresses = [tensor.data_ptr() for tensor in (t.untyped_storage() for t in tensors.values()) if tensor.nbytes()]
    filled = [member for member in storages if member.size]
    if not addresses or not filled:
        return {}
    start = min(addresses) - min(filled).begin
    return {start + member.begin: member for member in filled}


@contextmanager
def _in_one_sentence(name: str, advice: str) -> Iterator[None]:
    """Turn any error of reading a file into one sentence: torch's message says how to load it unchecked."""
    try:
        yield
    except MemoryError:
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: a seek to a place before the file
            raise
        raise ValueError(f"cannot read {name}: its directory is damaged. {advice}") from error
    except Unfit as error:
        raise ValueError(f"cannot read {name}: {error}. {error.advice or advice}") from error
    except pickle.UnpicklingError as error:  # the checksums are right, so it was written so
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it holds {found[1]}" if found else "it holds other things"
        raise ValueError(f"cannot read {name}: {what}, and {ONLY_WEIGHTS}. Give a file of weights alone") from error
    except Exception as error:  # torch refuses an archive with nearly any kind of error
        raise ValueError(f"cannot read {name}: torch refuses it ({_line(error)}). {advice}") from error


def _line(error: Exception) -> str:
    return re.split(r"\n|\. ", str(error))[0].strip() or type(error).__name__


def _damaged(name: str) -> Unfit:
    return Unfit(f"it is damaged, its checksum of {name} does not match")


def _convert(name: str) -> str:
    """Return a command that writes a file again in torch's present format, without running anything in it."""
    load = f"torch.load('{name}', map_location='cpu', weights_only=True)"
    return f"Convert it: python -c \"import torch; torch.save({load}, '{name}')\""


def _members(file: BinaryIO) -> dict[str, Member]:
    """Return the members of an archive by name, without the folder that torch puts all of them in.

    Raises:
        Unfit: the file is not such an archive, or contradicts itself.
    """
    _check_kind(file)
    size = file.seek(0, 2)
    file.seek(max(size - END_SIZE, 0))
    if file.read(4) != END_OF_ARCHIVE:
        raise Unfit("it is cut short, or something was added to its end")
    try:
        with zipfile.ZipFile(file) as archive:
            entries, directory = archive.infolist(), archive.start_dir
    except OSError:
        raise
    except Exception as error:  # a damaged directory raises nearly any kind of error
        raise Unfit(f"its directory is damaged ({_line(error)})") from error
    folder = entries[0].filename.partition("/")[0] + "/" if entries else ""
    members: dict[str, Member] = {}
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name = entry.orig_filename
        plain = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if not plain or entry.flag_bits & ~TORCH_FLAGS or entry.external_attr & IS_FOLDER:
            raise Unfit(f"its directory describes {name!r} as torch never does")
        begin = _begin(file, entry)
        if not 0 <= entry.header_offset - end <= (LONGEST_DESCRIPTOR if members else 0):
            raise Unfit(f"there is a gap or an overlap before {name!r}")
        end = begin + entry.file_size
        short = name.removeprefix(folder).lower()  # torch ignores the case of letters
        if short in members or not name.startswith(folder):
            raise Unfit(f"{name!r} is there twice, or not where the others are")
        members[short] = Member(begin, entry.file_size, entry.CRC)
    if not 0 <= directory - end <= LONGEST_DESCRIPTOR:
        raise Unfit("there is a gap or an overlap before its directory")
    _check_members(members)
    return members


def _check_kind(file: BinaryIO) -> None:
    """Raise Unfit, with the kind of the file, unless it begins as torch's files do."""
    file.seek(0)
    head = file.read(512)
    if head.startswith(ZIP):
        return
    if not head:
        raise Unfit("it is empty")
    if head.startswith(LFS):
        raise Unfit("it is a Git LFS pointer instead of the weights", "Run `git lfs pull`, or download it")
    if BEFORE_1_6 in head[:32]:
        raise Unfit("it is of torch before 1.6, whose format has no checksum", _convert(Path(file.name).name))
    if head[8:9] == SAFETENSORS:
        raise Unfit("it is a safetensors file under another name", "Let its name end in .safetensors")
    if head.lstrip()[:1] == b"<":
        raise Unfit("it is a web page in place of the weights")
    raise Unfit("it is no file of torch.save")


def _begin(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Return the position of a member's bytes, by the header before them, whose name must be that of the directory."""
    file.seek(entry.header_offset)
    head = file.read(LOCAL_HEADER.size)
    signature, length, padding = LOCAL_HEADER.unpack(head) if len(head) == LOCAL_HEADER.size else (b"", 0, 0)
    if signature != ZIP or file.read(length) != entry.orig_filename.encode():
        raise Unfit(f"its directory and the header of {entry.orig_filename!r} contradict each other")
    return entry.header_offset + LOCAL_HEADER.size + length + padding


def _check_members(members: dict[str, Member]) -> None:
    """Raise Unfit unless these are the members of a torch.save file, in order and with checksums."""
    if "constants.pkl" in members:
        raise Unfit(f"it is a TorchScript program, and {ONLY_WEIGHTS}", "Save the state_dict of what it holds")
    if "data.pkl" not in members:
        raise Unfit("it is a zip archive, but not of torch.save")
    numbers = [name.removeprefix("data/") for name in members if name.startswith("data/")]
    orders = (sorted(numbers), sorted(numbers, key=lambda number: (len(number), number)))  # of old and new torch
    if numbers not in orders:
        raise Unfit("its storages lie in another order than torch writes them")
    if not any(member.crc for member in members.values()):
        raise Unfit("it was saved without checksums", "Save it with torch.serialization.set_crc32_options(True)")


def _crc_of(file: BinaryIO, member: Member) -> int:
    crc, left = 0, member.size
    file.seek(member.begin)
    while left > 0 and (chunk := file.read(min(CHUNK, left))):
        crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    return crc


def _bytes_of(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.begin)
    return file.read(member.size)


def _compare(name: str, member: Member, crc: int) -> None:
    if crc != member.crc:
        raise _damaged(name)
