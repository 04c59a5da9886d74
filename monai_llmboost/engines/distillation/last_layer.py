# SPDX-License-Identifier: Apache-2.0
"""The last layer of a network, from features to logits, and the features that it gets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from monai_llmboost.networks.trial import in_eval_mode
from monai_llmboost.networks.wrappers import unwrap


class LastLayer:
    """The layer of a network that returns its logits; it remembers the features that it was called with.

    The features are a vector (B, F) before a linear layer, or a feature map (B, C, S0, S1, S2) before a convolution.

    Args:
        network: any network from volumes to logits.
        example: input of the network for a trial run, (B, channels, S0, S1, S2).
        name: name of the layer; ``None``: the layer with weights whose output is the network's.

    Raises:
        ValueError: there is no such layer, or more than one call of it.

    Example:
        >>> from monai.networks.nets import resnet10
        >>> network = resnet10(spatial_dims=3, n_input_channels=1, num_classes=2)
        >>> last = LastLayer(network, torch.zeros(2, 1, 32, 32, 32))
        >>> last.name, last.take_features().shape
        ('fc', torch.Size([2, 512]))
    """

    def __init__(self, network: nn.Module, example: Tensor, name: str | None = None) -> None:
        network = unwrap(network)
        modules = dict(network.named_modules())
        if name is not None and name not in modules:
            raise ValueError(f"{type(network).__name__} has no layer {name!r}: give a name in named_modules()")
        calls: list[tuple[str, Any]] = []

        def note(called: str) -> Any:
            return lambda module, inputs, output: calls.append((called, output))

        handles = [
            module.register_forward_hook(note(each))
            for each, module in modules.items()
            if each and next(module.parameters(recurse=False), None) is not None
        ]
        try:
            with in_eval_mode(network), torch.no_grad():
                logits = network(example)
        finally:
            for handle in handles:
                handle.remove()
        found = [each for each, output in calls if _is_same(output, logits)] if name is None else [name]
        if len(found) != 1 or [each for each, _ in calls].count(found[0]) != 1:
            raise ValueError(
                f"cannot tell which layer of {type(network).__name__} returns its logits: name it, such as "
                "classifier='fc'"
            )
        self.name = found[0]
        self.module = modules[self.name]
        self._features: Tensor | None = None
        self.module.register_forward_pre_hook(self._remember)
        with in_eval_mode(network), torch.no_grad():
            network(example)

    def _remember(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features = inputs[0]

    def take_features(self) -> Tensor:
        """Return the features of the last forward pass, and forget them: a network that holds some cannot be copied.

        Raises:
            RuntimeError: there was no forward pass since they were taken.
        """
        found, self._features = self._features, None
        if found is None:
            raise RuntimeError(f"the layer {self.name} was not called: run the network first")
        return found

    def classify(self, features: Tensor) -> Tensor:
        """Return the layer's logits of other features."""
        logits: Tensor = self.module(features)
        self._features = None
        return logits


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two tensors are one, or views of the whole of one."""
    return (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and one.data_ptr() == other.data_ptr()
        and one.numel() == other.numel()
    )
