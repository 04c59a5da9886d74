# SPDX-License-Identifier: Apache-2.0
"""What the attention of a block offers to a computation that takes it apart: its form and its tensors.

A block that can be taken apart has ``attention_form`` (not ``None``), ``attention_tensors(h)``, ``attention_parts()``,
``is_intact()`` and ``finish(h, attended)``, as :class:`monai_llmboost.llm.FrozenBlock`; any other can offer the same.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn


@dataclass(frozen=True)
class AttentionForm:
    """The attention of a layer over unordered tokens, as numbers.

    Args:
        normed_keys: keys are normed, so that only they, and no values, need be made of each token; else the scores are
            linear in the tokens but for each token's size.
        num_heads: query heads.
        num_kv_heads: heads of keys and values.
        head_size: features of a head.
        scale: factor of the scores.
        score_cap: scores s become ``cap * tanh(s / cap)``; 0 for none.
        norm_eps: epsilon of every norm.
        pre_norm: a norm with a gain comes before the attention.
        centred: that norm is a LayerNorm.
    """

    normed_keys: bool
    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    score_cap: float
    norm_eps: float
    pre_norm: bool
    centred: bool


class AttentionTensors(NamedTuple):
    """The queries of the tokens that are read, and the tensors by which the attention treats all tokens.

    Matrices are (out, in), in the block's dtype; what a layer does not have is ``None``.
    """

    queries: Tensor  # normed as the layer does, (B, R, heads * head size)
    gain: Tensor | None  # of the norm before the attention, (D,)
    norm_bias: Tensor | None  # of that norm, (D,)
    key: Tensor  # (kv heads * head size, D)
    key_gain: Tensor | None  # of the keys' norm, (head size,) or (kv heads * head size,)
    value: Tensor  # (kv heads * head size, D)
    value_bias: Tensor | None  # (kv heads * head size,)


def runs_as(part: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether a call of the module does what one of these classes does, and nothing else.

    A subclass that leaves ``forward`` as it is passes; hooks, and a ``forward`` set on the object, do not.
    """
    hooks = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    if hooks or "forward" in part.__dict__:
        return False
    forward = type(part).forward
    return any(forward is kind.forward for kind in kinds)


def is_linear_map(part: nn.Module) -> bool:
    """Return whether a call of the module is ``x @ part.weight.T + part.bias``, and nothing else.

    So it is for ``nn.Linear``, also with a parametrization, and for a class that declares ``is_linear_map = True`` next
    to its ``forward``, whose ``weight`` may be a property; a subclass with its own ``forward`` has to declare it again.
    A mere attribute ``weight`` is not enough: adapters of other libraries give the frozen weight by that name.
    """
    if runs_as(part, nn.Linear):
        return True
    for kind in type(part).__mro__:
        if "forward" in kind.__dict__:
            return "is_linear_map" in kind.__dict__ and bool(kind.__dict__["is_linear_map"]) and runs_as(part, kind)
    return False
