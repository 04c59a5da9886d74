# SPDX-License-Identifier: Apache-2.0
"""Model families that block.py runs natively: how each one stores its geometry in ``config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from monai_llmboost.llm.donor.names import GPT2, GPT_NEOX, LLAMA, OPT, PHI3, QK_NORMS, SANDWICH, Names
from monai_llmboost.llm.donor.numbers import Config, compute_rotary_angles, read_number, read_whole
from monai_llmboost.llm.geometry import BlockGeometry

# Names of activations in configurations -> names in block.py.
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu",
    "gelu_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How one model family stores its layers.

    Args:
        names: module name in the checkpoint -> module name in block.py.
        defaults: defaults of its `transformers` configuration class, for keys that ``config.json`` omits.
        geometry: function from configuration and layer index to the layer's geometry.
        layers: last part of the name of the layer list in the checkpoint.
        final_norm: last part of the name of the norm after the last layer.
        transposed: matrices are stored as (in, out).
        by_head: fused queries, keys and values are stored head by head, instead of one after the other.
        only_if: values that these configuration keys must have, if present.
    """

    names: Names
    defaults: Config
    geometry: Callable[[Config, int], BlockGeometry]
    layers: str = "layers"
    final_norm: str = "norm"
    transposed: bool = False
    by_head: bool = False
    only_if: Mapping[str, Any] = field(default_factory=dict)


def get_text_config(config: Config) -> Config:
    """Return the language model part of a configuration, with its family's defaults for missing keys."""
    inner = config.get("text_config")
    text = inner if isinstance(inner, Mapping) and str(config.get("model_type")) not in FAMILIES else config
    family = FAMILIES.get(str(text.get("model_type")))
    return text if family is None else {**family.defaults, **text}


