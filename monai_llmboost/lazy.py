# SPDX-License-Identifier: Apache-2.0
"""Names of a package that are imported on first use (PEP 562), so that a part can be imported without the rest."""

from __future__ import annotations

import dis
import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package, which import a name when it is first used.

    The names are those that the package itself imports for type checkers, below ``if TYPE_CHECKING:``, so that they are
    listed once. A name must not be that of a submodule, which would take its place once it is imported.

    Args:
        package: the package's ``__name__``.

    Example:
        >>> get, names = lazy_names("monai_llmboost.inference")
        >>> get("Journal")
        <class 'monai_llmboost.inference.journal.Journal'>
    """
    modules = names_for_type_checkers(package)

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get, lambda: sorted({*vars(sys.modules[package]), *modules})


def names_for_type_checkers(package: str) -> dict[str, str]:
    """Return the names that an imported package has for type checkers only, and the modules that define them.

    They are read from its compiled code, which exists without its source too, as in an installation by PyInstaller.
    """
    loaded = sys.modules[package]
    loader: Any = None if loaded.__spec__ is None else loaded.__spec__.loader
    own, names, module = f"{package.partition('.')[0]}.", {}, ""
    for instruction in dis.get_instructions(loader.get_code(package)):
        if instruction.opname == "IMPORT_NAME":
            module = instruction.argval
        elif instruction.opname == "IMPORT_FROM" and module.startswith(own) and instruction.argval not in vars(loaded):
            names[instruction.argval] = module
    return names
