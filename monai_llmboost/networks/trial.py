# SPDX-License-Identifier: Apache-2.0
"""A trial run of a network, to see the features at a joint before a booster is placed there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from monai_llmboost.networks.joints import Joint

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Voxels along each axis of an image that many networks accept, in the order in which they are tried.
SIZES = (32, 64, 96, 128, 224, 28, 48, 16)
MOST_VOXELS = 128**3
# Layers whose output has one voxel when their output size is one.
POOLING = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
           nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)  # fmt: skip


@dataclass(frozen=True)
class Features:
    """The features at a joint.

    Args:
        form: ``"map"`` (B, C, *spatial), ``"tokens"`` (B, N, C), or ``"vector"``, (B, C) or a map of one voxel.
        channels: C.
        inputs: number of inputs of the module, 1 or 2.
        dtype: dtype of the features.
    """

    form: str
    channels: int
    inputs: int = 1
    dtype: torch.dtype = torch.float32


def example_of(network: nn.Module) -> Tensor:
    """Return a batch of zeros that a network accepts: one image of a usual size, on the network's device.

    Raises:
        ValueError: none of the sizes in :data:`SIZES` fits, or there is no convolution to show channels and axes.
    """
    first = next((module for module in network.modules() if isinstance(module, CONVOLUTIONS)), None)
    advice = "give one, such as example=torch.zeros(1, 1, 96, 96, 96)"
    if first is None:
        raise ValueError(f"cannot tell what {type(network).__name__} takes, it has no convolution: {advice}")
    if any(is_lazy(parameter) for parameter in network.parameters()):
        raise ValueError(f"{type(network).__name__} has lazy layers, whose shapes are not known yet: {advice}")
    axes = len(first.kernel_size)
    weight = first.weight
    why = ""
    for size in SIZES:
        if size**axes > MOST_VOXELS:
            continue
        x = torch.zeros(1, first.in_channels, *[size] * axes, device=weight.device, dtype=weight.dtype)
        try:
            with in_eval_mode(network), torch.no_grad():
                network(x)
        except Exception as error:  # a network refuses an input with any kind of error
            why = why or f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        return x
    raise ValueError(f"no example found that {type(network).__name__} accepts ({why}): {advice}")


def see_joint(
    network: nn.Module, joint: Joint, module: nn.Module, example: Tensor, channels: int | None = None
) -> tuple[Features, list[Tensor]]:
    """Run a network once in ``eval()`` and return the features at a joint, and the tensors of its output.

    Args:
        network: the network.
        joint: the name of the module, for messages, and whether its input or its output counts.
        module: the module.
        example: input of the network.
        channels: features of a token that the booster expects, C; tells tokens from 1-D maps in a 1-D network.

    Raises:
        ValueError: the module is not called once, returns no single tensor, takes more than two inputs, does not affect
            the output of the network, or has features of another order than (B, C, *spatial) or (B, N, C).
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    starts: list[Tensor] = []

    def watch(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        calls.append((inputs, named, output))
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        starts.append(output.detach().requires_grad_())
        return starts[-1].clone()  # a copy, because the next module may write into it

    handle = module.register_forward_hook(watch, with_kwargs=True)
    try:
        with in_eval_mode(network), torch.inference_mode(False), torch.enable_grad():
            result = network(example)
    except Exception as error:  # a network refuses an input with any kind of error
        raise ValueError(
            f"{type(network).__name__} fails on an example of shape {list(example.shape)} ({error}): give another one"
        ) from error
    finally:
        handle.remove()
    _check_calls(joint, calls)
    inputs, named, output = calls[0]
    seen = inputs[0] if joint.before else output
    if seen.dim() == 3 == example.dim() and channels is None:
        # A network of one spatial axis.
        raise ValueError(
            f"the features at {joint.name!r}, {list(seen.shape)}, may be tokens or a 1-D map: give a booster with "
            "channels instead of a function"
        )
    _check_order(joint, seen, example)
    features = _features(joint, module, seen, len(inputs), channels if example.dim() == 3 else None)
    if named:
        raise ValueError(
            f"{joint.name!r} is called with the named inputs {', '.join(named)}: name a module around it or inside it"
        )
    if not _reaches(starts[0], result):
        raise ValueError(f"the output of {joint.name!r} does not affect the output of the network: name another module")
    return features, [tensor.detach() for tensor in _tensors(result)]


def _check_order(joint: Joint, x: Tensor, example: Tensor) -> None:
    """Raise ValueError for features whose first axis is not the batch, or whose channels seem to stand last."""
    if x.dim() and x.shape[0] != example.shape[0]:
        raise ValueError(
            f"the features at {joint.name!r} have shape {list(x.shape)} for a batch of {example.shape[0]}, which "
            "does not stand first: name a module with vectors (B, C), tokens (B, N, C) or a map (B, C, *spatial)"
        )
    cube = len(set(example.shape[2:])) == 1
    if x.dim() > 3 and cube and len(set(x.shape[1:-1])) == 1 and len(set(x.shape[2:])) > 1:
        raise ValueError(
            f"the features at {joint.name!r} have shape {list(x.shape)}, so their channels seem to stand last: name a "
            "module with a map (B, C, *spatial)"
        )


class CountedIdentity(nn.Identity):
    """In place of a booster: returns its input, and counts its calls.

    A hook would not do, because torch takes other ways through a module with hooks.
    """

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, C) unchanged."""
        self.calls += 1
        return x


def calls_without_gradients(network: nn.Module, booster: CountedIdentity, example: Tensor) -> int:
    """Return how often a booster is called in ``eval()`` under ``no_grad``, where torch may skip modules."""
    booster.calls = 0
    with in_eval_mode(network), torch.no_grad():
        network(example)
    return booster.calls


def _check_calls(joint: Joint, calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]]) -> None:
    if not calls:
        raise ValueError(f"{joint.name!r} is not called when the network runs: name a module that is called")
    if len(calls) > 1:
        raise ValueError(
            f"{joint.name!r} is called {len(calls)} times when the network runs: name a module that is called once"
        )
    inputs, _, output = calls[0]
    if not 1 <= len(inputs) <= 2 or not all(isinstance(value, Tensor) for value in inputs):
        kinds = ", ".join(type(value).__name__ for value in inputs) or "nothing"
        raise ValueError(f"{joint.name!r} takes {kinds}, not one or two tensors: name a module around it or inside it")
    if not isinstance(output, Tensor):
        raise ValueError(f"{joint.name!r} returns {type(output).__name__}, not a tensor: name a module inside it")


def _features(joint: Joint, module: nn.Module, x: Tensor, inputs: int, channels: int | None) -> Features:
    """Return the form of features by their shape."""
    if not x.is_floating_point() or not 2 <= x.dim() <= 5:
        raise ValueError(
            f"the features at {joint.name!r} have shape {list(x.shape)}, {x.dtype}: name a module with vectors "
            "(B, C), tokens (B, N, C) or a map (B, C, *spatial)"
        )
    if x.numel() == 0:
        raise ValueError(f"there are no features at {joint.name!r}, their shape is {list(x.shape)}: give larger images")
    if x.dim() == 2:
        return Features("vector", x.shape[1], inputs, x.dtype)
    if x.dim() == 3 and (x.shape[2] == channels or x.shape[1] != channels):
        # A map of a 1-D network only if its channels say so.
        if x.shape[1] == x.shape[2] == channels:
            raise ValueError(
                f"the features at {joint.name!r}, {list(x.shape)}, may be tokens or a 1-D map: give an example of "
                "another size"
            )
        return Features("tokens", x.shape[2], inputs, x.dtype)
    pooled = isinstance(module, POOLING) and x[0, 0].numel() == 1 and not joint.before
    return Features("vector" if pooled else "map", x.shape[1], inputs, x.dtype)


def _reaches(start: Tensor, result: Any) -> bool:
    """Return whether a gradient from any tensor of a network's output reaches ``start``."""
    outputs = [tensor for tensor in _tensors(result) if tensor.requires_grad]
    if not outputs:
        return False
    with torch.enable_grad():
        total = torch.stack([tensor.float().sum() for tensor in outputs]).sum()
    return torch.autograd.grad(total, start, allow_unused=True)[0] is not None


def _tensors(result: Any) -> Iterator[Tensor]:
    """Yield the tensors in the output of a network."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        for part in result.values():
            yield from _tensors(part)
    elif isinstance(result, (list, tuple)):
        for part in result:
            yield from _tensors(part)


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into ``eval()``, and afterwards each of its modules into its own mode again."""
    network_mode = network.training
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        network.train(network_mode)  # of modules that do more than to set their mode, such as merging weights
        for module, training in modes:
            module.training = training
