# SPDX-License-Identifier: Apache-2.0
"""Digests of the source files that a config may use outside installed packages."""

from __future__ import annotations

import ast
import re
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monai_llmboost.artifacts.digests import file_digest

# Dotted names in a text of a config (a _target_, an expression), modules that it imports, and those it names as text.
DOTTED = re.compile(r"(?<![\w.'\"])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
IMPORTED = re.compile(r"(?:\b(?:import|from) +|, *)([A-Za-z_][\w.]*)")
BY_NAME = re.compile(r"(?:__import__|import_module)\(\s*['\"]([\w.]+)")
NAMED = (DOTTED, IMPORTED, BY_NAME)
SCRIPTS = "scripts"  # folder of a bundle with its own code
OWN_PACKAGE = Path(__file__).parents[1]


def code_digests(config: Any, folder: str | Path | None = None) -> dict[str, str]:
    """Return digests of the source files that a config may use outside installed packages.

    These are all files in the ``scripts`` of the bundle, and the modules that the config or these files name, each with
    its whole package.

    Args:
        config: a merged config.
        folder: the bundle's folder.

    Returns:
        Digests by file name relative to the folder in which Python found it, such as ``"scripts/net.py"``.
    """
    names = {found for text in _texts(config) for pattern in NAMED for found in pattern.findall(text)}
    files: dict[Path, str] = {}
    own = ""
    if folder is not None and (scripts := Path(folder).absolute() / SCRIPTS).is_dir():
        files.update((file, str(file.relative_to(scripts.parent))) for file in _files(scripts, "*"))
        own = SCRIPTS  # Python may still find the scripts of another bundle that ran in this process
    todo = [*names, *(name for file in files for name in _imported(file))]
    known: set[str] = set()
    while todo:
        name = todo.pop()
        if name in known or name.partition(".")[0] == own:
            continue
        known.add(name)
        for file, place in _sources(name):
            if file not in files:
                files[file] = str(file.relative_to(place))
                todo += _imported(file)
    return {name: file_digest(file) for file, name in sorted(files.items(), key=lambda item: item[1])}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)


def _files(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder, without hidden files and caches."""
    found = (file for file in folder.rglob(pattern) if file.is_file())
    parts = ((file, file.relative_to(folder).parts) for file in found)
    return sorted(file for file, names in parts if not any(name.startswith((".", "__pycache__")) for name in names))


def _sources(name: str) -> Iterator[tuple[Path, Path]]:
    """Yield the source files of a module or its package, each with the folder where Python found it.

    Installed packages have none here.
    """
    for place in (place.absolute() for place in _places(name)):
        if _is_installed(place):
            continue
        for file in [place] if place.is_file() else _files(place, "*.py"):
            yield file, place.parent


def _places(name: str) -> list[Path]:
    """Return the file or the folders of a module or its package."""
    first, *rest = name.split(".")
    if first in sys.builtin_module_names:
        return []
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):  # a module without a spec, such as __main__
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.origin and Path(spec.origin).is_file() else []
    places = list(map(Path, spec.submodule_search_locations))
    if spec.origin is None:  # a folder without __init__.py, which may contain anything else as well
        parts = [rest[0], f"{rest[0]}.py"] if rest else []
        places = [place / part for place in places for part in parts if (place / part).exists()]
    return places


def _imported(file: Path) -> Iterable[str]:
    """Return the names of the modules that a source file imports, also by name at run time."""
    if file.suffix != ".py":
        return []
    text = file.read_bytes()
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        return []  # Python reports it when the module is imported
    named = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    named += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return named + BY_NAME.findall(text.decode(errors="replace"))


def _is_installed(path: Path) -> bool:
    return path == OWN_PACKAGE or any(path.is_relative_to(place) for place in _installed_places())


@lru_cache(maxsize=1)
def _installed_places() -> tuple[Path, ...]:
    named = sysconfig.get_paths()
    places = [named[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(Path(place).absolute() for place in (*places, *site.getsitepackages(), site.getusersitepackages()))
