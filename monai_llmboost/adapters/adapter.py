# SPDX-License-Identifier: Apache-2.0
"""Adapters: linear maps whose ``weight`` is a frozen weight plus a trained update.

Because the sum is a weight again, code that uses the weights of a layer (the read-out of a booster) works with an
adapter in the same way as with the frozen map. A map of another library can declare ``is_linear_map``, see
:func:`monai_llmboost.llm.attention.is_linear_map`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.llm.frozen import FrozenBlock

# The maps of a layer's attention, in the order in which their adapters draw random numbers.
ATTENTION_MAPS = ("query", "key", "value", "output")


class Adapter(nn.Module):
    """A frozen linear map and a trained update of its weight: ``y = x (W + update)^T + bias``.

    A subclass implements :meth:`update` and adds parameters, initialised so that the update is zero.

    Args:
        linear: the frozen map; ``weight`` (outputs, inputs) and an optional ``bias`` are used without a copy.

    Example:
        >>> class Scaled(Adapter):
        ...     def __init__(self, linear):
        ...         super().__init__(linear)
        ...         self.g = nn.Parameter(torch.zeros(1))
        ...
        ...     def update(self):
        ...         return self.g * self.frozen
        >>> adapter = Scaled(nn.Linear(3, 2))
        >>> adapter(torch.ones(1, 3)).shape, [name for name, _ in adapter.named_parameters()]
        (torch.Size([1, 2]), ['g'])
    """

    if TYPE_CHECKING:
        frozen: Tensor
        bias: Tensor | None

    is_linear_map = True

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("frozen", linear.weight.detach(), persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def update(self) -> Tensor:
        """Return the update of the frozen weight, (outputs, inputs)."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The frozen weight plus the update, (outputs, inputs), rounded once to the frozen weight's dtype."""
        return (self.frozen + self.update()).to(self.frozen.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (..., inputs) to tokens (..., outputs)."""
        return F.linear(x, self.weight, self.bias)


def adapt_(block: FrozenBlock, make: Callable[[nn.Linear], Adapter]) -> None:
    """Replace the maps of a block's attention by adapters, in all its layers.

    Args:
        block: a frozen block.
        make: function from a frozen map to its adapter.

    Raises:
        ValueError: a layer is run by a class of transformers.
    """
    if not block.native:
        raise ValueError(
            "a layer that is run by transformers' own class takes no adapters: choose another arm, or a donor of a "
            "family that is run natively (`monai-llmboost donors` lists some)"
        )
    for layer in (*block.before, block.layer):
        for name in ATTENTION_MAPS:
            setattr(layer, name, make(getattr(layer, name)))
