# SPDX-License-Identifier: Apache-2.0
"""The names of structures by their values in label maps, as Decathlon and nnU-Net write them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

# Class numbers are stored in one byte, whose last value means none of them.
MOST_STRUCTURES, MOST_VALUE = 254, 2**16 - 1
# The value of the background, and words for it in lower case.
BACKGROUND = 0
BACKGROUND_WORDS = ("background", "bg", "clear", "clear label", "none", "unlabeled", "unlabelled", "")


def read_structures(labels: Any) -> tuple[dict[int, str], list[str]]:
    """Return the structures of label maps, and what is wrong with them, one sentence each.

    Args:
        labels: names by value, as the Decathlon writes them, or values by name, as nnU-Net does; ``None`` for none.

    Example:
        >>> read_structures({"background": 0, "liver": 1, "tumour": 2})
        ({1: 'liver', 2: 'tumour'}, [])
    """
    if labels is None:
        return {}, []
    if not isinstance(labels, Mapping):
        return {}, [f'the names of the structures are {labels!r}: write them as {{"0": "background", "1": "liver"}}']
    pairs = list(labels.items())
    if not any(_is_number(key) for key, _ in pairs):
        pairs = [(value, key) for key, value in pairs]  # as nnU-Net
    errors: list[str] = []
    found: dict[int, str] = {}
    for value, name in pairs:
        number = _to_value(value)
        if isinstance(value, (list, tuple)):
            errors.append(
                f"the structure {name!r} is a region of the values {value}: give each value a name of its own, because "
                "structures must not overlap"
            )
        elif number is None or not 0 <= number <= MOST_VALUE:
            errors.append(f"the structure {name!r} has the value {value!r}: give a whole number from 1 to {MOST_VALUE}")
        elif number in found:
            errors.append(f"the structures {found[number]!r} and {name!r} have the value {number}: give each its own")
        else:
            found[number] = str(name).strip()
    errors += _check_names(found)
    return {value: name for value, name in found.items() if value != BACKGROUND}, errors


def _check_names(found: Mapping[int, str]) -> list[str]:
    errors = []
    if found.get(BACKGROUND, "").lower() not in BACKGROUND_WORDS:
        errors.append(
            f"the value 0 has the name {found[BACKGROUND]!r}, and must be the background: number structures from 1"
        )
    names = {value: name for value, name in found.items() if value != BACKGROUND}
    for value, name in names.items():
        if name.lower() in BACKGROUND_WORDS[:1]:
            errors.append(f"the value {value} has the name {name!r}: the background must have the value 0")
        elif not name:
            errors.append(f"the value {value} has no name: give one")
        elif name.lower() == "ignore":
            errors.append(
                f"the value {value} is to be ignored, which is not supported: give complete label maps, or leave out "
                "the cases"
            )
    for name, count in Counter(name.casefold() for name in names.values()).items():
        if count > 1 and name:
            values = ", ".join(str(value) for value, one in names.items() if one.casefold() == name)
            errors.append(f"the structure {name!r} has the values {values}: give each value a name of its own")
    if len(names) > MOST_STRUCTURES:
        errors.append(f"{len(names)} structures are more than {MOST_STRUCTURES}: train on some of them")
    return errors


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _to_value(value: Any) -> int | None:
    """Return a value as a whole number; ``None`` if it is none."""
    if isinstance(value, bool) or not _is_number(value) or not float(value).is_integer():
        return None
    return int(float(value))
