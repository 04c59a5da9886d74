# SPDX-License-Identifier: Apache-2.0
"""Stages of a network: modules whose output is read, and from which the network is run on with other features."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from monai_llmboost.engines.distillation.changed_modules import kept_statistics, returning
from monai_llmboost.engines.distillation.stage_choice import MOST, Call, choose, trace
from monai_llmboost.networks.checkpointing import is_checkpointed
from monai_llmboost.networks.trial import in_eval_mode
from monai_llmboost.networks.wrappers import unwrap

# Numbers of names in a message.
LEAST_NAMES, MOST_NAMES = 3, 12
# Of an output computed twice, relative to its largest value: some layers of a GPU add in any order.
TOLERANCE = 1e-4


class CheckpointedError(RuntimeError):
    """A stage is in a part of a network that ``torch.utils.checkpoint`` computes again in the backward pass."""


@dataclass
class Pass:
    """A forward pass.

    Args:
        output: the network's output.
        features: the output of each stage.
        recorded: outputs of modules that :meth:`Stages.run_from` needs, by name, in the order of the calls.
    """

    output: Any
    features: list[Tensor] = field(default_factory=list)
    recorded: dict[str, list[Any]] = field(default_factory=dict)


class Stages:
    """Named modules of a network, whose features are read in a forward pass.

    The network stays as it is between two passes, so that it can be copied, saved and exported.

    Args:
        network: any network.
        names: names of modules, as in ``network.named_modules()``; ``None``: see :func:`find_stages`.
        example: input of the network for a trial run, (B, channels, S0, S1, S2).
        most: the number of stages that are chosen, the last ones.

    Raises:
        ValueError: no such module, one that is not called once, or that does not return one tensor.

    Example:
        >>> from monai.networks.nets import resnet10
        >>> network = resnet10(spatial_dims=3, n_input_channels=1, num_classes=2)
        >>> stages = Stages(network, None, torch.zeros(2, 1, 32, 32, 32))
        >>> stages.names, [list(features.shape) for features in stages.run(torch.zeros(2, 1, 32, 32, 32)).features]
        (['layer2', 'layer3', 'layer4'], [[2, 128, 8, 8, 8], [2, 256, 4, 4, 4], [2, 512, 2, 2, 2]])
    """

    def __init__(self, network: nn.Module, names: Sequence[str] | None, example: Tensor, most: int = MOST) -> None:
        self.network: nn.Module = unwrap(network)
        self.kind = type(self.network).__name__
        self.modules = dict(self.network.named_modules(remove_duplicate=False))
        self.recorded: set[str] = set()  # modules whose outputs are recorded in a pass
        self.most = most
        self.axes = example.dim()
        self.cases = len(example)
        self._take(trace(self.network, example), names)

    def _take(self, calls: Sequence[Call], names: Sequence[str] | None, without: Iterable[str] = ()) -> list[Call]:
        """Take the stages of these names, or choose some, and return their calls."""
        if names is None:
            without = {*without, *(call.name for call in calls if not self._has_cases(call.output))}
            names = choose(calls, self.axes, self.most, self.kind, without)
        self.names = [str(name) for name in names]
        taken = [self._call_of(name, calls) for name in self.names]
        if not taken or len({call.name for call in taken}) < len(taken):
            raise ValueError(f"the stages {', '.join(self.names) or '(none)'} of {self.kind}: name each stage once")
        return taken

    def _call_of(self, name: str, calls: Sequence[Call]) -> Call:
        if not name or name not in self.modules:
            near = difflib.get_close_matches(name, [each for each in self.modules if each], n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"name some of {self._usual(calls)}"
            raise ValueError(f"{self.kind} has no stage {name!r}: {hint}")
        found = [call for call in calls if self.modules[call.name] is self.modules[name]]
        if len(found) != 1 or not isinstance(found[0].output, Tensor):
            what = f"is called {len(found)} times" if len(found) != 1 else "does not return one tensor"
            raise ValueError(f"the stage {name!r} of {self.kind} {what}: name a module around it, or another one")
        if not self._has_cases(found[0].output):
            raise ValueError(
                f"the stage {name!r} of {self.kind} returns {list(found[0].output.shape)} for a batch of "
                f"{self.cases}, which does not stand first: name a module around it, or another one"
            )
        return found[0]

    def _has_cases(self, output: Any) -> bool:
        """Return whether the first axis of features is that of the cases, not of windows or tokens."""
        return isinstance(output, Tensor) and output.dim() > 1 and len(output) == self.cases

    def _usual(self, calls: Sequence[Call]) -> str:
        """Return names to choose from: those of the outermost modules that return one tensor."""
        usable = [call for call in calls if isinstance(call.output, Tensor)]
        lowest = min((call.depth for call in usable), default=0)
        while len(names := [call.name for call in usable if call.depth <= lowest]) < min(LEAST_NAMES, len(usable)):
            lowest += 1
        names = [*dict.fromkeys(names)]
        return ", ".join(names[:MOST_NAMES]) + (" ... (see network.named_modules())" if names[MOST_NAMES:] else "")

    def run(self, x: Tensor) -> Pass:
        """Run the network.

        Raises:
            CheckpointedError: a stage is in a part of the network that is checkpointed and has no gradients.
            RuntimeError: a stage was not called once.
        """
        this = Pass(None)
        with ExitStack() as hooks:
            for name in self.recorded:
                kept = this.recorded.setdefault(name, [])
                hooks.callback(self.modules[name].register_forward_hook(_keeper(kept)).remove)
            features: list[list[Tensor]] = [[] for _ in self.names]
            for name, kept in zip(self.names, features):
                hooks.callback(self.modules[name].register_forward_hook(self._feature_keeper(name, kept)).remove)
            this.output = self.network(x)
        for name, kept in zip(self.names, features):
            if len(kept) != 1:
                raise RuntimeError(
                    f"the stage {name!r} of {self.kind} was called {len(kept)} times in a forward pass, not once as in "
                    "a trial run: name another one"
                )
        this.features = [kept[0] for kept in features]
        return this

    def _feature_keeper(self, name: str, kept: list[Tensor]) -> Callable[..., None]:
        needs_gradients = torch.is_grad_enabled()

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if torch.is_grad_enabled() != needs_gradients:
                raise CheckpointedError(
                    f"the stage {name!r} of {self.kind} is in a part that is checkpointed and has no gradients: name a "
                    "module around this part, or leave out its checkpointing"
                )
            kept.append(output.clone())  # the next layer may change its input in place

        return hook


class ContinuedStages(Stages):
    """Stages from which a network can be run on, as if they had returned other features.

    What the network computed before the stage is taken from a pass and not computed again, such as the encoder's
    features that the decoder of a U-Net reads. Running statistics of batch normalization stay as the pass left them.

    Arguments as in :class:`Stages`.

    Raises:
        ValueError: see :class:`Stages`; a stage that the output does not depend on, or from which the network cannot be
            run on.

    Example:
        >>> from monai.networks.nets import resnet10
        >>> x = torch.rand(2, 1, 32, 32, 32)
        >>> stages = ContinuedStages(resnet10(spatial_dims=3, n_input_channels=1, num_classes=2).eval(), ["layer3"], x)
        >>> this = stages.run(x)
        >>> torch.equal(stages.run_from(0, this.features[0], this, x), this.output)
        True
    """

    def __init__(self, network: nn.Module, names: Sequence[str] | None, example: Tensor, most: int = MOST) -> None:
        super().__init__(network, names, example, most)
        x = torch.rand(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
        calls, unfit = trace(self.network, example), dict[str, str]()
        while True:
            self.before = [_finished_before(calls, call) for call in self._take(calls, names, unfit)]
            self.recorded = {name for before in self.before for name in before}
            found = self._unfit(x)
            if not found:
                break
            unfit |= found
            if names is not None:
                raise ValueError(next(iter(found.values())))

    def _unfit(self, x: Tensor) -> dict[str, str]:
        """Return the stages from which the network cannot be run on, and why."""
        unfit = {}
        with in_eval_mode(self.network), torch.no_grad():
            this = self.run(x)
            for number, (name, features) in enumerate(zip(self.names, this.features)):
                other = torch.randn(features.shape, generator=torch.Generator().manual_seed(number)).to(features)
                try:
                    again = self.run_from(number, features, this, x)
                except CheckpointedError as error:
                    unfit[name] = str(error)
                    continue
                if not _are_equal(again, this.output, TOLERANCE):
                    unfit[name] = (
                        f"{self.kind} cannot be run on from the stage {name!r}, because it uses more of it than its "
                        "output: name another module, such as one around it"
                    )
                elif _are_equal(self.run_from(number, other, this, x), this.output):
                    unfit[name] = f"the output of {self.kind} does not depend on the stage {name!r}: leave it out"
        return unfit

    def run_from(self, number: int, features: Tensor, this: Pass, x: Tensor) -> Any:
        """Return the network's output with other features at a stage.

        Args:
            number: index of the stage.
            features: what the stage returns instead, of the shape of its own features.
            this: the pass of ``x``; gradients reach what was computed before the stage through it.
            x: input of the network.

        Raises:
            ValueError: features of another shape.
            CheckpointedError: the stage is in a part of the network that is checkpointed.
        """
        own = this.features[number]
        if features.shape != own.shape:
            raise ValueError(
                f"features {list(features.shape[1:])} do not fit the stage {self.names[number]!r} of {self.kind}, "
                f"{list(own.shape[1:])}: map them to this shape"
            )
        with ExitStack() as changes:
            changes.enter_context(kept_statistics(self.network))
            check = self._checkpointing_check(number, sys._getframe())
            for name, numbers in self.before[number].items():
                outputs = [this.recorded[name][each] for each in numbers]
                changes.enter_context(returning(self.modules[name], outputs, check))
            # A copy, because the next layer may change its input in place; of the stage's own dtype under autocast.
            given = features.to(own.dtype, copy=True)
            changes.enter_context(returning(self.modules[self.names[number]], [given], check))
            return self.network(x)

    def _checkpointing_check(self, number: int, outermost: FrameType) -> Callable[[], None]:
        """Return a function that raises RuntimeError in a part of the network that is computed again."""
        needs_gradients = torch.is_grad_enabled()

        def check() -> None:
            if torch.is_grad_enabled() != needs_gradients or is_checkpointed(outermost, with_whole=False):
                raise CheckpointedError(
                    f"{self.kind} cannot be run on from the stage {self.names[number]!r}, in a part that is computed "
                    "again in the backward pass: name a module around this part, or leave out its checkpointing"
                )

        return check


def _finished_before(calls: Sequence[Call], stage: Call) -> dict[str, list[int]]:
    """Return the modules that are finished before a stage begins, with the numbers of their calls until then.

    Calls in such a module are left out: they are not made if the module is not called.
    """
    found: dict[str, list[int]] = {}
    number: dict[str, int] = {}
    for call in calls:
        number[call.name] = number.get(call.name, -1) + 1
        is_outermost = call.parent is None or (call.parent.entered < stage.entered and stage.left < call.parent.left)
        if call.left < stage.entered and is_outermost:
            found.setdefault(call.name, []).append(number[call.name])
    return found


def _keeper(kept: list[Any]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append(output)

    return hook


def _are_equal(one: Any, other: Any, tolerance: float = 0.0) -> bool:
    """Return whether two outputs are equal, up to a difference relative to the largest value."""
    if isinstance(one, Tensor):
        one, other = one.nan_to_num(), other.nan_to_num()
        return bool((one - other).abs().max() <= tolerance * one.abs().max())
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_are_equal(one[key], other[key], tolerance) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(_are_equal(*pair, tolerance) for pair in zip(one, other))
    return bool(one == other)
