# SPDX-License-Identifier: Apache-2.0
"""Placement of a booster in a network: its position, whether it fits, and the tokens that are read."""

from __future__ import annotations

from torch import Tensor, nn

from monai_llmboost.arguments import check_choice
from monai_llmboost.artifacts.signature import Signature
from monai_llmboost.boosters.readout.choose import takes_read
from monai_llmboost.networks.wrappers import unwrap

POSITIONS = ("last", "middle", "head")
# What to do when a checkpoint was made with another network.
REMEDY = "give the options that it was trained with, such as --network resnet for a ResNet3D"


class BoostedNetwork(nn.Module):
    """A network with a booster: ``logits = forward_head(booster(forward_features(volumes)))``.

    A subclass provides the layers and the two functions around the booster. Its constructor ends with a call of
    :meth:`place_booster`.

    Example:
        >>> class Tokens(BoostedNetwork):
        ...     def __init__(self, booster):
        ...         super().__init__()
        ...         self.place_booster(booster, hidden_size=4, num_layers=0, position="last", pool="mean")
        ...
        ...     def forward_features(self, x):
        ...         return x
        ...
        ...     def forward_head(self, x):
        ...         return self.pool_tokens(x)
        >>> Tokens(booster=None)(torch.zeros(2, 3, 4)).shape
        torch.Size([2, 4])
    """

    # So that scripting skips the branches that are not taken.
    __constants__ = ("boosts_between", "boosts_pooled", "reads_cls")

    def place_booster(
        self, booster: nn.Module | None, hidden_size: int, num_layers: int, position: str, pool: str
    ) -> None:
        """Register a booster, or an identity without one, and its position.

        Args:
            booster: maps tokens (B, N, C) to tokens (B, N, C); ``None`` for the plain network.
            hidden_size: features of a token, C.
            num_layers: number of layers around the booster.
            position: ``"last"``, after the last layer; ``"middle"``, after the first half of the layers; ``"head"``,
                on the pooled token.
            pool: ``"cls"`` reads the CLS token, ``"mean"`` the mean over the tokens.

        Raises:
            ValueError: an unknown position, too few layers for the middle, a booster of another width, or a causal
                booster that hides all other tokens from the CLS token.
        """
        self.read_mean = pool == "mean"
        self.num_before = layers_before_booster(position, num_layers)
        self.boosts_between, self.boosts_pooled = position == "middle", position == "head"
        self.booster = nn.Identity() if booster is None else check_booster_fits(booster, hidden_size, position, pool)
        # If only the CLS token is read, a booster that can compute only this token is nearly free.
        self.reads_cls = position == "last" and pool == "cls" and takes_read(unwrap(self.booster))

    def pool_tokens(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, C) to one token per case, (B, C)."""
        return x.mean(dim=1) if self.read_mean else x[:, 0]

    def forward_features(self, x: Tensor) -> Tensor:
        """Map volumes (B, channels, S0, S1, S2) to the input tokens of the booster, (B, N, C)."""
        raise NotImplementedError

    def forward_head(self, x: Tensor) -> Tensor:
        """Map the output tokens of the booster, (B, N, C), to logits (B, num_classes)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map volumes (B, in_channels, S0, S1, S2) to raw logits (B, num_classes)."""
        tokens = self.forward_features(x)
        boosted = self.booster(tokens, 1) if self.reads_cls else self.booster(tokens)
        return self.forward_head(boosted)


def check_booster_fits(booster: nn.Module, hidden_size: int, position: str, pool: str) -> nn.Module:
    """Return the booster if it fits the network.

    Raises:
        ValueError: the booster takes tokens of another width, or hides all other tokens from the CLS token.
    """
    channels = getattr(booster, "channels", hidden_size)
    if channels != hidden_size:
        raise ValueError(
            f"a booster with channels={channels} does not fit a network with hidden_size={hidden_size}: give it "
            f"channels={hidden_size}"
        )
    if position == "last" and pool == "cls" and getattr(getattr(booster, "block", None), "causal", False):
        raise ValueError(
            "a causal block after the last layer hides all other tokens from the CLS token, which stands first: use "
            "pool mean, or another position"
        )
    return booster


def layers_before_booster(position: str, num_layers: int) -> int:
    """Return the number of layers before a booster at ``position``; the others run after it.

    Raises:
        ValueError: an unknown position, or fewer than two layers for the middle.
    """
    check_choice("position", position, POSITIONS)
    if position != "middle":
        return num_layers
    if num_layers < 2:
        raise ValueError(
            f"position 'middle' needs at least 2 layers around the booster, not {num_layers}: take more layers, or "
            "position 'last'"
        )
    return num_layers // 2


def network_signature(
    network: nn.Module,
    patch_size: tuple[int, ...],
    num_heads: int,
    pool: str,
    booster: nn.Module | None = None,
    position: str = "last",
    stem_channels: int = 0,
) -> Signature:
    """Return the signature for checkpoints: options that change the output but not the shapes of the weights.

    The position is left out for a plain network and for a booster after the last layer.
    """
    stem = f", stem of {stem_channels} channels" if stem_channels else ""
    place = "" if booster is None or position == "last" else f", booster at position {position}"
    return Signature(
        "network",
        f"{type(network).__name__}, patches of {patch_size}, {num_heads} heads, pool {pool}{stem}{place}",
        REMEDY,
    )
