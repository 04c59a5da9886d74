# SPDX-License-Identifier: Apache-2.0
"""Insertion of a booster into any network, after or before a named module: tokens, feature maps, pooled vectors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Optional

from torch import Tensor, nn

from monai_llmboost.networks.boosted_network import BoostedNetwork
from monai_llmboost.networks.fit import check_width, for_one_token
from monai_llmboost.networks.joints import DEEPEST, POOLED, Joint, find_joint
from monai_llmboost.networks.trial import Features, example_of, see_joint
from monai_llmboost.networks.wrappers import load_plain, plain_state, unwrap, weight_differences

logger = logging.getLogger("monai_llmboost")
INNER, BOOSTER, COUNTER = "inner.", "booster.", ".num_batches_tracked"


class BoostedModule(nn.Module):
    """A module of a network with a booster after it, or before it; :func:`boost` makes it.

    In a state dict, the weights of the module have the names that they have in the plain network, and those of the
    booster are ``booster.*`` next to them. (``named_parameters`` has them under ``inner.*``.)

    Args:
        inner: the module.
        booster: maps tokens (B, N, C) to tokens (B, N, C).
        features: form of the features at the joint.
        before: place the booster before the module, on its input, instead of after it.

    Example:
        >>> from monai_llmboost.boosters import mlp_booster
        >>> module = BoostedModule(nn.Conv3d(1, 8, 3), mlp_booster(8, like="random"), Features("map", 8))
        >>> module(torch.zeros(2, 1, 5, 5, 5)).shape, list(module.state_dict())[:2]
        (torch.Size([2, 8, 3, 3, 3]), ['weight', 'bias'])
    """

    # So that scripting skips the branches that are not taken.
    __constants__ = ("before", "boosts_tokens", "takes_two")

    def __init__(self, inner: nn.Module, booster: nn.Module, features: Features, before: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.booster = booster
        self.before = before
        self.form = features.form
        self.boosts_tokens = features.form == "tokens"
        self.takes_two = features.inputs == 2
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
        if self.boosts_tokens:
            return self.booster(x)
        if x.is_contiguous():
            tokens = x.reshape(x.shape[0], x.shape[1], -1).transpose(1, 2)  # (B, voxels, C)
            return self.booster(tokens).transpose(1, 2).contiguous().view(x.shape)
        last = x.movedim(1, -1)  # (B, *spatial, C), as the memory format channels_last has it
        tokens = last.reshape(x.shape[0], -1, x.shape[1])
        return self.booster(tokens).reshape(last.shape).movedim(-1, 1)

    def extra_repr(self) -> str:
        """Return the form and the place, for ``print(network)``."""
        return f"booster {'before' if self.before else 'after'} the module, form {self.form}"


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


def boost(
    network: nn.Module,
    booster: nn.Module | Callable[[int], nn.Module] | None,
    at: str | None = None,
    before: bool = False,
    example: Tensor | None = None,
) -> nn.Module:
    """Insert a booster into a network, in place, and return the network.

    The features at the joint give the form: a feature map (B, C, *spatial) is read as one token per voxel, (B, N, C);
    tokens (B, N, C) stay; a vector (B, C), or the output of a global pooling layer, is a sequence of one token (PiFi,
    Kim et al. 2025, arXiv:2506.07424). One token needs no queries and keys, so a frozen block is replaced by a copy
    without them, which shares the other weights.

    With the booster's default start, the network computes the same as before until it is trained. The names in its
    state dict stay, and those of the booster are added, so that weights of the plain network load before or after:
    :func:`load_plain_weights`.

    Several boosters may stand in one network, each at another joint. Boost a network before it is wrapped (DDP,
    ``torch.compile``) and before its optimizer is made.

    Args:
        network: any network; a network of this package places the booster itself, see its ``position``.
        booster: maps tokens (B, N, C) to tokens (B, N, C), such as :class:`monai_llmboost.boosters.ResidualBooster`; or
            a function that makes one for C channels; ``None`` leaves the network as it is.
        at: name of a module, whose output is boosted; ``"deepest"`` or ``None`` for the deepest features and
            ``"pooled"`` for the pooled vector, in the networks of :data:`monai_llmboost.networks.joints.JOINTS`.
        before: boost the input of that module instead of its output.
        example: input of the network for a trial run, which checks the joint; ``None`` tries zeros of usual sizes.

    Raises:
        ValueError: no such module or joint; a booster of another width; a booster is there already; the module is not
            called once, returns no single tensor or does not affect the output; no example fits the network.
        TypeError: the booster is no module and no function that makes one.

    Example:
        >>> from functools import partial
        >>> from monai.networks.nets import resnet18
        >>> from monai_llmboost.boosters import ResidualBooster
        >>> from monai_llmboost.llm import load_block
        >>> network = resnet18(spatial_dims=3, n_input_channels=1, num_classes=2)
        >>> network = boost(network, partial(ResidualBooster, block=load_block("embedded")), at="pooled")
        >>> network(torch.zeros(2, 1, 64, 64, 64)).shape
        torch.Size([2, 2])
    """
    if unwrap(network) is not network:
        raise ValueError(f"the network is wrapped in {type(network).__name__}: boost it first, then wrap it")
    if booster is None:
        return network
    if not isinstance(booster, nn.Module) and not callable(booster):
        raise TypeError(f"the booster is {type(booster).__name__}: give a module, or a function of the channels")
    if isinstance(network, BoostedNetwork):
        return _place(network, booster, at, before)
    modules = plain_modules(network)
    joint = find_joint(network, modules, at, before)
    inner = modules[joint.name]
    _check_free(network, joint, inner)
    x = example_of(network) if example is None else example
    features = see_joint(network, joint, inner, x, getattr(booster, "channels", None))
    made = booster if isinstance(booster, nn.Module) else booster(features.channels)
    _check_made(made)
    check_width(made, features.channels, f"the {features.form} of {features.channels} channels at {joint.name!r}")
    if features.form == "vector":
        made = for_one_token(made)
    if x.device.type != "meta":
        made.to(x.device)
    boosted = BoostedModule(inner, nn.Identity(), features, joint.before)
    _replace(network, inner, boosted)
    try:
        # The network may also hold the module where it cannot be replaced.
        see_joint(network, joint, boosted, x, features.channels)
    except ValueError:
        _replace(network, boosted, inner)
        raise
    boosted.booster = made
    boosted.train(inner.training)
    place = f"{'before' if joint.before else 'after'} {joint.name}"
    logger.info(f"booster {place} of {type(network).__name__}: {features.form} of {features.channels} channels")
    return network


def _place(network: BoostedNetwork, booster: Any, at: str | None, before: bool) -> nn.Module:
    """Place a booster in a network that has its own joint."""
    if not isinstance(network.booster, nn.Identity):
        raise ValueError(f"this {type(network).__name__} has a booster: use unboost first")
    if before:
        raise ValueError(f"before has no effect in a {type(network).__name__}: choose a position by at")
    made = booster if isinstance(booster, nn.Module) else booster(network.joint_channels)
    _check_made(made)
    position = {POOLED: "head", DEEPEST: "last", None: network.position}.get(at, at)
    network.place_booster(made, str(position))
    return network


def _check_made(made: Any) -> None:
    if not isinstance(made, nn.Module):
        raise TypeError(f"the booster is {type(made).__name__}: let the function return a module")


def _check_free(network: nn.Module, joint: Joint, inner: nn.Module) -> None:
    """Raise ValueError if a module cannot take a booster, as far as this is known without running it."""
    if isinstance(inner, BoostedModule):
        raise ValueError(f"{joint.name!r} has a booster: use unboost(network, at={joint.name!r}) first")
    if any(inner is part for booster in _boosted(network) for part in booster.booster.modules()):
        raise ValueError(f"{joint.name!r} is a part of a booster: name a module of the network itself")
    if f"{BOOSTER[:-1]}" in inner._modules:
        raise ValueError(
            f"{joint.name!r} has a module of its own named 'booster': name a module around it or inside it"
        )


def unboost(network: nn.Module, at: str | None = None) -> nn.Module:
    """Remove the boosters from a network, in place, and return the plain network with its trained weights.

    Args:
        network: a network, boosted or not.
        at: name of the boosted module; ``None`` removes all boosters.

    Raises:
        ValueError: there is no booster at that module.

    Example:
        >>> from monai.networks.nets import BasicUNet
        >>> from monai_llmboost.boosters import mlp_booster
        >>> network = BasicUNet(spatial_dims=3, features=(8, 8, 8, 8, 16, 8))
        >>> names = list(network.state_dict())
        >>> list(unboost(boost(network, mlp_booster(16, like="random"))).state_dict()) == names
        True
    """
    if isinstance(network, BoostedNetwork):
        network.place_booster(None, network.position)
        return network
    boosted = _boosted(network)
    if at is not None:
        name = find_joint(network, plain_modules(network), at, before=False).name
        boosted = [module for module in boosted if module is plain_modules(network)[name]]
        if not boosted:
            raise ValueError(f"there is no booster at {name!r}: leave out at to remove all boosters")
    for module in boosted:
        _replace(network, module, module.inner)
    return network


def load_plain_weights(network: nn.Module, state: Mapping[str, Any]) -> nn.Module:
    """Load weights of the plain network into a boosted one, strictly but for the boosters, and return the network.

    Args:
        network: a network with boosters, or without.
        state: state dict of the plain network; prefixes of wrappers, such as ``module.``, are removed.

    Raises:
        ValueError: weights that are missing, unexpected or of another size.

    Example:
        >>> from monai.networks.nets import BasicUNet
        >>> from monai_llmboost.boosters import mlp_booster
        >>> plain, network = (BasicUNet(spatial_dims=3, features=(8, 8, 8, 8, 16, 8)) for _ in range(2))
        >>> network = load_plain_weights(boost(network, mlp_booster(16, like="random")), plain.state_dict())
        >>> x = torch.rand(1, 1, 32, 32, 32)
        >>> torch.equal(plain.eval()(x), network.eval()(x))
        True
    """
    if isinstance(network, BoostedNetwork):
        return _load_around(network, state)
    own = network.state_dict()
    modules = plain_modules(network)
    prefixes = tuple(f"{name}.{BOOSTER}" for name, module in modules.items() if isinstance(module, BoostedModule))
    added = {name: value for name, value in own.items() if name.startswith(prefixes)}
    given = plain_state(state, own.keys() - added.keys())
    # Old files do not contain the counters of batch norms, and torch sets them to zero.
    left_out = {name for name in own if name.endswith(COUNTER) and name not in given} | added.keys()
    expected = {name: value for name, value in own.items() if name not in left_out}
    if differences := weight_differences(expected, given):
        raise ValueError(f"these are no weights of the plain {type(network).__name__}: {differences}")
    network.load_state_dict({**added, **given}, strict=True)
    return network


def _load_around(network: BoostedNetwork, state: Mapping[str, Any]) -> nn.Module:
    """Load weights of the plain network into a network that names its booster's position in its signature."""
    booster = None if isinstance(network.booster, nn.Identity) else network.booster
    network.place_booster(None, network.position)
    try:
        load_plain(network, state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"these are no weights of the plain {type(network).__name__}: {reason}") from error
    finally:
        network.place_booster(booster, network.position)
    return network


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


def _boosted(network: nn.Module) -> list[BoostedModule]:
    return [module for module in network.modules() if isinstance(module, BoostedModule)]


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in all places of another one, which a network may hold several times."""
    for parent in network.modules():
        if parent is not new:
            parent._modules.update({name: new for name, module in parent._modules.items() if module is old})
