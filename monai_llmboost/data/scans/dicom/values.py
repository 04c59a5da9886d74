# SPDX-License-Identifier: Apache-2.0
"""Attributes of DICOM data sets as plain values, also from damaged or non-conformant files."""

from __future__ import annotations

import math
import re
from functools import cache, lru_cache
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import RE_VALID_UID
from pydicom.valuerep import DSfloat

MAX_UID_LENGTH = 64  # by the standard
# Value representations whose values are kept, because they neither name a patient nor depend on other attributes.
REPEATED_KINDS = frozenset(("CS", "DS", "FD", "FL", "IS", "UI", "US"))
MAX_REPEATED_BYTES = 1 << 8


def read_value(data: Dataset, keyword: str) -> Any:
    """Return the value of an attribute; None if it is absent.

    The same as ``data.get(keyword)``, but several times faster, because series repeat most of their values.

    Raises:
        Exception: the value does not conform to its value representation.
    """
    tag = _get_tag(keyword)
    keys = data.keys()
    if tag not in keys:  # faster than asking the data set itself; most tags are absent
        return None
    raw = data.get_item(tag)
    if isinstance(raw, RawDataElement) and type(raw.value) is bytes:
        kind = raw.VR or _get_kind(tag)
        if kind in REPEATED_KINDS and len(raw.value) <= MAX_REPEATED_BYTES:
            return _convert(tag, kind, raw.value, raw.is_little_endian)
    return data[tag].value


def get_value(data: Dataset, keyword: str) -> Any:
    """Return the value of an attribute; None if it is absent, or does not conform to its value representation."""
    try:
        return read_value(data, keyword)
    except (TypeError, ValueError, OverflowError, NotImplementedError):
        return None


@lru_cache(1 << 12)
def _convert(tag: BaseTag, kind: str, value: bytes, is_little: bool) -> Any:
    return convert_raw_data_element(RawDataElement(tag, kind, len(value), value, 0, False, is_little)).value


def is_unreadable(data: Dataset, keyword: str) -> bool:
    """Return whether an attribute is present and not empty, but does not conform to its value representation."""
    tag = _get_tag(keyword)
    return tag in data.keys() and get_value(data, keyword) is None and bool(data.get_item(tag).value)  # noqa: SIM118


@cache
def _get_tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"DICOM has no attribute {keyword!r}")
    return Tag(tag)


@cache
def _get_kind(tag: BaseTag) -> str:
    """Return the value representation of a tag in files that leave it to the standard."""
    return dictionary_VR(tag)


def find_number_problem(keyword: str, numbers: Any, one: bool) -> str:
    """Return the problem with the numbers of an attribute of geometry or scaling; empty if there is none.

    Args:
        keyword: name of the attribute, for the message.
        numbers: its value.
        one: whether it must be a single number.
    """
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
    """Return PhotometricInterpretation in the spelling of the standard."""
    return str(read_value(data, "PhotometricInterpretation") or "").strip().upper()


def to_uid(value: Any) -> str:
    """Return a valid UID, or an empty text, because a value with a damaged length may contain other tags and a name."""
    text = str(value or "")
    return text if len(text) <= MAX_UID_LENGTH and re.fullmatch(RE_VALID_UID, text) else ""


def to_plain(value: Any) -> Any:
    """Return a value that can be compared and sorted: a text or a tuple of texts, equal for 4 and 4.0."""
    if value is None or isinstance(value, str):
        return (value or "").strip()
    if isinstance(value, (int, float)):
        return f"{float(value):.12g}"
    texts = [to_plain(each) for each in value]
    while texts and not texts[-1]:  # an empty last value is padding
        texts.pop()
    return tuple(texts)


def to_number(value: Any) -> float | None:
    """Return a number, or None if the value is empty or not a number."""
    try:
        return None if value in (None, "") else float(value)
    except (TypeError, ValueError):
        return None


def to_whole(value: Any) -> int | None:
    """Return a whole number, or None if the value is empty or not a whole number."""
    try:
        return None if value in (None, "") else int(value)
    except (TypeError, ValueError):
        return None


def to_numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """Return exactly ``count`` finite numbers, or None."""
    if values in (None, "") or isinstance(values, (int, float, str)) or len(values) != count:
        return None
    numbers = tuple(to_number(value) for value in values)
    return (
        tuple(n for n in numbers if n is not None) if all(n is not None and math.isfinite(n) for n in numbers) else None
    )


def get_rounding(number: Any) -> float:
    """Return half a unit of the last digit of a decimal string (DS); 0 for binary numbers.

    Example:
        >>> get_rounding(DSfloat("12.25", auto_format=False))
        0.005
    """
    text = getattr(number, "original_string", "") if isinstance(number, DSfloat) else ""
    found = re.fullmatch(r"\s*[+-]?\d*(?:\.(\d*))?(?:[eE]([+-]?\d+))?\s*", str(text))
    if not text or found is None:
        return 0.0
    return 0.5 * 10.0 ** min(int(found[2] or 0) - len(found[1] or ""), 0)  # 1e1 may stand for 10.0
