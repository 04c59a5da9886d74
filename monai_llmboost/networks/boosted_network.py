# SPDX-License-Identifier: Apache-2.0
"""The base of this package's networks: a joint for a booster in ``forward``, and the tokens that are read there."""

from __future__ import annotations

from torch import Tensor, nn

from monai_llmboost.arguments import check_choice
from monai_llmboost.artifacts.signature import Signature
from monai_llmboost.boosters.readout.choose import takes_read
from monai_llmboost.networks.fit import check_width, for_one_token
from monai_llmboost.networks.parallel import ignore_frozen_in_ddp
from monai_llmboost.networks.wrappers import unwrap

# What to do when a checkpoint was made with another network.
REMEDY = "give the options that it was trained with, such as --network resnet for a ResNet3D"


class BoostedNetwork(nn.Module):
    """A network with a joint for a booster: ``logits = forward_head(booster(forward_features(volumes)))``.

    A subclass provides the layers and the two functions around the booster. Its constructor ends with a call of
    :meth:`make_joint`. :func:`monai_llmboost.networks.boost` can place another booster there, at any position.

    Example:
        >>> class Tokens(BoostedNetwork):
        ...     def __init__(self, booster):
        ...         super().__init__()
        ...         self.make_joint("Tokens", hidden_size=4, num_layers=0, pool="mean")
        ...         self.place_booster(booster, "last")
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
    # Positions of a booster, and the one that a signature leaves out, because earlier checkpoints do not contain it.
    booster_positions: tuple[str, ...] = ("last", "middle", "head")
    unnamed_position = "last"

    def make_joint(self, text: str, hidden_size: int, num_layers: int, pool: str) -> None:
        """Store what :meth:`place_booster` needs.

        Args:
            text: options of the network that change the output but not the shapes of the weights, for checkpoints.
            hidden_size: features of a token, C.
            num_layers: number of layers around the booster.
            pool: ``"cls"`` reads the CLS token, ``"mean"`` the mean over the tokens.
        """
        self.text, self.joint_channels, self.joint_layers = text, hidden_size, num_layers
        self.read_mean = pool == "mean"

    def place_booster(self, booster: nn.Module | None, position: str) -> None:
        """Register a booster, or an identity without one, and its position.

        Args:
            booster: maps tokens (B, N, C) to tokens (B, N, C); ``None`` for the plain network.
            position: ``"last"``, after the last layer; ``"middle"``, after the first half of the layers; ``"head"``,
                on the pooled token, where a frozen block does not keep queries and keys in memory.

        Raises:
            ValueError: a booster that is no module or of another width, an unknown position, too few layers for the
                middle, or a causal booster that hides all other tokens from the CLS token.
        """
        check_choice(f"position of a {type(self).__name__}", position, self.booster_positions)
        self.position = position
        self.num_before = layers_before_booster(position, self.joint_layers)
        self.boosts_between, self.boosts_pooled = position == "middle", position == "head"
        first_only = position == "last" and not self.read_mean
        if booster is not None:
            if not isinstance(booster, nn.Module):
                raise ValueError(
                    f"the booster of a {type(self).__name__} must be a module, not {type(booster).__name__}: it places "
                    "the booster itself, so leave out the overlay boost"
                )
            check_width(booster, self.joint_channels, f"a network with hidden_size={self.joint_channels}")
            _check_sees_all(booster, first_only)
            booster = for_one_token(booster) if position == "head" else booster
        self.booster = nn.Identity() if booster is None else booster
        # If only the CLS token is read, a booster that can compute only this token is nearly free.
        self.reads_cls = first_only and takes_read(unwrap(self.booster))
        named = booster is not None and position != self.unnamed_position
        place = f", booster at position {position}" if named else ""
        self.signature = Signature("network", self.text + place, REMEDY)
        ignore_frozen_in_ddp(self)

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


def _check_sees_all(booster: nn.Module, first_only: bool) -> None:
    """Raise ValueError for a causal booster of which only the first token is read."""
    if first_only and getattr(getattr(booster, "block", None), "causal", False):
        raise ValueError(
            "a causal block after the last layer hides all other tokens from the CLS token, which stands first: use "
            "pool mean, or another position"
        )


def layers_before_booster(position: str, num_layers: int) -> int:
    """Return the number of layers before a booster at ``position``; the others run after it.

    Raises:
        ValueError: fewer than two layers for the middle.
    """
    if position != "middle":
        return num_layers
    if num_layers < 2:
        raise ValueError(
            f"position 'middle' needs at least 2 layers around the booster, not {num_layers}: take more layers, or "
            "position 'last'"
        )
    return num_layers // 2


def describe_transformer(
    network: nn.Module, patch_size: tuple[int, ...], num_heads: int, pool: str, stem_channels: int = 0
) -> str:
    """Return the options of a transformer that change the output but not the shapes of the weights."""
    stem = f", stem of {stem_channels} channels" if stem_channels else ""
    return f"{type(network).__name__}, patches of {patch_size}, {num_heads} heads, pool {pool}{stem}"
