# SPDX-License-Identifier: Apache-2.0
"""The files of a model in one folder, and how each kind of file is read."""

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

# Files of which single tensors can be read; others are read whole.
RANGED: dict[str, type[SafetensorsFile] | type[GgufFile]] = {".safetensors": SafetensorsFile, ".gguf": GgufFile}
LICENCES = re.compile(r"(LICEN[CS]E|COPYING)([-_.][\w.-]+)?", re.IGNORECASE)


class LocalFolder:
    """A model's files in one folder.

    Args:
        path: the folder.
    """

    revision = ""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.donor = self.path.resolve().name

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Content of a JSON file, ``None`` if there is no such file; ValueError if it is no JSON object."""
        return read_json(self._path(name)) if self.has(name) else None

    def find_licence(self) -> str:
        """The licence that the model's card names, such as ``apache-2.0``, else its licence file; empty if unknown."""
        return find_licence(self.list_files, lambda name: self._path(name) if self.has(name) else None)

    def list_files(self) -> list[str] | None:
        """Return the names of all files."""
        return sorted(path.name for path in self.path.iterdir() if path.is_file())

    def check_name(self, name: str) -> None:
        """Raise ValueError if a file's name could lead out of the folder."""
        check_file_name(name, self.donor)

    def path_of(self, name: str) -> str:
        """Return what to give as a model for one of its files."""
        return str(self.path / name)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._path(name).is_file()

    def open_gguf(self, name: str) -> GgufFile:
        """Return a GGUF file for its header; raises as :meth:`read_tensors` does."""
        return GgufFile(LocalBytes(self._weights(name)))

    def list_tensors(self, name: str) -> list[str]:
        """Names of all tensors of a weight file; raises as :meth:`read_tensors` does."""
        return list_tensors(self._weights(name))

    def read_tensors(self, name: str, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors of a weight file; of a ``.safetensors`` or ``.gguf`` only their bytes are read.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or lacks one of the tensors.
        """
        return read_tensors(self._weights(name), names)

    def _path(self, name: str) -> Path:
        return self.path / check_file_name(name, self.donor)

    def _weights(self, name: str) -> Path:
        if not self.has(name):
            raise FileNotFoundError(f"expected the weight file {name} next to config.json: download it too")
        return self._path(name)


def check_file_name(name: str, donor: str) -> str:
    """Return a file's name; ValueError if it could lead out of the model's folder."""
    if name in ("", ".", "..") or re.search(r"[/\\:\0]", name):
        raise ValueError(f"expected plain file names in {donor}, got {name!r}: do not trust this model")
    return name


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object out of a file; ValueError if it is none."""
    check_digest(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON in {path.name}, got something else ({error}): download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {path.name}, got a {type(content).__name__}: download it again")
    return content


def find_licence(names: Callable[[], list[str] | None], find: Callable[[str], Path | None]) -> str:
    """Return what the card among a model's files says of its licence, else what its licence file is."""
    if (path := find("README.md")) is not None and (said := read_card_licence(path)):
        return said
    for name in names() or []:
        if LICENCES.fullmatch(name) and (path := find(name)) is not None and (said := identify_licence(path)):
            return said
    return ""


def list_tensors(path: Path) -> list[str]:
    """Return the names of all tensors of a weight file."""
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
