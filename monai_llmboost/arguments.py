# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments: whole numbers, switches and choices."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any


def is_whole(number: Any) -> bool:
    """Return whether a value is a whole number and not a bool."""
    return isinstance(number, numbers.Integral) and not isinstance(number, bool)


def is_positive(number: Any) -> bool:
    """Return whether a value is a finite number above 0 and not a bool."""
    return isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number < math.inf


def check_whole(name: str, value: Any, least: int, most: float = math.inf, advice: str = "") -> None:
    """Check that an argument is a whole number within bounds.

    Args:
        name: name of the argument, for the message.
        value: value of the argument.
        least: smallest allowed number.
        most: largest allowed number.
        advice: how to fix it; added to the message after a colon.

    Raises:
        ValueError: anything else.

    Example:
        >>> check_whole("batch_size", 0, 1)
        Traceback (most recent call last):
        ValueError: batch_size must be a whole number from 1, not 0
    """
    if not is_whole(value) or not least <= value <= most:
        span = f"from {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {span}, not {value!r}{advice and ': '}{advice}")


def check_switch(name: str, value: Any) -> None:
    """Check that an argument is True or False, and not a string such as ``"false"``, which would be truthy.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Check that an argument is one of ``choices``, texts or numbers.

    Raises:
        ValueError: another value; the message lists the choices and suggests the closest one.

    Example:
        >>> check_choice("split", "tests", ["train", "test"])
        Traceback (most recent call last):
        ValueError: unknown split 'tests'; choose from train, test; did you mean test?
    """
    choices = list(choices)
    if value not in choices:
        words = list(map(str, choices))
        near = difflib.get_close_matches(str(value).lower(), words, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(words)}{hint}")
