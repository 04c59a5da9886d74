# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and in the place of an earlier one only where that is asked for."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger("monai_llmboost")
# What makes a spreadsheet take a cell for a formula, and what a cell that was kept from it begins with.
FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def set_aside(*paths: Path) -> None:
    """Rename files to the next free ``name.1.suffix``, ``name.2.suffix`` ..., those of one run with one number.

    Nothing is overwritten; a file that is not there is passed over.
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
def placed_whole(path: Path, aside: bool = False, overwrite: bool = True) -> Iterator[Path]:
    """Another path in the same folder to write to, whose file takes its place when it is whole, or not at all.

    An earlier file is replaced, or, with ``aside``, set aside, or, without ``overwrite``, a FileExistsError.
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
def written_whole(path: Path, aside: bool = True) -> Iterator[TextIO]:
    """A text file that appears under its name when all of it is written, or not at all.

    An earlier one is set aside, or, with ``aside=False``, replaced.
    """
    with (
        placed_whole(path, aside) as temporary,
        # A file name that is no UTF-8 is written with its odd bytes spelt out, rather than costing the whole table.
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        yield file


def safe_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a CSV file whose texts no spreadsheet takes for formulas: an apostrophe stands before those.

    :func:`plain_cell` takes it away. A carriage return, which the csv module leaves unquoted, becomes a space.
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
