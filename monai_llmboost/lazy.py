# SPDX-License-Identifier: Apache-2.0
"""Names of a package that are imported on first use (PEP 562), so that a part can be imported without the rest."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package, which import a name when it is first used.

    The names are those that the package's own file imports for type checkers, below ``if TYPE_CHECKING:``, so that they
    are listed once. A name must not be that of a submodule, which would take its place once it is imported.

    Args:
        package: the package's ``__name__``.
        file: its ``__file__``.

    Example:
        >>> from monai_llmboost import inference
        >>> get, names = lazy_names("monai_llmboost.inference", inference.__file__)
        >>> get("Journal")
        <class 'monai_llmboost.inference.journal.Journal'>
    """
    modules = names_for_type_checkers(Path(file))

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get, lambda: sorted({*vars(sys.modules[package]), *modules})


def names_for_type_checkers(file: Path) -> dict[str, str]:
    """Return the names that a file imports below ``if TYPE_CHECKING:``, and the modules that define them."""
    guarded = (
        node
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    imports = (node for block in guarded for node in block.body if isinstance(node, ast.ImportFrom) and node.module)
    return {alias.name: str(node.module) for node in imports for alias in node.names}