def find_family(config: Config) -> Family | None:
    """Return the family of a (text) configuration; ``None`` if block.py cannot run its layers."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or any(config.get(key, value) != value for key, value in family.only_if.items()):
        return None
    return family if _activation_name(config) in ACTIVATIONS else None


def _activation_name(config: Config) -> str:
    return str(config.get("hidden_activation") or config.get("hidden_act") or config.get("activation_function", "silu"))


def _activation(config: Config) -> str:
    return ACTIVATIONS[_activation_name(config)]


def make_geometry(family: Family, config: Config, layer: int) -> BlockGeometry:
    """Return the geometry of one layer.

    Raises:
        ValueError: a number is missing or invalid.
    """
    try:
        return family.geometry({**family.defaults, **config}, layer)
    except (ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(
            f"the numbers in the configuration of {config.get('model_type')} are inconsistent ({error}): download "
            "config.json again"
        ) from error


def _llama(config: Config, layer: int, **changes: Any) -> BlockGeometry:
    width, heads = read_whole(config, "hidden_size"), read_whole(config, "num_attention_heads")
    head_size = read_whole(config, "head_dim", max(width // heads, 1))
    numbers: dict[str, Any] = {
        "width": width,
        "mlp_width": read_whole(config, "intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": read_whole(config, "num_key_value_heads", heads),
        "head_size": head_size,
        "norm_eps": read_number(config, "rms_norm_eps", 1e-6),
        "activation": _activation(config),
        "qkv_bias": bool(config.get("attention_bias")),
        "output_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
    }
    if "rotary" not in changes:
        numbers["rotary"] = compute_rotary_angles(config, head_size)
    return BlockGeometry(**{**numbers, **changes})


def _qwen2(config: Config, layer: int) -> BlockGeometry:
    return _llama(config, layer, qkv_bias=True, output_bias=False)


def _qwen3(config: Config, layer: int) -> BlockGeometry:
    return _llama(config, layer, qk_norm="head")


def _smollm3(config: Config, layer: int) -> BlockGeometry:
    use_rope = config.get("no_rope_layers")  # 1: with rotary positions
    interval = read_whole(config, "no_rope_layer_interval", 4)
    listed = use_rope[layer : layer + 1] if isinstance(use_rope, list) else []
    if listed[0] if listed else (layer + 1) % interval != 0:
        return _llama(config, layer)
    return _llama(config, layer, rotary=())


def _phi3(config: Config, layer: int) -> BlockGeometry:
    return _llama(config, layer, qkv_bias=False, output_bias=False)


def _gemma(config: Config, layer: int, **changes: Any) -> BlockGeometry:
    name = config.get("hidden_activation") or config.get("hidden_act")
    name = "gelu_tanh" if name in (None, "gelu") else name  # old files say gelu, but the tanh form was trained
    config = {**config, "hidden_activation": name}
    return _llama(config, layer, gain_offset=1.0, **changes)


def _gemma2(config: Config, layer: int, **changes: Any) -> BlockGeometry:
    return _gemma(
        config,
        layer,
        post_norm=True,
        attention_scale=read_number(config, "query_pre_attn_scalar", 256) ** -0.5,
        score_cap=read_number(config, "attn_logit_softcapping", 0.0),
        **changes,
    )


def _gemma3(config: Config, layer: int) -> BlockGeometry:
    types, pattern = config.get("layer_types"), read_whole(config, "sliding_window_pattern", 6)
    is_local = types[layer] == "sliding_attention" if isinstance(types, list) else (layer + 1) % pattern != 0
    head_size = read_whole(config, "head_dim", 256)
    if config.get("rope_parameters"):
        rotary = compute_rotary_angles(config, head_size, kind="sliding_attention" if is_local else "full_attention")
    elif is_local:
        rotary = compute_rotary_angles({"rope_theta": read_number(config, "rope_local_base_freq", 1e4)}, head_size)
    else:
        rotary = compute_rotary_angles(config, head_size, base=1e6)
    return _gemma2(config, layer, qk_norm="head", rotary=rotary)


def _olmo2(config: Config, layer: int) -> BlockGeometry:
    return _llama(config, layer, pre_norm=False, post_norm=True, qk_norm="all")


def _layer_norm_geometry(config: Config, width: int, heads: int, **numbers: Any) -> BlockGeometry:
    """Return the geometry of a layer with LayerNorm, an ungated MLP, and keys and values for each head."""
    return BlockGeometry(
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_size=max(width // heads, 1),
        norm="layer",
        gated=False,
        activation=_activation(config),
        **numbers,
    )


def _gpt2(config: Config, layer: int) -> BlockGeometry:
    width, heads = read_whole(config, "n_embd"), read_whole(config, "n_head")
    return _layer_norm_geometry(
        config,
        width,
        heads,
        mlp_width=read_whole(config, "n_inner", 4 * width),
        norm_eps=read_number(config, "layer_norm_epsilon", 1e-5),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        attention_scale=0.0 if config.get("scale_attn_weights", True) else 1.0,
    )


def _opt(config: Config, layer: int) -> BlockGeometry:
    width, heads = read_whole(config, "hidden_size"), read_whole(config, "num_attention_heads")
    biases = bool(config.get("enable_bias", True))
    return _layer_norm_geometry(
        config,
        width,
        heads,
        mlp_width=read_whole(config, "ffn_dim"),
        norm_eps=1e-5,
        qkv_bias=biases,
        output_bias=biases,
        mlp_bias=biases,
    )


def _gpt_neox(config: Config, layer: int) -> BlockGeometry:
    config = {"rope_theta": config.get("rotary_emb_base"), **config}
    width, heads = read_whole(config, "hidden_size"), read_whole(config, "num_attention_heads")
    biases = bool(config.get("attention_bias", True))
    return _layer_norm_geometry(
        config,
        width,
        heads,
        mlp_width=read_whole(config, "intermediate_size"),
        norm_eps=read_number(config, "layer_norm_eps", 1e-5),
        parallel=bool(config.get("use_parallel_residual", True)),
        qkv_bias=biases,
        output_bias=biases,
        mlp_bias=True,
        rotary=compute_rotary_angles(config, max(width // heads, 1)),
    )


def _list_defaults(
    width: int, mlp_width: int, layers: int, heads: int, kv_heads: int | None, **other: Any
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **other,
    }


GPT2_SIZES = {"n_embd": 768, "n_head": 12, "n_layer": 12, "activation_function": "gelu_new"}
OPT_SIZES = {"hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
FAMILIES = {
    "llama": Family(LLAMA, _list_defaults(4096, 11008, 32, 32, None), _llama),
    "mistral": Family(LLAMA, _list_defaults(4096, 14336, 32, 32, 8), _llama),
    "qwen2": Family(LLAMA, _list_defaults(4096, 22016, 32, 32, 32), _qwen2),
    "qwen3": Family({**LLAMA, **QK_NORMS}, _list_defaults(4096, 22016, 32, 32, 32, head_dim=128), _qwen3),
    "smollm3": Family(LLAMA, _list_defaults(2048, 11008, 36, 16, 4, rope_theta=2e6), _smollm3),
    "phi3": Family(PHI3, _list_defaults(3072, 8192, 32, 32, None, rms_norm_eps=1e-5), _phi3),
    "gemma": Family(LLAMA, _list_defaults(3072, 24576, 28, 16, 16, head_dim=256), _gemma),
    "gemma2": Family(
        {**LLAMA, **SANDWICH}, _list_defaults(2304, 9216, 26, 8, 4, head_dim=256, attn_logit_softcapping=50.0), _gemma2
    ),
    "gemma3_text": Family(
        {**LLAMA, **SANDWICH, **QK_NORMS}, _list_defaults(2304, 9216, 26, 8, 4, head_dim=256), _gemma3
    ),
    "olmo2": Family(
        {**LLAMA, **SANDWICH, **QK_NORMS}, _list_defaults(4096, 11008, 32, 32, None, rms_norm_eps=1e-5), _olmo2
    ),
    "gpt2": Family(
        GPT2,
        GPT2_SIZES,
        _gpt2,
        layers="h",
        final_norm="ln_f",
        transposed=True,
        only_if={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
    "opt": Family(
        OPT,
        {**OPT_SIZES, "activation_function": "relu"},
        _opt,
        final_norm="final_layer_norm",
        only_if={"do_layer_norm_before": True, "layer_norm_elementwise_affine": True},
    ),
    "gpt_neox": Family(
        GPT_NEOX,
        _list_defaults(6144, 24576, 44, 64, None, hidden_act="gelu", rotary_pct=0.25),
        _gpt_neox,
        final_norm="final_layer_norm",
        by_head=True,
    ),
}
NATIVE = tuple(FAMILIES)
