# SPDX-License-Identifier: Apache-2.0
"""Handlers by name, so that a config can change, add or disable one without its position in a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine


class NamedHandlers:
    """Attaches several handlers to an engine, in order.

    A bundle's ``train#handlers`` must be a list because MONAI's experiment tracking appends to it. This class is its
    only entry, and the handlers are in a dictionary, so that an overlay can refer to them by name.

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
