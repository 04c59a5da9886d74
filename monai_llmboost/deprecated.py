# SPDX-License-Identifier: Apache-2.0
"""Aliases for moved names, which keep working for one release."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(module: str, names: Mapping[str, str], otherwise: Callable[[str], Any] | None = None) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module that finds moved names and warns about them.

    Args:
        module: the module's ``__name__``.
        names: full dotted new names, by old name.
        otherwise: ``__getattr__`` for other names.

    Example:
        >>> __getattr__ = moved(__name__, {"lora_block": "monai_llmboost.adapters.lora_block"})
    """

    def find(name: str) -> Any:
        if name not in names and otherwise is not None:
            return otherwise(name)
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, new_name = names[name].rpartition(".")
        warnings.warn(f"{module}.{name} is deprecated: use {names[name]}", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(place), new_name)

    return find
