# SPDX-License-Identifier: Apache-2.0
"""Whether a booster fits a joint, and what it does not need there."""

from __future__ import annotations

from torch import nn


def check_width(booster: nn.Module, channels: int, what: str) -> None:
    """Check the features of a booster's tokens.

    Args:
        booster: the booster; without an attribute ``channels`` nothing is checked.
        channels: features of a token at the joint, C.
        what: the network or joint, for the message.

    Raises:
        ValueError: the booster takes tokens of another width.
    """
    own = getattr(booster, "channels", channels)
    if own != channels:
        raise ValueError(f"a booster with channels={own} does not fit {what}: give it channels={channels}")


def for_one_token(booster: nn.Module) -> nn.Module:
    """Return a booster for sequences of one token (PiFi, Kim et al. 2025, arXiv:2506.07424).

    The attention of one token to itself is its value, so queries and keys have no effect. A frozen block no longer
    keeps them in memory; trained ones stay, so that checkpoints do not depend on the position.
    """
    shrink = getattr(booster, "keep_one_token", None)
    if shrink is not None:
        shrink()
    return booster
