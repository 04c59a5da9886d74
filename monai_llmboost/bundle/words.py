# SPDX-License-Identifier: Apache-2.0
"""Conversion of command-line options to config values: text unchanged, other values as Python literals.

MONAI's config language replaces ``#`` by ``::`` in every string, and evaluates strings that begin with ``$``, ``@`` or
``%``. So text with any of these characters is written as an expression whose value is the text, such as
``$'ck \\x231'`` for ``ck #1``; only MONAI decodes it.
"""

from __future__ import annotations

import ast
import os
import string
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from monai_llmboost.bundle.content import value_at
from monai_llmboost.bundle.contract import SEVERAL_TEXTS, TEXTS

# Arguments of MONAI's workflow, which are not config items.
NOT_IN_CONFIGS = ("tracking", "save_execute_config")
# JSON literals, which MONAI's own command would read as text.
JSON_WORDS = {"true": True, "false": False, "null": None}
SPECIAL = frozenset("#$@%")
PLAIN = frozenset(string.ascii_letters + string.digits + " /._-+,()[]")


def is_text(content: Mapping[str, Any], key: str, texts: Collection[str] = ()) -> bool:
    """Return whether a key of merged configs takes text, such as a path or a name.

    This is unknown for arguments of components, which may take a text or a list of texts.
    """
    usual = value_at(content, key)
    return key in TEXTS or key in texts or ("#" not in key and isinstance(usual, str) and not is_computed(usual))


def typed_values(content: Mapping[str, Any], typed: Mapping[str, str], texts: Collection[str] = ()) -> dict[str, Any]:
    """Return the values of typed options: text unchanged, any other value as a Python literal or text.

    Args:
        content: the merged configs of the options.
        typed: text by key, as the shell passes it.
        texts: further keys that the bundle declares as text.

    Raises:
        ValueError: empty text.
    """
    return {key: _typed(content, key.replace("::", "#"), text, texts) for key, text in typed.items()}


def _typed(content: Mapping[str, Any], key: str, text: str, texts: Collection[str]) -> Any:
    if not is_text(content, key, texts):
        return parsed(text)
    if not text.strip():
        raise ValueError(f"--{key} needs a text, not {'nothing' if not text else 'blanks'}: give one")
    if key in SEVERAL_TEXTS and text.startswith("[") and not Path(text).exists():
        try:
            several = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text
        return several if all(isinstance(one, str) for one in several) else text
    return text


def parsed(text: str) -> Any:
    """Return the value of an option that is not text: a Python literal if possible, as MONAI reads it."""
    if text in JSON_WORDS:
        return JSON_WORDS[text]
    try:
        root = ast.parse(text, mode="eval")
        if isinstance(root.body, ast.BinOp):  # 2026-11 and 1+2j are text
            return text
        value = ast.literal_eval(_QuotedNames().visit(root))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text
    quoted = text[:1] in ("'", '"')
    return text if isinstance(value, str) and not quoted else value  # "a #1" parses as `a` and a comment


class _QuotedNames(ast.NodeTransformer):
    """Reads bare words in lists and dictionaries, such as ``[a, b]``, as text, as MONAI's command line (Fire) does."""

    def visit_Name(self, node: ast.Name) -> ast.Constant:
        return ast.copy_location(ast.Constant(node.id), node)


def config_values(content: Mapping[str, Any], values: Mapping[str, Any], texts: Collection[str] = ()) -> dict[str, Any]:
    """Return the values of options encoded for MONAI's configs, so that MONAI reads each text unchanged.

    Args:
        content: the merged configs of the options.
        values: by key. A string of a key that does not take text, such as ``network``, may be an expression.
        texts: further keys that the bundle declares as text.
    """
    encoded = {}
    for key, value in values.items():
        if key in NOT_IN_CONFIGS:
            encoded[key] = value
        else:
            encoded[key] = _encoded(value, text=is_text(content, key.replace("::", "#"), texts))
    return encoded


def _encoded(value: Any, text: bool) -> Any:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [_encoded(one, text) for one in value]
    if isinstance(value, Mapping):
        return {key: _encoded(one, text) for key, one in value.items()}
    if isinstance(value, str) and (text or not is_computed(value)) and SPECIAL.intersection(value):
        return literal(value)
    return value


def literal(text: str) -> str:
    """Return an expression whose value is the text, without any special character of the config language."""
    codes = ((character, ord(character)) for character in text)
    return "$'" + "".join(c if c in PLAIN else f"\\x{n:02x}" if n < 256 else f"\\U{n:08x}" for c, n in codes) + "'"


def plain_text(value: str) -> str:
    """Return the text of a config value: the value itself, or the text that :func:`config_values` encoded."""
    if not value.startswith("$'"):
        return value
    try:
        text = ast.literal_eval(value[1:])
    except (SyntaxError, ValueError):
        return value
    return text if isinstance(text, str) else value


def is_computed(value: Any) -> bool:
    """Return whether a value is a MONAI expression or reference, known only after evaluation."""
    return isinstance(value, str) and value.startswith(("$", "@", "%"))
