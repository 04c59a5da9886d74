# SPDX-License-Identifier: Apache-2.0
"""Insertion of a booster into any network, after or before a named module: tokens, feature maps, pooled vectors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import check_whole
from monai_llmboost.networks.boosted_module import BOOSTER, BoostedModule, plain_modules
from monai_llmboost.networks.boosted_network import BoostedNetwork
from monai_llmboost.networks.fit import check_width, for_one_token
from monai_llmboost.networks.joints import DEEPEST, POOLED, Joint, find_joint
from monai_llmboost.networks.parallel import ignore_frozen_in_ddp
from monai_llmboost.networks.trial import CountedIdentity, Features, calls_without_gradients, example_of, see_joint
from monai_llmboost.networks.wrappers import load_plain, plain_state, unwrap, weight_differences

logger = logging.getLogger("monai_llmboost")
COUNTER = ".num_batches_tracked"


def boost(
    network: nn.Module,
    booster: nn.Module | Callable[[int], nn.Module] | None,
    at: str | None = None,
    before: bool = False,
    example: Tensor | None = None,
    token_stride: int = 1,
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
        token_stride: an approximation for feature maps of many voxels: with a stride s, the booster maps means over
            cells of s voxels along each axis, and what it changes is interpolated and added to the map, see
            :class:`BoostedModule`. The booster is then another one, with s^dims times fewer tokens.

    Raises:
        ValueError: no such module or joint; a booster of another width; a booster is there already; the module is not
            called once, returns no single tensor or does not affect the output; no example fits the network; a stride
            below 1, or for features that are no map.
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
    check_whole("token_stride", token_stride, 1)
    if booster is None:
        return network
    if not isinstance(booster, nn.Module) and not callable(booster):
        raise TypeError(f"the booster is {type(booster).__name__}: give a module, or a function of the channels")
    if any(module is booster for module in network.modules()):
        raise ValueError("this booster stands in the network already: make one for each joint")
    if isinstance(network, BoostedNetwork):
        _check_stride(token_stride, "tokens", f"of a {type(network).__name__}")
        return _place(network, booster, at, before)
    modules = plain_modules(network)
    joint = find_joint(network, modules, at, before)
    inner = modules[joint.name]
    _check_free(network, joint, inner)
    x = example_of(network) if example is None else example
    x = torch.cat([x, x]) if len(x) == 1 else x  # so that the batch differs from other axes of one
    features, plain = see_joint(network, joint, inner, x, getattr(booster, "channels", None))
    _check_stride(token_stride, features.form, f"at {joint.name!r}")
    made = booster if isinstance(booster, nn.Module) else booster(features.channels)
    _check_made(made)
    check_width(made, features.channels, f"the {features.form} of {features.channels} channels at {joint.name!r}")
    if x.device.type != "meta":
        _check_runs(made.to(x.device), features, x)
    stand_in = CountedIdentity()
    boosted = BoostedModule(inner, stand_in, features, joint.before, token_stride)
    _replace(network, inner, boosted)
    try:
        # The network may also hold the module where it cannot be replaced.
        _, changed = see_joint(network, joint, boosted, x, features.channels)
        _check_same(joint, plain, changed, calls_without_gradients(network, stand_in, x))
    except ValueError:
        _replace(network, boosted, inner)
        raise
    made = for_one_token(made) if features.form == "vector" else made
    boosted.booster = made.train(inner.training)
    boosted.training = inner.training  # and not train(), because parts of the module may be in another mode
    place = f"{'before' if joint.before else 'after'} {joint.name}"
    stride = f", token_stride {token_stride}" if token_stride > 1 else ""
    logger.info(f"booster {place} of {type(network).__name__}: {features.form} of {features.channels} channels{stride}")
    return ignore_frozen_in_ddp(network)


def _place(network: BoostedNetwork, booster: Any, at: str | None, before: bool) -> nn.Module:
    """Place a booster in a network that has its own joint."""
    if not isinstance(network.booster, nn.Identity):
        raise ValueError(f"this {type(network).__name__} has a booster: use unboost first")
    if before:
        raise ValueError(f"before has no effect in a {type(network).__name__}: choose a position by at")
    made = booster if isinstance(booster, nn.Module) else booster(network.joint_channels)
    _check_made(made)
    position = {POOLED: "head", DEEPEST: "last", None: network.position}.get(at, at)
    weight = next(network.parameters())
    if not weight.is_meta:
        made.to(weight.device)
    network.place_booster(made.train(network.training), str(position))
    return network


def _check_stride(token_stride: int, form: str, place: str) -> None:
    """Raise ValueError for a stride over features that are no map."""
    if token_stride > 1 and form != "map":
        raise ValueError(
            f"token_stride={token_stride} pools the voxels of a feature map, and the features {place} are "
            f"{'a vector' if form == 'vector' else form}: leave it out, or name a module with a map"
        )


def _check_made(made: Any) -> None:
    if not isinstance(made, nn.Module):
        raise TypeError(f"the booster is {type(made).__name__}: let the function return a module")


def _check_runs(booster: nn.Module, features: Features, example: Tensor) -> None:
    """Raise ValueError unless a booster maps tokens of this width and dtype to tokens of the same shape."""
    count = 1 if features.form == "vector" else 2
    tokens = torch.zeros(1, count, features.channels, device=example.device, dtype=features.dtype)
    try:
        with torch.no_grad():
            shape = booster(tokens).shape
    except Exception as error:  # a booster of a user raises any kind of error
        raise ValueError(
            f"the booster fails on tokens of {features.channels} channels, {features.dtype} ({error}): give it these "
            "channels, and the dtype of the network"
        ) from error
    if shape != tokens.shape:
        raise ValueError(f"the booster maps tokens {list(tokens.shape)} to {list(shape)}: it must keep their shape")


def _check_same(joint: Joint, plain: list[Tensor], changed: list[Tensor], calls: int) -> None:
    """Raise ValueError unless a network computes the same with a module replaced, also without gradients."""
    same = len(plain) == len(changed) and all(
        one.is_meta or torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(plain, changed)
    )
    if not same:
        raise ValueError(
            f"the network computes something else if {joint.name!r} is replaced, so it reads more of it than its "
            "output: name another module"
        )
    if calls != 1:
        raise ValueError(
            f"{joint.name!r} is called {calls} times without gradients, and once with them: name a module around it"
        )


def _check_free(network: nn.Module, joint: Joint, inner: nn.Module) -> None:
    """Raise ValueError if a module cannot take a booster, as far as this is known without running it."""
    if isinstance(inner, BoostedModule):
        raise ValueError(f"{joint.name!r} has a booster: use unboost(network, at={joint.name!r}) first")
    if any(inner is part for booster in _boosted(network) for part in booster.booster.modules()):
        raise ValueError(f"{joint.name!r} is a part of a booster: name a module of the network itself")
    if any(f"{name}.".startswith(BOOSTER) for name in inner._modules):
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
        if at not in (None, network.position):
            raise ValueError(f"there is no booster at {at!r}: leave out at, or give {network.position!r}")
        network.place_booster(None, network.position)
        return network
    for part in network.modules():
        if isinstance(part, BoostedNetwork) and at is None:
            part.place_booster(None, part.position)
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
    if unwrap(network) is not network:
        load_plain_weights(unwrap(network), state)
        return network
    if isinstance(network, BoostedNetwork):
        return _load_around(network, state)
    own = network.state_dict()
    added = {name: own[name] for name in booster_names(network, own)}
    given = plain_state(state, own.keys() - added.keys())
    # Old files do not contain the counters of batch norms, and torch sets them to zero.
    left_out = {name for name in own if name.endswith(COUNTER) and name not in given} | added.keys()
    expected = {name: value for name, value in own.items() if name not in left_out}
    if differences := weight_differences(expected, given):
        raise ValueError(f"these are no weights of the plain {type(network).__name__}: {differences}")
    network.load_state_dict({**added, **given}, strict=True)
    return network


def booster_names(network: nn.Module, names: Iterable[str]) -> set[str]:
    """Return those of the names in a network's state dict that belong to its boosters."""
    modules = plain_modules(network)
    prefixes = [f"{name}.{own}" for name, part in modules.items() if isinstance(part, BoostedModule) for own in BOOSTER]
    prefixes += [f"{name}.booster.".lstrip(".") for name, part in modules.items() if isinstance(part, BoostedNetwork)]
    return {name for name in names if name.startswith(tuple(prefixes))}


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


def _boosted(network: nn.Module) -> list[BoostedModule]:
    return [module for module in network.modules() if isinstance(module, BoostedModule)]


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in all places of another one, which a network may hold several times."""
    for parent in network.modules():
        if parent is not new:
            parent._modules.update({name: new for name, module in parent._modules.items() if module is old})
