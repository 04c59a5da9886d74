# SPDX-License-Identifier: Apache-2.0
"""Learning rates of a booster's weights, which do not depend on the width of its block."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from monai_llmboost.boosters.residual import ResidualBooster


def parameter_groups(network: nn.Module, lr: float, booster_factor: float = 0.1) -> list[dict[str, Any]]:
    """Return the parameter groups of a network with boosters, for an optimizer.

    An optimizer such as Adam moves each weight by about the learning rate, whatever its gradient. A token after F_D is
    a sum over D features, so one step at the network's rate moves it by up to ``lr * D`` times their mean size: with a
    wide block, by more than its own size. So the rates are

    - ``lr`` for the network;
    - ``booster_factor * lr`` for F_E, the gate and the projected skip;
    - ``booster_factor * lr * min(1, C / D)`` for F_D, and for trained weights of a block, which are as wide.

    A scheduler that multiplies the rates keeps their ratios.

    Args:
        network: a network with any number of :class:`ResidualBooster`, also wrapped (compiled, in parallel), or none.
        lr: learning rate of the network.
        booster_factor: rate of the boosters relative to the network; 1 is the rate of the network, but for C / D.

    Returns:
        Groups with ``params`` and ``lr``; the first one is the network around the boosters, if it has weights.

    Raises:
        ValueError: a rate or factor that is not above 0.

    Example:
        >>> import torch
        >>> from monai_llmboost.boosters import mlp_booster
        >>> network = nn.Sequential(nn.Linear(8, 64), mlp_booster(64, like="embedded"))
        >>> optimizer = torch.optim.AdamW(parameter_groups(network, lr=1e-3), weight_decay=0.05)
        >>> [(f"{group['lr']:g}", len(group["params"])) for group in optimizer.param_groups]
        [('0.001', 2), ('0.0001', 1), ('2.5e-05', 1)]
    """
    for name, value in (("learning_rate", lr), ("booster_lr_factor", booster_factor)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a number above 0, not {value!r}: give --{name} 0.1, for instance")
    rates: dict[int, float] = {}
    for booster in network.modules():
        if isinstance(booster, ResidualBooster):
            own = booster_factor * lr
            narrow = own * min(1.0, booster.channels / booster.width)
            wide_parts = {id(p) for part in (booster.decode, booster.block) for p in part.parameters()}
            rates |= {id(p): narrow if id(p) in wide_parts else own for p in booster.parameters()}
    groups: dict[float | None, list[nn.Parameter]] = {None: []}
    for parameter in network.parameters():
        groups.setdefault(rates.get(id(parameter)), []).append(parameter)
    return [{"params": several, "lr": lr if rate is None else rate} for rate, several in groups.items() if several]
