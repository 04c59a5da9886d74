# SPDX-License-Identifier: Apache-2.0
"""Choice of the stages of a network: the calls of its modules in a trial run, and which of them end a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monai_llmboost.networks.trial import in_eval_mode
from monai_llmboost.networks.wrappers import unwrap

MOST = 3
# Axes of tokens (B, N, C); feature maps (B, C, S0, S1, ...) have those of the network's input.
TOKENS = 3


@dataclass
class Call:
    """A call of a module in a forward pass; times count entries and exits of all modules."""

    name: str
    kind: type
    parent: Call | None
    entered: int
    left: int = 0
    output: Any = None

    @property
    def depth(self) -> int:
        """Return the number of calls around this one."""
        return 0 if self.parent is None else self.parent.depth + 1


def find_stages(network: nn.Module, example: Tensor, most: int = MOST) -> list[str]:
    """Return names of stages of a network, in the order of their calls.

    Of a convolutional network, these are the last outermost modules before the grid becomes coarser, down to its
    coarsest grid of more than one voxel, so that the decoder of a U-Net has none; of a transformer, layers at equal
    distances, the last one among them.

    Args:
        network: any network.
        example: input of the network for a trial run, (B, channels, S0, S1, S2).
        most: the number of stages, the last ones.

    Raises:
        ValueError: there is no feature map and there are no tokens.

    Example:
        >>> from monai.networks.nets import UNet
        >>> unet = UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2))
        >>> find_stages(unet, torch.zeros(1, 1, 32, 32, 32))
        ['model.0', 'model.1.submodule.1']
    """
    return choose(trace(unwrap(network), example), example.dim(), most, type(network).__name__)


def trace(network: nn.Module, example: Tensor) -> list[Call]:
    """Return the calls of modules in a trial run, in the order in which they end; the network itself is left out."""
    calls: list[Call] = []
    running: list[Call] = []
    clock = iter(range(2**62))

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            running.append(Call(name, type(module), running[-1] if running else None, next(clock)))

        return hook

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        call = running.pop()
        call.left, call.output = next(clock), output
        calls.append(call)

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if name:
                hooks.callback(module.register_forward_pre_hook(enter(name)).remove)
                hooks.callback(module.register_forward_hook(leave).remove)
        with in_eval_mode(network), torch.no_grad():
            network(example)
    return calls


def choose(calls: Sequence[Call], axes: int, most: int, kind: str, without: Iterable[str] = ()) -> list[str]:
    """Choose stages among the calls of a trial run, as :func:`find_stages` describes.

    Args:
        calls: the calls of :func:`trace`.
        axes: axes of the network's input, and of its feature maps.
        most: the number of stages.
        kind: name of the network, for the message.
        without: names of modules that are no stages.

    Raises:
        ValueError: there is no feature map and there are no tokens.
    """
    names = [call.name for call in calls]
    usable = [call for call in calls if names.count(call.name) == 1 and _has_places(call.output, axes)]
    usable = [call for call in usable if call.name not in without]
    if not usable:
        raise ValueError(f"{kind} has no feature maps and no tokens of which stages could be made: name its stages")
    # Parts of a transformer's layers may return other shapes, such as queries of each head.
    top = min(call.depth for call in usable)
    if [call for call in usable if call.depth == top][-1].output.dim() == TOKENS:
        alike: dict[tuple[int, type], list[Call]] = {}
        for call in usable:
            if call.output.dim() == TOKENS:
                alike.setdefault((id(call.parent), call.kind), []).append(call)
        blocks = max(alike.values(), key=lambda several: (len(several), -several[0].depth))
        count = min(most, len(blocks))
        return [blocks[len(blocks) * (number + 1) // count - 1].name for number in range(count)]
    chosen: list[Call] = []
    for size in sorted({_places(call) for call in usable})[:most]:
        # Backwards from the coarsest grid, of which the decoder of a U-Net has no part.
        same = [call for call in usable if _places(call) == size and (not chosen or call.left < chosen[-1].entered)]
        # Tokens inside a module that returns a map are parts of it, such as its attention.
        top = min((call.depth for call in same if call.output.dim() == axes), default=len(calls))
        same = [call for call in same if call.output.dim() == axes or call.depth <= top]
        if same:
            chosen.append(min(reversed(same), key=lambda call: (_spans_finer_grids(call, usable), call.depth)))
    return [call.name for call in reversed(chosen)]


def _places(call: Call) -> int:
    """Return the number of tokens, or of voxels of a map."""
    shape = call.output.shape
    return int(shape[1] if len(shape) == TOKENS else shape[2:].numel())


def _spans_finer_grids(call: Call, calls: Sequence[Call]) -> bool:
    """Return whether a part of a module has a finer grid than the module, such as a whole encoder."""
    alike = [other for other in calls if other.output.dim() == call.output.dim()]
    return any(
        call.entered < other.entered and other.left < call.left and _places(other) > _places(call) for other in alike
    )


def _has_places(output: Any, axes: int) -> bool:
    """Return whether an output has features at several places: a map of several voxels, or tokens."""
    if not isinstance(output, Tensor) or output.dim() not in (TOKENS, axes):
        return False
    return bool(output.shape[1] > 1) if output.dim() == TOKENS else output.shape[2:].numel() > 1
