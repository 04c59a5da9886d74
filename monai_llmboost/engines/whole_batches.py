# SPDX-License-Identifier: Apache-2.0
"""A handler that lets MONAI's handlers find the loss of a trainer that does not decollate its batches."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events


class WholeBatches:
    """Puts the output of a trainer with ``decollate=False`` into a list, as its only item.

    MONAI's handlers, including its experiment tracking, read the loss with ``from_engine(["loss"], first=True)``, which
    expects a decollated batch. Decollating only for the loss splits each batch into cases and synchronizes the device.
    The engine's metrics still receive the original output. Attach this handler before the handlers that log the loss.

    Example:
        >>> from ignite.engine import Engine
        >>> trainer = Engine(lambda engine, batch: {"loss": batch})
        >>> WholeBatches().attach(trainer)
        >>> trainer.run([0.5]).output
        [{'loss': 0.5}]
    """

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.wrap)

    def wrap(self, engine: Engine) -> None:
        """Wrap the output of one batch."""
        state: Any = engine.state
        state.output = [state.output]
