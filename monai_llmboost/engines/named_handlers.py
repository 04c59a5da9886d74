# SPDX-License-Identifier: Apache-2.0
"""Handlers by name, so that a config changes, adds or disables one without counting places in a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine


class NamedHandlers:
    """Attaches several handlers to an engine, in order.

    A bundle's ``train#handlers`` must be a list, for MONAI's experiment tracking appends to it. This is its one entry,
    and the handlers themselves are the entries of a dictionary, where an overlay finds them by name.

    Args:
        handlers: by name, each with ``attach``.

    Example:
        >>> from ignite.engine import Engine
        >>> from monai.handlers import StatsHandler
        >>> NamedHandlers({"stats": StatsHandler(output_transform=lambda x: x)}).attach(Engine(lambda engine, batch: 0))
    """

    def __init__(self, handlers: Mapping[str, Any]) -> None:
        self.handlers = dict(handlers)

    def attach(self, engine: Engine) -> None:
        """Attach the handlers to an engine."""
        for handler in self.handlers.values():
            handler.attach(engine)
