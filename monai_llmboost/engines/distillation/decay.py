# SPDX-License-Identifier: Apache-2.0
"""A weight that falls over a training, for what is only there to help at its beginning."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events


class LinearDecay:
    """Sets a module's ``share`` in each epoch, linearly from 1 in the first to 1 / epochs in the last.

    ``share = 1 - (epoch - 1) / epochs``, of the epoch alone, so that an interrupted run is resumed with the same
    shares.

    Args:
        module: has a number ``share``, such as :class:`monai_llmboost.engines.distillation.BoosterInTraining`.

    Example:
        >>> from types import SimpleNamespace
        >>> module, shares = SimpleNamespace(share=1.0), []
        >>> trainer = Engine(lambda engine, batch: shares.append(module.share))
        >>> LinearDecay(module).attach(trainer)
        >>> _ = trainer.run([0], max_epochs=4)
        >>> shares
        [1.0, 0.75, 0.5, 0.25]
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the share of the epoch that begins."""
        if engine.state.max_epochs is None:
            raise ValueError("a share that decays needs the number of epochs: give it to the trainer")
        self.module.share = 1 - (engine.state.epoch - 1) / engine.state.max_epochs
