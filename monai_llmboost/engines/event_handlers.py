# SPDX-License-Identifier: Apache-2.0
"""What Ignite's engines have no public interface for: the list of their handlers, and a first place in it."""

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
    """Call a function when an engine fails, before its other handlers.

    Another handler usually raises the error again, and those after it are not called. With no other handler it is
    raised here, since an engine swallows an error that has handlers.
    """

    def failed(engine: Engine, error: BaseException) -> None:
        clean_up()
        if listeners[-1] is own:  # the others after it, if any, are ours too and did not raise
            raise error

    engine.add_event_handler(Events.EXCEPTION_RAISED, failed)
    listeners = engine._event_handlers[Events.EXCEPTION_RAISED]
    own = listeners.pop()
    listeners.insert(0, own)
