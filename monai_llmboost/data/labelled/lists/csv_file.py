# SPDX-License-Identifier: Apache-2.0
"""Labelled lists in CSV files as spreadsheets write them."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_llmboost.data.labelled.lists.rows import CENTRE, INPUTS, Columns, Row, Table, no_column_message

DELIMITERS = (",", ";", "\t", "|")
# An unused column of patients has at most so many rows with one value, on average.
MOST_REPEATED = 5
LOOKS_LIKE_PATH = re.compile(r"[/\\]|\.(?:nii|gz|dcm|hdr|img)$", re.IGNORECASE)
SEVERAL_IMAGES = re.compile(r"image[ _-]?.+")
# A first line in which Excel finds the delimiter.
SEPARATOR_LINE = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)


def read_csv(path: Path, columns: Columns, labelled: bool) -> Table:
    """Return the rows of a CSV file; see :func:`monai_llmboost.data.labelled.lists.tables.read_table`."""
    text, warnings = _decode(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    said = SEPARATOR_LINE.fullmatch(first)
    delimiter = said[1] if said else max(DELIMITERS, key=lambda mark: _count_fields(first, mark))
    try:
        # Without translated line ends, so that those of any system count.
        records = list(csv.reader(io.StringIO(text, ""), delimiter=delimiter, strict=True, skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(f"{path} is not a table ({error}): save it as CSV again") from None
    numbered = [(number, cells) for number, cells in enumerate(records, 1) if any(cell.strip() for cell in cells)]
    if said:
        del numbered[0]
    if not numbered:
        raise ValueError(f"the list {path} is empty: write a line of column names, then a row for each case")
    titles = [title.strip() for title in numbered[0][1]]
    examples = numbered[1][1] if len(numbered) > 1 else []
    places = _find_columns(path, titles, columns, labelled, examples)
    rows = []
    for number, cells in numbered[1:]:
        if len(cells) > len(titles) and any(cell.strip() for cell in cells[len(titles) :]):
            raise ValueError(
                f"row {number} of {path} has {len(cells)} fields, and the first line {len(titles)}: put a path that "
                f"contains {delimiter!r} in quotation marks"
            )
        padded = [cell.strip() for cell in cells] + [""] * (len(titles) - len(cells))
        values = {key: padded[place] for key, place in places.items() if isinstance(place, int)}
        rows.append(Row(f"row {number}", tuple(padded[place] for place in places["images"]), values))
    if not rows:
        raise ValueError(f"the list {path} has column names and no cases: add a row for each case")
    used = {*places["images"], *(place for place in places.values() if isinstance(place, int))}
    if labelled and "group" not in places:
        warnings += _find_groups(titles, [cells for _, cells in numbered[1:]], used)
    return Table(tuple(titles[place] for place in places["images"]), rows, warnings=tuple(warnings))


def _find_groups(titles: Sequence[str], rows: Sequence[Sequence[str]], used: set[int]) -> list[str]:
    """Return a warning for each unused column whose values repeat as those of patients do."""
    found = []
    for place, title in enumerate(titles):
        values = {cells[place].strip() for cells in rows if len(cells) > place}
        if title and place not in used and len(rows) / MOST_REPEATED <= len(values) < len(rows):
            found.append(
                f"the column {title!r} is not used, and its values repeat: if it names patients, give --group-column "
                f"{title!r}, so that no patient is divided"
            )
    return found


def _decode(path: Path) -> tuple[str, list[str]]:
    """Return the text of a file in one of the encodings of spreadsheets."""
    raw = path.read_bytes()
    encoding = "utf-16" if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    with contextlib.suppress(UnicodeDecodeError):
        text = raw.decode(encoding)
        if "\0" not in text:
            return text, []
    if b"\0" in raw:
        raise ValueError(f"{path} is not a text file: save the table as CSV (UTF-8)")
    warning = f"{path.name} is not UTF-8, and was read as Windows-1252: save it as CSV UTF-8 if names look wrong"
    return raw.decode("cp1252", errors="replace"), [warning]


def _count_fields(line: str, delimiter: str) -> int:
    return len(next(csv.reader([line], delimiter=delimiter)))


def _find_columns(
    path: Path, titles: Sequence[str], columns: Columns, labelled: bool, examples: Sequence[str]
) -> dict[str, Any]:
    """Return the position of each column; those of the images as a list."""
    known = {}
    for number, title in enumerate(titles):
        if title.lower() in known and title:
            raise ValueError(f"the list {path} has two columns called {title!r}: rename one")
        known[title.lower()] = number
    images = columns.images
    if images is None:
        images = ("image",) if "image" in known else tuple(t for t in known if SEVERAL_IMAGES.fullmatch(t))
    if not images:
        paths = [title for title, cell in zip(titles, examples) if LOOKS_LIKE_PATH.search(cell)]
        raise ValueError(no_column_message("image", "image-column", path, titles, paths))
    for name in images:
        if name.lower() not in known:
            raise ValueError(no_column_message(name, "image-column", path, titles))
    if len({name.lower() for name in images}) < len(images):
        raise ValueError(f"the image columns {', '.join(images)} are not all different: name each channel once")
    places: dict[str, Any] = {"images": [known[name.lower()] for name in images]}
    for key in ("label", "split", "fold", "group", "mask", "case"):
        name = getattr(columns, key)
        if name.lower() in known:
            places[key] = known[name.lower()]
        elif (labelled or key in INPUTS) and (key == "label" or name != getattr(Columns, key)):  # named by the user
            raise ValueError(no_column_message(name, f"{key}-column", path, titles))
    places |= {name: known[name] for name in CENTRE if name in known}
    return places
