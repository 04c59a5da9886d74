# SPDX-License-Identifier: Apache-2.0
"""Changes of modules for one forward pass, after which they are as before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

# Buffers of a normalization with running statistics.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def returning(module: nn.Module, outputs: Sequence[Any], check: Callable[[], None]) -> Iterator[None]:
    """Let the first calls of a module return given outputs, and further ones compute theirs."""
    left = deque(outputs)
    own = module.forward
    was_own = "forward" in module.__dict__  # a forward of this module alone, such as one that was wrapped

    def forward(*inputs: Any, **named: Any) -> Any:
        if not left:
            return own(*inputs, **named)
        check()
        return left.popleft()

    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if was_own:
            module.__dict__["forward"] = own
        else:
            del module.__dict__["forward"]


@contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Let normalization in training use the statistics of its batch, and not add them to the running ones."""
    changed = [
        (module, {name: getattr(module, name) for name in STATISTICS})
        for module in network.modules()
        if isinstance(module, _NormBase) and module.training and module.track_running_stats
    ]
    for module, _ in changed:
        for name in STATISTICS:
            setattr(module, name, None)
    try:
        yield
    finally:
        for module, statistics in changed:
            for name, value in statistics.items():
                setattr(module, name, value)
