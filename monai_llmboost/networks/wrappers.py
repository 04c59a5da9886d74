# SPDX-License-Identifier: Apache-2.0
"""What stands around a network in training (torch.compile, DataParallel, averages), and names of weights without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

# Modules that hold the network as their ``module``; torch.compile holds it as ``_orig_mod``.
HOLDERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
COMPILED, HELD = "_orig_mod.", "module."
# What an AveragedModel counts.
COUNTER = "n_averaged"


def unwrap(network: Any) -> Any:
    """Return the network inside any number of wrappers, or itself."""
    while True:
        if "_orig_mod" in getattr(network, "_modules", {}):
            network = network._orig_mod
        elif isinstance(network, HOLDERS):
            network = network.module
        else:
            return network


def average_of(network: Any) -> AveragedModel | None:
    """Return the average among a network's wrappers, whose count of networks is no weight of any."""
    while unwrap(network) is not network:
        if isinstance(network, AveragedModel):
            return network
        network = network._orig_mod if "_orig_mod" in network._modules else network.module
    return None


def plain_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict by the names that its weights have without wrappers.

    ``torch.compile`` of the network or of a part of it adds ``_orig_mod.``, the others add ``module.`` in front.
    """
    state = {name.replace(COMPILED, ""): value for name, value in state.items()}
    while True:
        names = [name for name in state if name != COUNTER]
        if not names or not all(name.startswith(HELD) for name in names):
            return state
        state = {name.removeprefix(HELD): state[name] for name in names}


def saved_state(network: nn.Module) -> dict[str, Any]:
    """Return a network's state dict as a checkpoint holds it: without wrappers."""
    return plain_state(unwrap(network).state_dict())


def load_plain(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict strictly, whatever wrappers were around the network that wrote it or are around this one.

    Raises:
        RuntimeError: weights that are missing, unexpected or of another size; see ``nn.Module.load_state_dict``.
    """
    network = unwrap(network)
    # Of a network that is compiled in part: the plain names to its own.
    own = {name.replace(COMPILED, ""): name for name in network.state_dict()}
    network.load_state_dict({own.get(name, name): value for name, value in plain_state(state).items()}, strict=True)
