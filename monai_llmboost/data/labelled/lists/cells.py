# SPDX-License-Identifier: Apache-2.0
"""The cells of a row: label, label map, split, fold and point; a mistake is added to the problems of the row."""

from __future__ import annotations

import math
from pathlib import Path

from monai_llmboost.data.labelled.case import Source
from monai_llmboost.data.labelled.lists.rows import CENTRE, SPLIT_WORDS, Columns, Row, Table, is_label_map
from monai_llmboost.data.labelled.lists.sources import find_source


def read_label(row: Row, table: Table, columns: Columns, problems: list[str]) -> str:
    """Return the name of the class of a row; numbers are written as spreadsheets do not, 1 for 1.0."""
    text = row.values.get("label", "").strip()
    if not text:
        problems.append(f"no label in {columns.label!r}" if "label" in row.values else f"no {columns.label!r}")
        return ""
    number = to_number(text)
    if number is not None:
        if not math.isfinite(number):
            problems.append(f"the label {text!r} is not a class")
            return ""
        text = str(int(number)) if number == int(number) else text  # spreadsheets turn 1 into 1.0
    return table.class_names.get(text, text)


def find_label_map(row: Row, columns: Columns, root: Path, problems: list[str]) -> Source | None:
    """Return the path of the label map of a row."""
    text = row.values.get("label", "").strip()
    if not text:
        problems.append(f"no label map in {columns.label!r}" if "label" in row.values else f"no {columns.label!r}")
        return None
    if not is_label_map(text):
        problems.append(f"the label {text!r} is no path of a label map, and those of others are: give label maps only")
        return None
    return find_source(root, text, problems)


def to_number(text: str) -> float | None:
    """Return a text as a number; ``None`` if it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def read_split(row: Row, problems: list[str]) -> str:
    """Return the split of a row, ``""`` if there is none."""
    text = row.values.get("split", "").strip().lower()
    if text and text not in SPLIT_WORDS:
        problems.append(f"the split {text!r} is none of train, val and test")
    return SPLIT_WORDS.get(text, "")


def read_fold(row: Row, problems: list[str]) -> int | None:
    """Return the number of the fold of a row, if it has one."""
    text = row.values.get("fold", "").strip()
    number = to_number(text) if text else None
    if text and (number is None or not math.isfinite(number) or number != int(number) or number < 0):
        problems.append(f"the fold {text!r} is no whole number from 0")
        return None
    return None if number is None else int(number)


def read_centre(row: Row, problems: list[str]) -> tuple[float, float, float] | None:
    """Return the point of a row in RAS+ mm, if it has one."""
    # In countries with a decimal comma, spreadsheets write it.
    texts = [row.values.get(name, "").strip().replace(",", ".") for name in CENTRE]
    if not any(texts):
        return None
    numbers = [to_number(text) for text in texts]
    if any(number is None or not math.isfinite(number) for number in numbers):
        problems.append(f"the centre {', '.join(texts)} is not three numbers, in mm")
        return None
    return tuple(numbers)  # type: ignore[return-value]
