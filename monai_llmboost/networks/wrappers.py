# SPDX-License-Identifier: Apache-2.0
"""Wrappers around a network in training (torch.compile, DataParallel, averages), and weight names without them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

# Modules with the network as ``module``; torch.compile has it as ``_orig_mod``.
HOLDERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
COMPILED, HELD = "_orig_mod.", "module."
# Counter of an AveragedModel.
COUNTER = "n_averaged"


def unwrap(network: Any) -> Any:
    """Return the network without its wrappers."""
    while (inner := _inside(network)) is not None:
        network = getattr(network, inner)
    return network


def average_of(network: Any) -> AveragedModel | None:
    """Return the AveragedModel among a network's wrappers; ``None`` if there is none."""
    while (inner := _inside(network)) is not None:
        if isinstance(network, AveragedModel):
            return network
        network = getattr(network, inner)
    return None


def _inside(network: Any) -> str | None:
    """Return the attribute in which a wrapper keeps its network; ``None`` if the module is not a wrapper."""
    if "_orig_mod" in getattr(network, "_modules", {}):
        return "_orig_mod"
    return "module" if isinstance(network, HOLDERS) else None


def plain_names(network: nn.Module) -> dict[str, str]:
    """Map names of weights without wrappers to the names in the network's state dict."""
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
    """Return a network's state dict for a checkpoint, with names without wrappers."""
    state = unwrap(network).state_dict()
    return {plain: state[own] for plain, own in plain_names(unwrap(network)).items()}


def plain_state(state: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a state dict without the prefixes of wrappers, unless they are part of the expected names.

    Args:
        state: state dict written by any version: ``torch.compile`` of a network or its parts adds ``_orig_mod.``, the
            other wrappers add the prefix ``module.``.
        names: expected names.
    """
    state = {name if name in names else name.replace(COMPILED, ""): value for name, value in state.items()}
    while not any(name in names for name in state):
        inner = {name.removeprefix(HELD): value for name, value in state.items() if name.startswith(HELD)}
        if len(inner) < len(state) - (COUNTER in state) or not inner:
            break
        state = inner
    return state


def load_plain(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict strictly, independent of wrappers around the network that wrote it or around this one.

    Raises:
        RuntimeError: weights that are missing, unexpected or of another size; see ``nn.Module.load_state_dict``.
    """
    network = unwrap(network)
    names = plain_names(network)
    plain = plain_state(state, names)
    network.load_state_dict({names.get(name, name): value for name, value in plain.items()}, strict=True)


def weight_differences(own: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """Return as text the differences between the weights of a network and of a file."""
    kinds = {
        "only the file has": sorted(state.keys() - own.keys()),
        "only this network has": sorted(own.keys() - state.keys()),
        "of another size are": sorted(k for k in own.keys() & state.keys() if _shape(own[k]) != _shape(state[k])),
    }
    return ", ".join(
        f"{words} {len(names)} weights ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''})"
        for words, names in kinds.items()
        if names
    )


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)  # extra state of a module need not be a tensor
