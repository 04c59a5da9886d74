# SPDX-License-Identifier: Apache-2.0
"""The shape of one language-model layer, read from a model's configuration as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Model types whose layer is exactly the one of block.py: RMSNorm, grouped-query attention, SwiGLU, no biases.
LLAMA_LIKE = ("llama", "mistral")
# No layer that was ever trained comes near this; a config.json that asks for more is broken or hostile.
LARGEST_WIDTH = 1 << 20


@dataclass(frozen=True)
class BlockGeometry:
    """Widths and head counts of one decoder layer of the LLaMA family.

    Args:
        width: features of a token, D.
        mlp_width: inner features of the SwiGLU MLP.
        num_heads: query heads.
        num_kv_heads: key/value heads; divides ``num_heads``.
        head_size: features of one head; ``num_heads * head_size`` need not equal ``width``.
        norm_eps: epsilon of every RMSNorm.

    Raises:
        ValueError: a number that no layer can have.
    """

    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("width", "mlp_width", "num_heads", "num_kv_heads", "head_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST_WIDTH:
                raise ValueError(
                    f"expected {name} to be a whole number from 1 to {LARGEST_WIDTH}, got {value!r}: "
                    "correct the model's config.json"
                )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"expected num_kv_heads to divide num_heads, got {self.num_kv_heads} and {self.num_heads}: "
                "correct the model's config.json"
            )
        if not isinstance(self.norm_eps, float) or not 0 < self.norm_eps < 1:
            raise ValueError(f"expected norm_eps between 0 and 1, got {self.norm_eps!r}: correct the model's config")

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor of the layer; matrices are (out, in)."""
        inner, kv = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        return {
            "attention_norm.weight": (self.width,),
            "query.weight": (inner, self.width),
            "key.weight": (kv, self.width),
            "value.weight": (kv, self.width),
            "output.weight": (self.width, inner),
            "mlp_norm.weight": (self.width,),
            "gate.weight": (self.mlp_width, self.width),
            "up.weight": (self.mlp_width, self.width),
            "down.weight": (self.width, self.mlp_width),
        }

    def check_tensors(self, tensors: Mapping[str, Any]) -> None:
        """Raise ValueError if a tensor is missing, unknown, or of another shape than the geometry says."""
        wanted = self.tensor_shapes
        wrong = sorted(set(wanted) ^ set(tensors))
        if wrong:
            raise ValueError(f"expected the tensors {sorted(wanted)}, these are missing or unknown: {wrong}")
        for name, shape in wanted.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(
                    f"expected {name} of shape {shape}, got {tuple(tensors[name].shape)}: the configuration and the "
                    "weights are not of one model"
                )

    def to_json(self) -> str:
        """The geometry as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> BlockGeometry:
        """The geometry that :meth:`to_json` wrote."""
        return cls(**json.loads(text))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BlockGeometry:
        """The geometry in a Hugging Face ``config.json``; nothing of the model's own code is run.

        Raises:
            ValueError: the layer is not of the LLaMA family, or a number is missing or impossible.
        """
        family = config.get("model_type")
        if family not in LLAMA_LIKE:
            raise ValueError(
                f"expected a model of type {' or '.join(LLAMA_LIKE)}, got {family!r}: "
                "choose a donor of the LLaMA family"
            )
        extras = [key for key in ("attention_bias", "mlp_bias") if config.get(key)]
        if extras:
            raise ValueError(f"expected a layer without biases, got {', '.join(extras)}: choose another donor")
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"expected hidden_act silu, got {config['hidden_act']!r}: choose another donor")
        if config.get("quantization_config"):
            raise ValueError("expected plain weights, got a quantised model: choose the float version of this donor")
        missing = [key for key in ("hidden_size", "intermediate_size", "num_attention_heads") if key not in config]
        if missing:
            raise ValueError(f"expected {', '.join(missing)} in config.json, found none: the download is incomplete")
        heads = config["num_attention_heads"]
        if not isinstance(heads, int) or heads < 1:
            raise ValueError(f"expected num_attention_heads to be a whole number, got {heads!r}: correct config.json")
        return cls(
            width=config["hidden_size"],
            mlp_width=config["intermediate_size"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        )
