# SPDX-License-Identifier: Apache-2.0
"""Inputs of a search: the files of folders, patterns and lists, and the names that scans get from their paths."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_llmboost.data.scans.lists import LIST_SUFFIXES, read_list
from monai_llmboost.data.scans.scan import SkippedFile
from monai_llmboost.data.scans.walk import expand_path, refuse_excluded, walk_folder


@dataclass(frozen=True)
class Names:
    """Names of the scans of one input.

    Args:
        root: folder from which paths are named.
        prefix: begins each name if there are several inputs.
    """

    root: Path
    prefix: str

    def __call__(self, path: Path) -> str:
        """Return the name of a scan at a path."""
        below = Path(os.path.relpath(path, self.root)).as_posix()
        if below == ".":
            return self.prefix or self.root.resolve().name
        return f"{self.prefix}/{below}" if self.prefix else below


@dataclass(frozen=True)
class Input:
    """One input: its files and their names."""

    given: str
    name: Names
    files: Iterable[Path | SkippedFile]


def open_inputs(several: Sequence[str | Path], follow_links: bool, excluded: set[Path]) -> Iterator[Input]:
    """Yield the inputs; single files together."""
    paths = [Path(given).expanduser() for given in several]
    singles = [path for path in paths if _is_file(path)]
    if singles:  # together, because they may be the files of one series
        root = Path(os.path.commonpath([path.parent.absolute() for path in singles]))
        yield Input(", ".join(map(str, singles[:3])), Names(root, ""), singles)
    prefixes: set[str] = set()
    for given, path in zip(several, paths):
        if _is_file(path):
            continue
        if path.is_dir():
            root, files = path, walk_folder(path, path, follow_links, excluded)
        elif path.suffix.lower() in LIST_SUFFIXES and path.is_file():
            root, files = _open_list(path)
        else:
            root, files = _open_pattern(path, follow_links, excluded)
        own_name = path.stem if path.is_file() else root.resolve().name
        prefix = make_unique(own_name, prefixes) if len(several) > 1 else ""
        yield Input(str(given), Names(root, prefix), files)


def _open_list(path: Path) -> tuple[Path, Iterator[Path | SkippedFile]]:
    """Return the root folder and the files of a list."""
    entries = read_list(path)
    root = path.parent.absolute()
    if not all(entry.is_relative_to(root) for entry in entries):
        root = Path(os.path.commonpath([entry.parent for entry in entries]))
    return root, (file for entry in entries for file in expand_path(entry, entry, True, set()))


def _open_pattern(path: Path, follow_links: bool, excluded: set[Path]) -> tuple[Path, Iterator[Path | SkippedFile]]:
    """Return the root folder and the files of a glob pattern."""
    known = 0  # leading parts that are folders are not patterns, even with brackets
    while known < len(path.parts) and Path(*path.parts[: known + 1]).is_dir():
        known += 1
    root, pattern = Path(*path.parts[:known]), "/".join(path.parts[known:])
    refuse_excluded(root, excluded)
    matches = sorted(root.glob(pattern))
    return root, (file for match in matches for file in expand_path(match, root, follow_links, excluded))


def _is_file(path: Path) -> bool:
    """Return whether a path is one file (or a pipe or device), and not a folder, a list or a pattern."""
    return path.exists() and not path.is_dir() and not (path.suffix.lower() in LIST_SUFFIXES and path.is_file())


def make_unique(name: str, taken: set[str]) -> str:
    """Return a name that is not taken yet, and take it."""
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}-{count}"
    taken.add(unique)
    return unique
