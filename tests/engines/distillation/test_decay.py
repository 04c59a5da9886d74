# SPDX-License-Identifier: Apache-2.0
"""A share that falls over the epochs of a training."""

from types import SimpleNamespace

import pytest
from ignite.engine import Engine, Events

from monai_llmboost.engines.distillation import LinearDecay


def shares_of(epochs: int, done: int = 0, **named: int) -> list[float]:
    module, shares = SimpleNamespace(share=-1.0), []
    trainer = Engine(lambda engine, batch: shares.append(module.share))
    LinearDecay(module).attach(trainer)

    @trainer.on(Events.STARTED)
    def resume(engine: Engine) -> None:
        engine.state.epoch, engine.state.iteration = done, 2 * done

    trainer.run([0, 0], max_epochs=epochs, **named)
    return shares[::2]


def test_the_share_falls_linearly():
    assert shares_of(1) == [1]
    assert shares_of(4) == [1, 0.75, 0.5, 0.25]


def test_a_resumed_run_has_the_same_shares():
    assert shares_of(5, done=2) == shares_of(5)[2:]


def test_a_training_without_an_end():
    with pytest.raises(ValueError, match="needs the number of epochs"):
        shares_of(None, max_iters=2)  # type: ignore[arg-type]
