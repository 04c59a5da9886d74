# SPDX-License-Identifier: Apache-2.0
"""Lists of scans in text, CSV and JSON files."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

LISTS = (".txt", ".csv", ".json")
COLUMN = "image"


def read_list(path: Path) -> list[Path]:
    """The paths that a list names, absolute; relative ones are taken from the list's folder.

    Raises:
        ValueError: not such a list, or an empty one.
    """
    suffix = path.suffix.lower()
    try:
        text = path.read_text(encoding="utf-8-sig")  # some programs write a mark of the encoding in front
        names = (
            _of_json(json.loads(text)) if suffix == ".json" else _of_csv(text) if suffix == ".csv" else text.split("\n")
        )
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"expected {path} to be a list of paths in UTF-8, got: {error}: write it again") from None
    names = [name.strip() for name in names]
    if not any(names):
        raise ValueError(f"expected {path} to list paths, it is empty: write one path a line")
    # Without "..", but with links as they are named.
    return [Path(os.path.normpath(path.parent.absolute() / Path(name).expanduser())) for name in names if name]


def _of_csv(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    # Spreadsheets of countries with a decimal comma write semicolons.
    delimiter = ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
    rows = list(csv.reader(lines, delimiter=delimiter))
    titles = [title.strip().lower() for title in rows[0]] if rows else []
    if COLUMN in titles:
        return [row[titles.index(COLUMN)] if len(row) > titles.index(COLUMN) else "" for row in rows[1:]]
    if any(len(row) > 1 for row in rows):
        raise ValueError(
            f"expected one column, or one called {COLUMN!r}, got {max(map(len, rows))}: name it in the first line"
        )
    return [row[0] for row in rows]


def _of_json(content: Any) -> list[str]:
    entries = content if isinstance(content, list) else [None]
    names: list[Any] = [entry.get(COLUMN) if isinstance(entry, dict) else entry for entry in entries]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected a JSON list of paths, or of objects with {COLUMN!r}, got another: write it so")
    return names
