# SPDX-License-Identifier: Apache-2.0
"""Files of a model in a local folder, and a reader for each kind of file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from monai_llmboost.artifacts.weights import TensorArchive
from monai_llmboost.llm.donor.digests import check_digest
from monai_llmboost.llm.donor.gguf.file import GgufFile
from monai_llmboost.llm.donor.licences import identify_licence, read_card_licence
from monai_llmboost.llm.donor.tensor_files import LocalBytes, SafetensorsFile, check_present

# File formats from which single tensors can be read; others are read whole.
RANGED: dict[str, type[SafetensorsFile] | type[GgufFile]] = {".safetensors": SafetensorsFile, ".gguf": GgufFile}
LICENCES = re.compile(r"(LICEN[CS]E|COPYING)([-_.][\w.-]+)?", re.IGNORECASE)


class LocalFolder:
    """Files of a model in a local folder.

    Args:
        path: the folder.
    """

    revision = ""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.donor = self.path.resolve().name

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object in a file, ``None`` if the file is missing; raise ValueError for other content."""
        return read_json(self._path(name)) if self.has(name) else None

    def find_licence(self) -> str:
        """Return the licence (such as ``apache-2.0``) from the model card or a licence file; empty if unknown."""
        return find_licence(self.list_files, lambda name: self._path(name) if self.has(name) else None)

    def list_files(self) -> list[str] | None:
        """Return the names of all files."""
        return sorted(path.name for path in self.path.iterdir() if path.is_file())

    def check_name(self, name: str) -> None:
        """Raise ValueError if a file name could point outside the folder."""
        check_file_name(name, self.donor)

    def path_of(self, name: str) -> str:
        """Return the ``model`` argument that selects one of its files."""
        return str(self.path / name)

    def has(self, name: str) -> bool:
        """Return whether the file exists."""
        return self._path(name).is_file()

    def open_gguf(self, name: str) -> GgufFile:
        """Open a GGUF file and read its header; raises as :meth:`read_tensors` does."""
        return GgufFile(LocalBytes(self._weights(name)))

    def list_tensors(self, name: str) -> list[str]:
        """Return the names of all tensors in a weight file; raises as :meth:`read_tensors` does."""
        return list_tensors(self._weights(name))

    def read_tensors(self, name: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors of a weight file; from ``.safetensors`` and ``.gguf`` only their bytes are read.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is damaged or lacks a tensor.
        """
        return read_tensors(self._weights(name), names)

    def _path(self, name: str) -> Path:
        return self.path / check_file_name(name, self.donor)

    def _weights(self, name: str) -> Path:
        if not self.has(name):
            raise FileNotFoundError(f"{self.donor} lacks the weight file {name}: download it too")
        return self._path(name)


def check_file_name(name: str, donor: str) -> str:
    """Return a file name; raise ValueError if it could point outside the model's folder."""
    if name in ("", ".", "..") or re.search(r"[/\\:\0]", name):
        raise ValueError(
            f"{donor} names a file {name!r}, which is a path and not a plain file name: do not trust this model"
        )
    return name


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raise ValueError if it is not one."""
    check_digest(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}, not a JSON object: download it again")
    return content


def find_licence(names: Callable[[], list[str] | None], find: Callable[[str], Path | None]) -> str:
    """Return the licence from the model card, else from a licence file; empty if unknown."""
    if (path := find("README.md")) is not None and (licence := read_card_licence(path)):
        return licence
    for name in names() or []:
        if LICENCES.fullmatch(name) and (path := find(name)) is not None and (licence := identify_licence(path)):
            return licence
    return ""


def list_tensors(path: Path) -> list[str]:
    """Return the names of all tensors in a weight file."""
    if path.suffix in RANGED:
        return RANGED[path.suffix](LocalBytes(path)).names()
    return TensorArchive(path).names()


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the named tensors of a weight file."""
    if path.suffix in RANGED:
        check_digest(path)
        return RANGED[path.suffix](LocalBytes(path)).read(names)
    archive, wanted = TensorArchive(path), list(names)
    check_present(path.name, wanted, archive.names())
    return archive.read(wanted)
