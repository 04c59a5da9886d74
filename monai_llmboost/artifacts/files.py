# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, earlier files that are renamed and not overwritten, and cells of CSV files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger("monai_llmboost")
# The beginning of a cell that a spreadsheet takes for a formula, or of one that :func:`safe_row` changed.
FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def set_aside(*paths: Path) -> None:
    """Rename files to the next free ``name.1.suffix``, ``name.2.suffix`` ..., all with the same number.

    Nothing is overwritten; missing files are skipped.
    """
    there = [path for path in paths if path.exists()]
    number = 1
    while any(_numbered(path, number).exists() for path in paths):
        number += 1
    for path in there:
        kept = _numbered(path, number)
        path.rename(kept)
        logger.info(f"{path} of an earlier run is now {kept.name}")


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


@contextmanager
def atomic_path(path: Path, aside: bool = False, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and move its file to ``path`` when the block ends without an error.

    Args:
        path: the file to write.
        aside: rename an earlier file with :func:`set_aside` instead of replacing it.
        overwrite: replace an earlier file.

    Raises:
        FileExistsError: there is an earlier file, and ``overwrite`` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"part-{os.getpid()}-{path.name}")
    try:
        yield temporary
        if aside:
            set_aside(path)
        if overwrite:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # fails where another process has just written it
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_text(path: Path, aside: bool = True) -> Iterator[TextIO]:
    """Yield a text file that is moved to ``path`` when the block ends without an error.

    Args:
        path: the file to write.
        aside: rename an earlier file with :func:`set_aside`; otherwise it is replaced.
    """
    with (
        atomic_path(path, aside) as temporary,
        # A file name that is not UTF-8 is written with escapes, rather than failing the whole table.
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        yield file


def safe_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a CSV file with an apostrophe before each text that a spreadsheet would take for a formula.

    :func:`plain_cell` removes it. A carriage return, which the csv module leaves unquoted, becomes a space.
    """
    cells = {name: value.replace("\r", " ") if isinstance(value, str) else value for name, value in row.items()}
    return {name: f"'{value}" if _is_formula(value) else value for name, value in cells.items()}


def plain_cell(text: str) -> str:
    """Return the text of a cell that :func:`safe_row` wrote."""
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def _is_formula(value: Any) -> bool:
    if not isinstance(value, str) or not FORMULA.match(value):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False  # a number below zero
