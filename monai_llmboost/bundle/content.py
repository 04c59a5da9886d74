# SPDX-License-Identifier: Apache-2.0
"""What the config files of a bundle say together, as plain JSON values, without MONAI."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def read_config(config: Path) -> dict[str, Any]:
    """Return the content of a file of a bundle's ``configs``.

    Raises:
        ValueError: broken JSON; the message has the place of the mistake.
    """
    try:
        return json.loads(config.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"expected JSON in {config}, got a mistake at {place} ({error.msg}): correct it") from error


def merged(configs: Iterable[Path]) -> dict[str, Any]:
    """Return what configs say together; a key such as ``train#handlers`` stays next to ``train``, a ``+`` is done."""
    content: dict[str, Any] = {}
    for file in configs:
        for given, value in read_config(file).items():
            key = given.removeprefix("+").replace("::", "#")
            if given.startswith("+"):
                there = value_at(content, key)
                value = [*(there or []), *value] if isinstance(value, list) else {**(there or {}), **value}
            content[key] = value
    return content


def value_at(content: Mapping[str, Any], key: str) -> Any:
    """Return what merged configs have at a key such as ``train#handlers#0``; ``None`` if nothing."""
    if key in content:
        return content[key]
    above, _, last = key.rpartition("#")
    parent = value_at(content, above) if above else None
    if isinstance(parent, list):
        return parent[int(last)] if last.isdecimal() and int(last) < len(parent) else None
    return parent.get(last) if isinstance(parent, dict) else None


def as_tree(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return merged configs with every key such as ``train#handlers#0`` in its place below ``train``."""
    tree: dict[str, Any] = {}
    for key, value in content.items():
        *above, last = key.split("#")
        place: Any = tree
        for part in above:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = copy.deepcopy(value)
    return tree
