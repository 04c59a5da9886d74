# SPDX-License-Identifier: Apache-2.0
"""Lists of scans in text, CSV and JSON files."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

LIST_SUFFIXES = (".txt", ".csv", ".json")
COLUMN = "image"


def read_list(path: Path) -> list[Path]:
    """Return the paths in a list file, absolute; relative ones start from the list's folder.

    Raises:
        ValueError: the file is not a list of paths, or the list is empty.
    """
    suffix = path.suffix.lower()
    try:
        text = path.read_text(encoding="utf-8-sig")  # some programs write a byte order mark
        if suffix == ".json":
            names = _parse_json(json.loads(text))
        else:
            names = _parse_csv(text) if suffix == ".csv" else text.split("\n")
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a list of paths in UTF-8 ({error}): write it again") from None
    names = [name.strip() for name in names]
    if not any(names):
        raise ValueError(f"the list {path} is empty: write one path a line")
    # Normalised as text, so that links keep their names.
    return [Path(os.path.normpath(path.parent.absolute() / Path(name).expanduser())) for name in names if name]


def _parse_csv(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    # Spreadsheets write semicolons where the decimal separator is a comma.
    delimiter = ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
    rows = list(csv.reader(lines, delimiter=delimiter))
    titles = [title.strip().lower() for title in rows[0]] if rows else []
    if COLUMN in titles:
        column = titles.index(COLUMN)
        return [row[column] if len(row) > column else "" for row in rows[1:]]
    if any(len(row) > 1 for row in rows):
        raise ValueError(
            f"the list has {max(map(len, rows))} columns, none of them called {COLUMN!r}: name the column of paths so"
        )
    return [row[0] for row in rows]


def _parse_json(content: Any) -> list[str]:
    entries = content if isinstance(content, list) else [None]
    names: list[Any] = [entry.get(COLUMN) if isinstance(entry, dict) else entry for entry in entries]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"the list is not a JSON list of paths, or of objects with {COLUMN!r}: write it as one")
    return names
