# SPDX-License-Identifier: Apache-2.0
"""The merged content of a bundle's config files as plain JSON values, read without MONAI.

Changing a list entry by its position, such as ``train#handlers#4``, is refused because an inserted entry would shift
the positions. Changing something below a key that does not exist is refused too.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# A reference of MONAI's config language in a string.
REFERENCE = re.compile(r"@(\w*(?:(?:#|::)\w*)*)")


def read_config(config: Path) -> dict[str, Any]:
    """Return the content of a file in a bundle's ``configs``.

    Raises:
        ValueError: invalid JSON (the message gives the line and column), or not an object.
    """
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"expected JSON in {config}, got a mistake at {place} ({error.msg}): correct it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{config} must hold an object, not a {type(content).__name__}: correct it")
    return content


def merged(configs: Iterable[Path]) -> dict[str, Any]:
    """Return configs merged as MONAI merges them: overlays in order, each ``+`` applied.

    Raises:
        ValueError: invalid JSON; an overlay that changes a list entry by its position, or something below a key that
            the files before it do not have.
    """
    content: dict[str, Any] = {}
    for file in configs:
        for given, value in read_config(file).items():
            key = given.removeprefix("+").replace("::", "#")
            try:
                check_place(content, key)
            except ValueError as error:
                raise ValueError(
                    f"{file} cannot change the bundle as it says, for {error}; of a bundle that was copied earlier, "
                    "make a new copy with `monai-llmboost bundle --to FOLDER` and do your changes there"
                ) from error
            if given.startswith("+"):
                there = value_at(content, key)
                value = [*(there or []), *value] if isinstance(value, list) else {**(there or {}), **value}
            set_at(content, key, copy.deepcopy(value))
    return content


def value_at(content: Mapping[str, Any], key: str) -> Any:
    """Return the value of merged configs at a key such as ``train#trainer#max_epochs``; ``None`` if missing."""
    value: Any = content
    for part in key.split("#"):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def set_at(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a value in merged configs at a key that :func:`check_place` allows."""
    above, _, last = key.rpartition("#")
    (value_at(content, above) if above else content)[last] = value


def check_place(content: Mapping[str, Any], key: str) -> None:
    """Check that a value can be set at a key inside a named object.

    Raises:
        ValueError: the key is the position of a list entry (the message gives the named key if it can be found), or
            there is no object above the key.
    """
    above = key.rpartition("#")[0]
    parts = key.split("#")
    for number, part in enumerate(parts[1:], start=1):
        group = "#".join(parts[:number])
        parent = value_at(content, group)
        if part.isdecimal() and not (isinstance(parent, Mapping) and part in parent):
            name = _entry(content, parent, int(part))
            instead = f"name it {'#'.join([name, *parts[number + 1 :]])}" if name else f"give {group} as a whole"
            raise ValueError(
                f"{key} is an entry of a list by its position, which changes where others are inserted: {instead}"
            )
    if above and not isinstance(parent := value_at(content, above), Mapping):
        raise ValueError(f"{above} must be an object for {key}, not {'missing' if parent is None else repr(parent)}")


def _entry(content: Mapping[str, Any], value: Any, position: int) -> str:
    """Return the named key of an entry in a list made from a dictionary's values; empty if there is none."""
    for text in texts(value):
        for name in REFERENCE.findall(text):
            group = content.get(name)
            if isinstance(group, Mapping) and "_target_" not in group and position < len(group):
                return f"{name}#{list(group)[position]}"
    return ""


def texts(value: Any) -> Iterator[str]:
    """Yield all strings in a config value, recursively, except those in disabled components."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from texts(one)
    elif isinstance(value, Mapping) and str(value.get("_disabled_", "")).strip().lower() != "true":
        for one in value.values():
            yield from texts(one)
