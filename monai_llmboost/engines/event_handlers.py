# SPDX-License-Identifier: Apache-2.0
"""Access to an Ignite engine's list of handlers, for which Ignite has no public interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ignite.engine import Engine, Events


def owners_of(event: Events, *engines: Engine) -> Iterator[Any]:
    """Yield the objects whose methods are handlers of an event, in the order of the handlers."""
    for engine in engines:
        for function, *_ in engine._event_handlers.get(event, ()):
            if hasattr(function, "__self__"):
                yield function.__self__


def call_first_on_failure(engine: Engine, clean_up: Callable[[], None]) -> None:
    """Call a function when an engine fails, before other handlers of the error.

    Another handler usually re-raises the error, so the handlers after it are not called. Without another handler, this
    one re-raises the error, because an engine suppresses an error that has handlers.
    """

    def failed(engine: Engine, error: BaseException) -> None:
        clean_up()
        if listeners[-1] is own:  # no other handler follows that could re-raise the error
            raise error

    engine.add_event_handler(Events.EXCEPTION_RAISED, failed)
    listeners = engine._event_handlers[Events.EXCEPTION_RAISED]
    own = listeners.pop()
    listeners.insert(0, own)
