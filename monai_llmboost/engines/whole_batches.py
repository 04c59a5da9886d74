# SPDX-License-Identifier: Apache-2.0
"""The output of a trainer that leaves its batches whole, where MONAI's handlers look for the loss."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events


class WholeBatches:
    """Puts the output of a trainer with ``decollate=False`` into a list, as its only item.

    MONAI's handlers, its experiment tracking among them, read the loss by ``from_engine(["loss"], first=True)``, which
    knows the first item of a decollated batch but not the batch as it is. Decollating only for that takes a batch apart
    case by case and waits for the device. The engine's metrics still see the batch as it is. Attach it before the
    handlers that log the loss.

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
