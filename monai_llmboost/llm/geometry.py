# SPDX-License-Identifier: Apache-2.0
"""The geometry of one language-model layer: widths, heads, and optional parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from monai_llmboost.arguments import check_choice, check_whole

# Far above any trained layer; a config.json with more is broken or hostile.
LARGEST_WIDTH = 1 << 20
NORMS = ("rms", "layer")
QK_NORMS = ("none", "head", "all")
CORRECT = "correct the model's config.json"
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


@dataclass(frozen=True)
class BlockGeometry:
    """Sizes and options of one decoder layer; the defaults are LLaMA's.

    Args:
        width: features of a token, D.
        mlp_width: inner features of the MLP.
        num_heads: query heads.
        num_kv_heads: key/value heads; divides ``num_heads``.
        head_size: features of one head; ``num_heads * head_size`` need not equal ``width``.
        norm_eps: epsilon of every norm.
        norm: ``"rms"`` (RMSNorm, a gain) or ``"layer"`` (LayerNorm, a gain and a bias).
        gain_offset: number added to a stored RMSNorm gain; Gemma stores gains around 0 and adds 1.
        pre_norm: a norm before the attention and one before the MLP.
        post_norm: a norm after the attention and one after the MLP, before their outputs are added.
        parallel: attention and MLP both see the layer's input, and their outputs are added.
        qk_norm: an RMSNorm of queries and keys, over each head (``"head"``), over all heads (``"all"``), or none.
        qkv_bias: queries, keys and values have biases.
        output_bias: the attention's output map has a bias.
        mlp_bias: the MLP's linear maps have biases.
        gated: ``down(activation(gate(x)) * up(x))`` instead of ``down(activation(up(x)))``.
        activation: ``"silu"``, ``"gelu"``, ``"gelu_tanh"`` or ``"relu"``.
        attention_scale: factor of the scores; 0 is ``head_size ** -0.5``.
        score_cap: scores s become ``cap * tanh(s / cap)``; 0 for none (Gemma 2: 50).
        rotary: rotation of each pair of features from one position to the next, radians; pair i is the features i
            and i + ``len(rotary)`` of a head. Empty: no rotary positions.

    Raises:
        ValueError: an invalid size or option.

    Example:
        >>> geometry = BlockGeometry(width=64, mlp_width=128, num_heads=4, num_kv_heads=2, head_size=16)
        >>> geometry.tensor_shapes["key.weight"]
        (32, 64)
    """

    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    norm_eps: float = 1e-6
    norm: str = "rms"
    gain_offset: float = 0.0
    pre_norm: bool = True
    post_norm: bool = False
    parallel: bool = False
    qk_norm: str = "none"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    activation: str = "silu"
    attention_scale: float = 0.0
    score_cap: float = 0.0
    rotary: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("width", "mlp_width", "num_heads", "num_kv_heads", "head_size"):
            check_whole(name, getattr(self, name), 1, LARGEST_WIDTH, CORRECT)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}: {CORRECT}")
        if not isinstance(self.norm_eps, float) or not 0 < self.norm_eps < 1:
            raise ValueError(f"norm_eps must be between 0 and 1, not {self.norm_eps!r}: {CORRECT}")
        factors = (self.attention_scale, self.score_cap, self.gain_offset, *self.rotary)
        if not all(isinstance(number, (int, float)) and 0 <= number < 1e9 for number in factors):
            raise ValueError(f"factors of attention must be numbers from 0, not {factors}: {CORRECT}")
        for name, known in (("norm", NORMS), ("qk_norm", QK_NORMS), ("activation", ACTIVATIONS)):
            check_choice(name, getattr(self, name), known)
        if self.parallel and (self.post_norm or not self.pre_norm):
            raise ValueError(f"a parallel layer has norms before its parts only: {CORRECT}")
        if len(self.rotary) > self.head_size // 2:
            raise ValueError(
                f"{len(self.rotary)} rotary pairs are too many for a head of {self.head_size} features: {CORRECT}"
            )

    @property
    def scale(self) -> float:
        """Factor of the attention's scores."""
        return self.attention_scale or self.head_size**-0.5

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor of the layer; matrices are (out, in)."""
        inner, kv = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        shapes: dict[str, tuple[int, ...]] = {}

        def norm(name: str) -> None:
            shapes[f"{name}.weight"] = (self.width,)
            if self.norm == "layer":
                shapes[f"{name}.bias"] = (self.width,)

        def linear(name: str, out: int, into: int, bias: bool) -> None:
            shapes[f"{name}.weight"] = (out, into)
            if bias:
                shapes[f"{name}.bias"] = (out,)

        if self.pre_norm:
            norm("attention_norm")
        linear("query", inner, self.width, self.qkv_bias)
        linear("key", kv, self.width, self.qkv_bias)
        linear("value", kv, self.width, self.qkv_bias)
        if self.qk_norm != "none":
            shapes["query_norm.weight"] = (self.head_size if self.qk_norm == "head" else inner,)
            shapes["key_norm.weight"] = (self.head_size if self.qk_norm == "head" else kv,)
        linear("output", self.width, inner, self.output_bias)
        if self.post_norm:
            norm("attention_post_norm")
        if self.pre_norm:
            norm("mlp_norm")
        if self.gated:
            linear("gate", self.mlp_width, self.width, self.mlp_bias)
        linear("up", self.mlp_width, self.width, self.mlp_bias)
        linear("down", self.width, self.mlp_width, self.mlp_bias)
        if self.post_norm:
            norm("mlp_post_norm")
        return shapes

    def check_tensors(self, tensors: Mapping[str, Any]) -> None:
        """Raise ValueError if a tensor is missing, unknown, or differs in shape from the geometry."""
        wanted = self.tensor_shapes
        wrong = sorted(set(wanted) ^ set(tensors))
        if wrong:
            raise ValueError(f"tensors that are missing or unknown: {wrong}; the layer needs {sorted(wanted)}")
        for name, shape in wanted.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensors[name].shape)}, not {shape}: give the config.json and the weights "
                    "of one model"
                )

    def to_json(self) -> str:
        """Return the geometry as one line of JSON with sorted keys, without the values equal to the defaults."""
        plain = {field.name: field.default for field in fields(self)}
        kept = {key: value for key, value in asdict(self).items() if value != plain[key] or key == "norm_eps"}
        return json.dumps(kept, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> BlockGeometry:
        """Return the geometry that :meth:`to_json` wrote.

        Raises:
            ValueError: the text is not a geometry.
        """
        try:
            content = json.loads(text)
            return cls(**{**content, "rotary": tuple(content.get("rotary", ()))})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{text[:80]!r} is no geometry of a layer: extract the block again") from error
