# SPDX-License-Identifier: Apache-2.0
"""Formatting of a study's numbers as text; missing or non-finite values are shown as a dash."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai_llmboost.artifacts import page
from monai_llmboost.studies.rounding import rounded

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"


def finite(values: Iterable[Any] | None) -> list[float]:
    """Return the finite numbers among values, some of which may be missing."""
    return [float(v) for v in values or () if isinstance(v, (int, float)) and math.isfinite(v)]


def value(statistic: Mapping[str, Any] | None, name: str) -> float | None:
    """Return a number of a statistic such as ``{"mean": 0.8, "sd": None}``, or None if it is missing."""
    return next(iter(finite([(statistic or {}).get(name)])), None)


def span(ends: Sequence[Any] | None) -> tuple[float, float] | None:
    """Return both ends of an interval, or None unless both are numbers."""
    low_high = finite(ends)
    return (low_high[0], low_high[1]) if len(low_high) == 2 else None


def number(x: float | None) -> str:
    """Return a number as text, such as 0.812."""
    return signed(x).removeprefix("+")


def signed(x: float | None) -> str:
    """Return a number with its sign, such as +0.004 or -0.011; zero has no sign."""
    if x is None:
        return NOTHING
    text = rounded(x)
    return f"+{text}" if float(text) > 0 else text.replace("-", MINUS)


def probability(p: float | None) -> str:
    """Return a p-value as text, such as 0.013, and never 0."""
    return NOTHING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def plain(x: float | None) -> str:
    """Return a number with three significant digits, such as 0.0003, 12.5 or 1.2e+06."""
    return NOTHING if x is None else (MINUS if x < 0 else "") + f"{abs(x):.3g}"


def interval(ends: Sequence[Any] | None) -> str:
    """Return an interval as text, such as [-0.011, 0.019]."""
    ends = span(ends)
    return NOTHING if ends is None else f"[{number(ends[0])}, {number(ends[1])}]"


def visible(text: Any) -> Any:
    """Return text with invisible characters (control characters, direction marks, lone surrogates) escaped."""
    if isinstance(text, str):
        return page.visible(text)
    if isinstance(text, Mapping):
        return {visible(key): visible(item) for key, item in text.items()}
    if isinstance(text, (list, tuple)):
        return [visible(item) for item in text]
    return text
