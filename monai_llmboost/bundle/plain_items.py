# SPDX-License-Identifier: Apache-2.0
"""Items of merged configs that need neither MONAI nor any import: values, references, and simple expressions of them.

MONAI's own parser takes seconds to import. Whatever is not certain to have the same value there is refused here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from monai_llmboost.bundle.content import REFERENCE, texts

# Functions and methods that an expression may call, and the syntax that it may use.
FUNCTIONS = {one.__name__: one for one in (abs, float, int, len, list, max, min, range, round, sorted, sum, tuple)}
METHODS = ("items", "keys", "values")
SYNTAX = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Constant, ast.List, ast.Tuple,
    ast.Dict, ast.Subscript, ast.Slice, ast.Name, ast.Load, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
# Keys of a component that are not its arguments; the others change how MONAI creates it.
NOT_ARGUMENTS = ("_target_", "_disabled_", "_desc_")


class NotPlainError(Exception):
    """An item whose value only MONAI's parser knows."""


class Component:
    """A component of a config, which is not created: the name of its class, and its arguments.

    An expression that uses more of it than its place among others is refused.
    """

    def __init__(self, target: Any, key: str, content: Mapping[str, Any], items: PlainItems) -> None:
        self.target = target
        self._key, self._content, self._of = key, content, items

    def argument(self, name: str, default: Any = None) -> Any:
        """Return one argument; the others need not be plain."""
        if name not in self._content:
            return default
        return self._of.resolve(self._content[name], f"{self._key}#{name}")

    def check_arguments(self, *known: str) -> None:
        """Check that it has no arguments but these.

        Raises:
            NotPlainError: it has.
        """
        if more := self._content.keys() - {*known, *NOT_ARGUMENTS}:
            raise NotPlainError(f"{self._key} has the arguments {sorted(more)}")

    def _refuse(self, *_: Any) -> NoReturn:
        raise NotPlainError(f"an expression uses {self._key}")

    __bool__ = __eq__ = __repr__ = __hash__ = _refuse  # type: ignore[assignment]


class PlainItems:
    """Items of merged configs, with the values that MONAI's parser gives them.

    Args:
        content: merged configs, with the options of the job.

    Example:
        >>> PlainItems({"size": 28, "shape": "$[1] + [@size] * 3"}).value("shape")
        [1, 28, 28, 28]
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content
        imports = " ".join(text for text in texts(content) if text.startswith("$") and "import" in text)
        imported = set(re.findall(r"\w+", imports))
        self._names = {name: function for name, function in FUNCTIONS.items() if name not in imported}

    def value(self, key: str) -> Any:
        """Return the value at a key such as ``"cases"`` or ``"network_def#channels"``; a component is not created.

        Raises:
            NotPlainError: only MONAI's parser knows it, or there is no such key.
        """
        found: Any = self.content
        for part in key.split("#"):
            if not isinstance(found, Mapping) or part not in found:
                raise NotPlainError(f"there is no {key}")
            found = found[part]
        try:
            return self.resolve(found, key)
        except RecursionError:  # circular references
            raise NotPlainError(f"{key} refers to itself") from None

    def resolve(self, found: Any, key: str) -> Any:
        """Return the value of what stands at a key."""
        if isinstance(found, str):
            return self._text(found)
        if isinstance(found, Mapping) and "_target_" in found:
            return self._component(found, key)
        if not isinstance(found, (Mapping, list)):
            return found
        pairs = list(found.items() if isinstance(found, Mapping) else enumerate(found))
        values = [(name, one, self.resolve(one, f"{key}#{name}")) for name, one in pairs]
        # A disabled component is left out.
        kept = [(name, one) for name, raw, one in values if one is not None or not _is_component(raw)]
        return dict(kept) if isinstance(found, Mapping) else [one for _, one in kept]

    def _component(self, found: Mapping[str, Any], key: str) -> Component | None:
        disabled = self.resolve(found.get("_disabled_", False), key)
        if disabled.strip().lower() == "true" if isinstance(disabled, str) else bool(disabled):
            return None
        return Component(found["_target_"], key, found, self)

    def _text(self, text: str) -> Any:
        if text.startswith("$"):
            return self._expression(text[1:])
        if REFERENCE.fullmatch(text):
            return self._reference(text[1:])
        if text.startswith("%") or "#" in text:  # a macro, or a text that MONAI changes
            raise NotPlainError(f"{text} is no plain text")
        return text

    def _reference(self, name: str) -> Any:
        return self.value(name.replace("::", "#"))

    def _expression(self, text: str) -> Any:
        references: dict[str, Any] = {}

        def insert(match: re.Match[str]) -> str:
            name = match[1].replace("#", "::")
            references[name] = self._reference(name)
            return f"_references[{name!r}]"

        code = REFERENCE.sub(insert, text)
        if "#" in code:  # MONAI replaces # in all texts
            raise NotPlainError(f"{text} has a #")
        try:
            tree = ast.parse(code, mode="eval")
            names = {**self._names, "_references": references}
            _check_syntax(tree, names)
            return eval(compile(tree, "<config>", "eval"), {"__builtins__": {}}, names)
        except Exception as error:  # any error of an expression, which MONAI's parser then reports
            raise NotPlainError(f"{text}: {error}") from error


def _is_component(found: Any) -> bool:
    return isinstance(found, Mapping) and "_target_" in found


def _check_syntax(tree: ast.AST, names: Mapping[str, Any]) -> None:
    """Check that an expression uses nothing but simple syntax and known names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            method = isinstance(node.func, ast.Attribute) and node.func.attr in METHODS and not node.args
            allowed = (method or isinstance(node.func, ast.Name)) and not node.keywords
        elif isinstance(node, ast.Attribute):
            allowed = node.attr in METHODS
        elif isinstance(node, ast.Name):
            allowed = node.id in names
        else:
            allowed = isinstance(node, SYNTAX)
        if not allowed:
            raise NotPlainError(f"{type(node).__name__} is not evaluated here")
