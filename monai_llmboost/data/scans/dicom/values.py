# SPDX-License-Identifier: Apache-2.0
"""Attributes of DICOM data sets as plain values, whatever damaged or careless files put into them."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.sequence import Sequence
from pydicom.uid import RE_VALID_UID
from pydicom.valuerep import DSfloat

LONGEST_UID = 64


def get_value(data: Dataset, keyword: str) -> Any:
    """The value of an attribute; None if it is absent, or not what its type says."""
    tag = _tag_of(keyword)
    keys = data.keys()
    if tag not in keys:  # asked of the data set itself this takes long, and most tags are not there
        return None
    try:
        return data[tag].value
    except (TypeError, ValueError, OverflowError, NotImplementedError):
        return None


def is_unreadable(data: Dataset, keyword: str) -> bool:
    """Whether an attribute is there, not empty, and not what its type says."""
    tag = _tag_of(keyword)
    return tag in data.keys() and get_value(data, keyword) is None and bool(data.get_item(tag).value)  # noqa: SIM118


@cache
def _tag_of(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"DICOM has no attribute {keyword!r}")
    return tag


def find_number_problem(keyword: str, numbers: Any, one: bool) -> str:
    """What is wrong with numbers that decide where a slice lies or what its values mean; empty if nothing."""
    several = [numbers] if numbers is None or isinstance(numbers, (str, int, float)) else numbers
    if isinstance(several, (bytes, Sequence)):
        return f"expected numbers in {keyword}, got something else: export it again"
    if one and len(several) > 1:
        return f"expected one {keyword}, got {len(several)}: export it again"
    for number in several:
        try:
            float(number or 0)
        except (TypeError, ValueError):
            what = "decimal commas" if "," in str(number) else "something else"
            return f"expected numbers in {keyword}, got {what}: export it again"
    return ""


def get_photometric(data: Dataset) -> str:
    """PhotometricInterpretation as the standard writes it."""
    return str(data.get("PhotometricInterpretation") or "").strip().upper()


def to_uid(value: Any) -> str:
    """A UID, or nothing: where a length is damaged there may be anything, such as the next tags with a name in them."""
    text = str(value or "")
    return text if len(text) <= LONGEST_UID and re.fullmatch(RE_VALID_UID, text) else ""


def to_plain(value: Any) -> Any:
    """A value that can be compared and sorted: text, or a tuple of texts; 4 and 4.0 are one."""
    if value is None or isinstance(value, str):
        return (value or "").strip()
    if isinstance(value, (int, float)):
        return f"{float(value):.12g}"
    texts = [to_plain(part) for part in value]
    while texts and not texts[-1]:  # an empty last value is padding
        texts.pop()
    return tuple(texts)


def to_number(value: Any) -> float | None:
    """A number, or None where there is none or something else."""
    try:
        return None if value in (None, "") else float(value)
    except (TypeError, ValueError):
        return None


def to_whole(value: Any) -> int | None:
    """A whole number, or None where there is none or something else."""
    try:
        return None if value in (None, "") else int(value)
    except (TypeError, ValueError):
        return None


def to_numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """So many finite numbers, or None."""
    if values in (None, "") or isinstance(values, (int, float, str)) or len(values) != count:
        return None
    numbers = tuple(to_number(value) for value in values)
    return (
        tuple(n for n in numbers if n is not None) if all(n is not None and math.isfinite(n) for n in numbers) else None
    )


def get_rounding(number: Any) -> float:
    """Half a unit of the last digit that a decimal string shows, in its own unit; 0 for binary numbers."""
    text = getattr(number, "original_string", "") if isinstance(number, DSfloat) else ""
    found = re.fullmatch(r"\s*[+-]?\d*(?:\.(\d*))?(?:[eE]([+-]?\d+))?\s*", str(text))
    if not text or found is None:
        return 0.0
    return 0.5 * 10.0 ** min(int(found[2] or 0) - len(found[1] or ""), 0)  # 1e1 may be 10.0 in short
