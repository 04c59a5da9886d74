# SPDX-License-Identifier: Apache-2.0
"""A module with a booster after or before it, which keeps the names of the plain network in state dicts."""

from __future__ import annotations

from typing import Any, Optional

from torch import Tensor, nn

from monai_llmboost.artifacts.signature import Signature
from monai_llmboost.networks.token_stride import pool_map, spread_map
from monai_llmboost.networks.trial import Features

INNER = "inner."
# Beginnings of names that are not those of the plain module.
BOOSTER = ("booster.", "booster_place.", "booster_stride.")


class BoostedModule(nn.Module):
    """A module of a network with a booster after it, or before it; :func:`monai_llmboost.networks.boost` makes it.

    In a state dict, the weights of the module have the names that they have in the plain network, and those of the
    booster are ``booster.*`` next to them, with ``booster_place`` for one before the module and ``booster_stride`` for
    one with a stride. (``named_parameters`` has the weights of the module under ``inner.*``.)

    With a token stride s the booster maps means over cells of s voxels along each axis, and what it changes is added to
    the map: ``z = x + up(booster(pool(x)) - pool(x))``, interpolated linearly. This is an approximation, of another
    network than the one with a stride of 1, with s^dims times fewer tokens.

    Args:
        inner: the module.
        booster: maps tokens (B, N, C) to tokens (B, N, C).
        features: form of the features at the joint.
        before: place the booster before the module, on its input, instead of after it.
        token_stride: voxels of a cell along each axis, for feature maps only; 1 for a token per voxel.

    Example:
        >>> from monai_llmboost.boosters import mlp_booster
        >>> module = BoostedModule(nn.Conv3d(1, 8, 3), mlp_booster(8, like="random"), Features("map", 8))
        >>> module(torch.zeros(2, 1, 5, 5, 5)).shape, list(module.state_dict())[:2]
        (torch.Size([2, 8, 3, 3, 3]), ['weight', 'bias'])
    """

    # So that scripting skips the branches that are not taken.
    __constants__ = ("before", "boosts_tokens", "pools", "takes_two")

    def __init__(
        self, inner: nn.Module, booster: nn.Module, features: Features, before: bool = False, token_stride: int = 1
    ) -> None:
        super().__init__()
        self.inner = inner
        self.booster = booster
        self.before = before
        self.form, self.channels = features.form, features.channels
        self.boosts_tokens = features.form == "tokens"
        self.takes_two = features.inputs == 2
        self.token_stride = token_stride
        self.pools = token_stride > 1
        if before:  # weights of a booster after the module would have the same names and shapes
            self.booster_place = Signature("place of the booster", "before the module", "boost with before=True")
        if self.pools:  # the same weights fit any stride
            stride = f"{token_stride} voxels"
            self.booster_stride = Signature("stride of the booster", stride, "give the token_stride of its training")
        self.register_state_dict_post_hook(_name_as_plain)
        self.register_load_state_dict_pre_hook(_name_as_inner)

    def forward(self, x: Tensor, other: Optional[Tensor] = None) -> Tensor:  # noqa: UP045  (as scripting reads it)
        """Run the module and the booster; ``other`` is the second input of a module with two, such as a skip."""
        if self.before:
            x = self.boost(x)
        if self.takes_two:
            if other is None:
                raise ValueError("the module needs a second input, which was not given")
            y = self.inner(x, other)
        else:
            y = self.inner(x)
        return y if self.before else self.boost(y)

    def boost(self, x: Tensor) -> Tensor:
        """Map features to features of the same shape: tokens (B, N, C), maps (B, C, *spatial) or vectors (B, C)."""
        if x.numel() == 0:
            raise ValueError(f"there are no features to boost, their shape is {list(x.shape)}: give larger images")
        if self.pools:
            pooled = pool_map(x, self.token_stride)
            return x + spread_map(self.boost_voxels(pooled) - pooled, x, self.token_stride)
        if self.boosts_tokens:
            return self.booster(x)
        return self.boost_voxels(x)

    def boost_voxels(self, x: Tensor) -> Tensor:
        """Map features (B, C, *spatial) or vectors (B, C) to features of the same shape, each voxel a token."""
        if x.is_contiguous():
            tokens = x.reshape(x.shape[0], x.shape[1], -1).transpose(1, 2)  # (B, voxels, C)
            return self.booster(tokens).transpose(1, 2).contiguous().view(x.shape)
        last = x.movedim(1, -1)  # (B, *spatial, C), as the memory format channels_last has it
        tokens = last.reshape(x.shape[0], -1, x.shape[1])
        return self.booster(tokens).reshape(last.shape).movedim(-1, 1)

    def extra_repr(self) -> str:
        """Return the form and the place, for ``print(network)``."""
        stride = f", token_stride {self.token_stride}" if self.pools else ""
        return f"booster {'before' if self.before else 'after'} the module, form {self.form}{stride}"


def _name_as_plain(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Rename the weights of the module in a state dict as in the plain network, in their order."""
    own = {name: state.pop(name) for name in [name for name in state if name.startswith(prefix)]}
    state.update((prefix + name.removeprefix(prefix).removeprefix(INNER), value) for name, value in own.items())


def _name_as_inner(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the weights of a state dict to the names in a :class:`BoostedModule`."""
    for name in [name for name in state if name.startswith(prefix)]:
        plain = name.removeprefix(prefix)
        if not plain.startswith(BOOSTER):
            state[f"{prefix}{INNER}{plain}"] = state.pop(name)


def plain_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a network by their names in the plain network; boosters are left out.

    A module that stands in several places has several names; one with a booster is the :class:`BoostedModule`.
    """
    found: dict[str, nn.Module] = {}

    def visit(module: nn.Module, name: str) -> None:
        found[name] = module
        inside = module.inner if isinstance(module, BoostedModule) else module
        for child, part in inside._modules.items():
            if part is not None:
                visit(part, f"{name}.{child}" if name else child)

    visit(network, "")
    return found
