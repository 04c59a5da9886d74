# SPDX-License-Identifier: Apache-2.0
"""The form and tensors of a block's attention, for a read-out that computes the attention itself.

A block that supports such a read-out has ``attention_form`` (not ``None``), ``attention_tensors(h)``,
``attention_parts()``, ``is_intact()`` and ``finish(h, attended)``, like :class:`monai_llmboost.llm.FrozenBlock`. One
that supports folded maps for all tokens also has ``token_maps()`` and ``attend_heads(q, k, v)``. Any other class can
offer the same interface.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# Added to the mean square of a token before it is scaled to the size of a block, so that a token of zeros stays one.
SIZE_EPS = 1e-12


@dataclass(frozen=True)
class AttentionForm:
    """Sizes and options of a layer's attention over unordered tokens.

    Args:
        normed_keys: keys are normed, so the read-out computes the keys of all tokens but no values; else the scores
            are linear in the tokens, up to the size of each token.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_size: features of a head.
        scale: factor of the scores.
        score_cap: scores s become ``cap * tanh(s / cap)``; 0 for none.
        norm_eps: epsilon of every norm.
        pre_norm: a norm with a gain comes before the attention.
        centred: that norm is a LayerNorm.
        h_rms: root mean square s to which each token is scaled first; 0 for none.
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
    h_rms: float = 0.0

    @property
    def relative_eps(self) -> float:
        """Epsilon of a norm for tokens of size one, ``eps / s^2``; 0 without scaling."""
        return self.norm_eps / self.h_rms**2 if self.h_rms else 0.0

    @property
    def constant_eps(self) -> float:
        """The part of a norm's epsilon that does not grow with the token, ``1e-12 eps / s^2``; eps without scaling."""
        return SIZE_EPS * self.relative_eps if self.h_rms else self.norm_eps


class AttentionTensors(NamedTuple):
    """The queries of the read tokens, and the attention weights applied to all tokens.

    Matrices are (out, in), in the block's dtype; a tensor that the layer does not have is ``None``.
    """

    queries: Tensor  # normed as in the layer, (B, R, heads * head size)
    gain: Tensor | None  # gain of the norm before the attention, (D,)
    norm_bias: Tensor | None  # bias of the norm before the attention, (D,)
    key: Tensor  # (kv heads * head size, D)
    key_gain: Tensor | None  # gain of the keys' norm, (head size,) or (kv heads * head size,)
    value: Tensor  # (kv heads * head size, D)
    value_bias: Tensor | None  # (kv heads * head size,)


class TokenMaps(NamedTuple):
    """The norm before the attention, and the three maps of normed tokens to queries, keys and values.

    Matrices are (out, D), in the block's dtype; a tensor that the layer does not have is ``None``.
    """

    gain: Tensor | None  # (D,)
    norm_bias: Tensor | None  # (D,)
    weights: tuple[Tensor, Tensor, Tensor]
    biases: tuple[Tensor | None, Tensor | None, Tensor | None]  # (out,)


def runs_as(part: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether a call of the module runs ``forward`` of one of these classes, and nothing else.

    A subclass with inherited ``forward`` passes; a module with hooks, or with ``forward`` set on the object, does not.
    """
    hooks = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    if hooks or "forward" in part.__dict__:
        return False
    forward = type(part).forward
    return any(forward is kind.forward for kind in kinds)


def is_linear_map(part: nn.Module) -> bool:
    """Return whether a call of the module is ``x @ part.weight.T + part.bias``, and nothing else.

    This is true for ``nn.Linear``, also with a parametrization, and for a class that declares ``is_linear_map = True``
    next to its ``forward``; its ``weight`` may be a property. A subclass with a new ``forward`` must declare it again.
    An attribute ``weight`` is not enough: adapters of other libraries use that name for the frozen weight.
    """
    if runs_as(part, nn.Linear):
        return is_dense(part)
    for kind in type(part).__mro__:
        if "forward" in kind.__dict__:
            return "is_linear_map" in kind.__dict__ and bool(kind.__dict__["is_linear_map"]) and runs_as(part, kind)
    return False


def is_dense(part: nn.Module) -> bool:
    """Return whether the weight of a map is one plain tensor, and not a compressed one such as torchao's int8."""
    weight = part._parameters.get("weight", part._buffers.get("weight"))
    return weight is None or not is_traceable_wrapper_subclass(weight)
