# SPDX-License-Identifier: Apache-2.0
"""Loading of trained weights into a network, with a short error if they do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from monai_llmboost.networks.wrappers import load_plain, plain_state, saved_state, weight_differences

# How torch's messages about weights that do not fit begin; our modules write the other lines.
TORCH_MESSAGES = ("Missing key", "Unexpected key", "size mismatch", "While copying")


def load_trained(network: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Load weights strictly, whether or not the saved network or this one has wrappers.

    Raises:
        ValueError: the weights are from another network; the message lists the differences.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds no weights by their names, but {type(state).__name__}: train again")
    try:
        load_plain(network, state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        own = [line for line in lines if not line.startswith(TORCH_MESSAGES)]
        mine = saved_state(network)
        reason = own[0] if own else weight_differences(mine, plain_state(state, mine))
        raise ValueError(
            f"{path} was trained with other options: {reason}; "
            "give the --dataset, --size, arm, --block and network options of the training"
        ) from error
