# SPDX-License-Identifier: Apache-2.0
"""Codes of structures for DICOM segmentations: a default, and the table that a user gives."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.sr.coding import Code

from monai_llmboost.artifacts.digests import file_digest

# For a structure that the table does not name; its name is the segment's label.
ANATOMICAL_STRUCTURE = Code("123037004", "SCT", "Anatomical Structure")
# Limits of DICOM for a code's value and scheme (SH), and for its meaning (LO).
LONGEST = {"scheme": 16, "value": 16, "meaning": 64}
COLUMNS = ("name", *(f"{code}_{part}" for code in ("category", "type") for part in LONGEST))
COLOUR = "colour"


@dataclass(frozen=True)
class Segment:
    """A structure of a label map, as a DICOM segmentation describes it.

    Args:
        value: its value in the label map, from 1.
        name: its name.
        category: what it is in general, such as an anatomical structure or a morphologic abnormality.
        kind: what it is, such as the liver; DICOM's "property type".
        colour: ``"#rrggbb"``.

    Example:
        >>> Segment(1, "liver", kind=Code("10200004", "SCT", "Liver")).kind.meaning
        'Liver'
    """

    value: int
    name: str
    category: Code = ANATOMICAL_STRUCTURE
    kind: Code = ANATOMICAL_STRUCTURE
    colour: str = "#e69f00"


def codes_digest(codes: str | Path | None) -> str:
    """Return the digest of a table of codes; empty without one, or for a file that :func:`segments_of` refuses."""
    return file_digest(Path(codes)) if codes is not None and Path(codes).is_file() else ""


def segments_of(
    structures: Mapping[int, str], colours: Mapping[int, str], codes: str | Path | None = None
) -> list[Segment]:
    """Return the segment of each structure, with the codes of a table.

    Args:
        structures: value to name.
        colours: colour of each value, for structures to which the table gives none.
        codes: CSV or JSON (a list of objects) with ``name``, ``category_scheme``, ``category_value``,
            ``category_meaning``, ``type_scheme``, ``type_value``, ``type_meaning`` and, if wanted, ``colour``;
            structures that it does not name are coded as "Anatomical Structure". None codes all so.

    Raises:
        ValueError: a table that cannot be read, an unknown structure, a column that is missing, or a code or colour
            that is empty, too long or no colour.
        FileNotFoundError: there is no such file.
    """
    rows = {} if codes is None else _read_table(Path(codes), list(structures.values()))
    return [_segment(value, name, colours[value], rows.get(name)) for value, name in structures.items()]


def _segment(value: int, name: str, colour: str, row: Mapping[str, str] | None) -> Segment:
    if row is None:
        return Segment(value, name, colour=colour)
    category, kind = (
        Code(row[f"{code}_value"], row[f"{code}_scheme"], row[f"{code}_meaning"]) for code in ("category", "type")
    )
    return Segment(value, name, category, kind, row.get(COLOUR) or colour)


def _read_table(path: Path, names: list[str]) -> dict[str, dict[str, str]]:
    """Return the rows of a table by the name of the structure."""
    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(_read_rows(path), 1):
        where = f"codes {path.name}, entry {number}"
        missing = [column for column in COLUMNS if column not in row]
        if missing:
            raise ValueError(f"{where}: there is no {', '.join(missing)}: give {', '.join(COLUMNS)}")
        name = row["name"]
        if name not in names:
            raise ValueError(f"{where}: {name!r} is no structure of the network: choose from {', '.join(names)}")
        if name in found:
            raise ValueError(f"{where}: {name!r} is there twice: keep one entry")
        _check(row, f"{where} ({name})")
        found[name] = row
    return found


def _check(row: Mapping[str, str], where: str) -> None:
    for column in COLUMNS[1:]:
        longest = LONGEST[column.rpartition("_")[2]]
        if not row[column]:
            raise ValueError(f"{where}: {column} is empty: a code has a scheme, a value and a meaning")
        if len(row[column]) > longest or "\\" in row[column]:
            raise ValueError(
                f"{where}: {column} is {row[column]!r}: DICOM allows at most {longest} characters and no backslash"
            )
    colour = row.get(COLOUR, "")
    if colour and not re.fullmatch("#[0-9a-fA-F]{6}", colour):
        raise ValueError(f"{where}: the colour is {colour!r}: give it as #rrggbb, such as #e69f00")


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows: Any = json.loads(text) if path.suffix.lower() == ".json" else _read_csv(text)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ValueError(f"codes {path.name} cannot be read: {error}; give a CSV or JSON file in UTF-8") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"codes {path.name} has no entries: give a list of objects, or a CSV with a header")
    # Codes may be numbers in JSON; cells beyond the header of a CSV have no name.
    return [{key: str(cell or "").strip() for key, cell in row.items() if key} for row in rows]


def _read_csv(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(text.splitlines(), strict=True))
