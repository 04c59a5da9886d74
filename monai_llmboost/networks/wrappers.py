# SPDX-License-Identifier: Apache-2.0
"""Wrappers around a network in training (torch.compile, DataParallel, averages), and names of weights without it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
    while (inner := _inside(network)) is not None:
        network = getattr(network, inner)
    return network


def average_of(network: Any) -> AveragedModel | None:
    """Return the average among a network's wrappers, whose count of networks is no weight of any."""
    while (inner := _inside(network)) is not None:
        if isinstance(network, AveragedModel):
            return network
        network = getattr(network, inner)
    return None


def _inside(network: Any) -> str | None:
    """Return the name under which a wrapper holds its network; ``None`` for what is no wrapper."""
    if "_orig_mod" in getattr(network, "_modules", {}):
        return "_orig_mod"
    return "module" if isinstance(network, HOLDERS) else None


def plain_names(network: nn.Module) -> dict[str, str]:
    """Return the names in a network's state dict, by those that they have without wrappers around its parts."""
    wrappers = {name: inner for name, part in network.named_modules() if name and (inner := _inside(part))}
    names = {}
    for own in network.state_dict():
        plain = own
        for name in sorted(wrappers, key=len, reverse=True):
            if own.startswith(inside := f"{name}.{wrappers[name]}."):
                plain = f"{name}.{plain.removeprefix(inside)}" if plain.startswith(inside) else plain
        names[plain] = own
    return names


def saved_state(network: nn.Module) -> dict[str, Any]:
    """Return a network's state dict as a checkpoint holds it: without wrappers around the network or its parts."""
    state = unwrap(network).state_dict()
    return {plain: state[own] for plain, own in plain_names(unwrap(network)).items()}


def plain_state(state: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a state dict without what wrappers added to its names, as far as a network has no such names.

    Args:
        state: as any version wrote it: ``torch.compile`` of a network or of a part of it adds ``_orig_mod.``, the other
            wrappers add ``module.`` in front.
        names: those that are expected.
    """
    state = {name if name in names else name.replace(COMPILED, ""): value for name, value in state.items()}
    while not any(name in names for name in state):
        inner = {name.removeprefix(HELD): value for name, value in state.items() if name.startswith(HELD)}
        if len(inner) < len(state) - (COUNTER in state) or not inner:
            break
        state = inner
    return state


def load_plain(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict strictly, whatever wrappers were around the network that wrote it or are around this one.

    Raises:
        RuntimeError: weights that are missing, unexpected or of another size; see ``nn.Module.load_state_dict``.
    """
    network = unwrap(network)
    names = plain_names(network)
    plain = plain_state(state, names)
    network.load_state_dict({names.get(name, name): value for name, value in plain.items()}, strict=True)
