# SPDX-License-Identifier: Apache-2.0
"""Families of language models whose layer block.py runs itself: how each writes its numbers in ``config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from monai_llmboost.llm.donor.names import GPT2, GPT_NEOX, LLAMA, OPT, PHI3, QK_NORMS, SANDWICH, Names
from monai_llmboost.llm.donor.numbers import Config, compute_rotary_angles, read_number, read_whole
from monai_llmboost.llm.geometry import BlockGeometry

# As configurations spell them.
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu",
    "gelu_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How one family writes its layers.

    Args:
        names: module on disk -> module of block.py.
        defaults: what its configuration class of `transformers` takes for keys that a ``config.json`` leaves out.
        geometry: configuration and index of a layer -> its numbers.
        layers: last word of the list of layers on disk.
        final_norm: last word of the model's norm behind its last layer.
        transposed: matrices are stored (in, out).
        by_head: queries, keys and values stored as one lie head by head, not one after the other.
        only_if: what a configuration must say (or leave out) for this to hold.
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
    """The part of a configuration that is about the language model, with its family's defaults for what is left out."""
    inner = config.get("text_config")
    text = inner if isinstance(inner, Mapping) and str(config.get("model_type")) not in FAMILIES else config
    family = FAMILIES.get(str(text.get("model_type")))
    return text if family is None else {**family.defaults, **text}


def find_family(config: Config) -> Family | None:
    """The family whose layer a (text) configuration describes; ``None`` if block.py has not all that it takes."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or any(config.get(key, value) != value for key, value in family.only_if.items()):
        return None
    return family if _activation_name(config) in ACTIVATIONS else None


def _activation_name(config: Config) -> str:
    return str(config.get("hidden_activation") or config.get("hidden_act") or config.get("activation_function", "silu"))


def _activation(config: Config) -> str:
    return ACTIVATIONS[_activation_name(config)]


def make_geometry(family: Family, config: Config, layer: int) -> BlockGeometry:
    """The numbers of one layer.

    Raises:
        ValueError: one is missing or impossible.
    """
    try:
        return family.geometry({**family.defaults, **config}, layer)
    except (ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(
            f"expected a configuration of {config.get('model_type')}, its numbers do not go together ({error}): "
            "download config.json again"
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
    turned = config.get("no_rope_layers")
    interval = read_whole(config, "no_rope_layer_interval", 4)
    rotates = turned[layer] if isinstance(turned, list) and layer < len(turned) else (layer + 1) % interval != 0
    if rotates:
        return _llama(config, layer)
    return _llama(config, layer, rotary=())


def _phi3(config: Config, layer: int) -> BlockGeometry:
    return _llama(config, layer, qkv_bias=False, output_bias=False)


def _gemma(config: Config, layer: int, **changes: Any) -> BlockGeometry:
    word = config.get("hidden_activation") or config.get("hidden_act")
    word = "gelu_tanh" if word in (None, "gelu") else word  # of old files: the tanh form is what was trained
    config = {**config, "hidden_activation": word}
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
    near = types[layer] == "sliding_attention" if isinstance(types, list) else (layer + 1) % pattern != 0
    head_size = read_whole(config, "head_dim", 256)
    if config.get("rope_parameters"):
        rotary = compute_rotary_angles(config, head_size, kind="sliding_attention" if near else "full_attention")
    elif near:
        rotary = compute_rotary_angles({"rope_theta": read_number(config, "rope_local_base_freq", 1e4)}, head_size)
    else:
        rotary = compute_rotary_angles(config, head_size, base=1e6)
    return _gemma2(config, layer, qk_norm="head", rotary=rotary)


def _olmo2(config: Config, layer: int) -> BlockGeometry:
    return _llama(config, layer, pre_norm=False, post_norm=True, qk_norm="all")


def _gpt2(config: Config, layer: int) -> BlockGeometry:
    width, heads = read_whole(config, "n_embd"), read_whole(config, "n_head")
    return BlockGeometry(
        width=width,
        mlp_width=read_whole(config, "n_inner", 4 * width),
        num_heads=heads,
        num_kv_heads=heads,
        head_size=max(width // heads, 1),
        norm_eps=read_number(config, "layer_norm_epsilon", 1e-5),
        norm="layer",
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        gated=False,
        activation=_activation(config),
        attention_scale=0.0 if config.get("scale_attn_weights", True) else 1.0,
    )


def _opt(config: Config, layer: int) -> BlockGeometry:
    width, heads = read_whole(config, "hidden_size"), read_whole(config, "num_attention_heads")
    biases = bool(config.get("enable_bias", True))
    return BlockGeometry(
        width=width,
        mlp_width=read_whole(config, "ffn_dim"),
        num_heads=heads,
        num_kv_heads=heads,
        head_size=max(width // heads, 1),
        norm_eps=1e-5,
        norm="layer",
        qkv_bias=biases,
        output_bias=biases,
        mlp_bias=biases,
        gated=False,
        activation=_activation(config),
    )


def _gpt_neox(config: Config, layer: int) -> BlockGeometry:
    config = {"rope_theta": config.get("rotary_emb_base"), **config}
    width, heads = read_whole(config, "hidden_size"), read_whole(config, "num_attention_heads")
    biases = bool(config.get("attention_bias", True))
    return BlockGeometry(
        width=width,
        mlp_width=read_whole(config, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=heads,
        head_size=max(width // heads, 1),
        norm_eps=read_number(config, "layer_norm_eps", 1e-5),
        norm="layer",
        parallel=bool(config.get("use_parallel_residual", True)),
        qkv_bias=biases,
        output_bias=biases,
        mlp_bias=True,
        gated=False,
        activation=_activation(config),
        rotary=compute_rotary_angles(config, max(width // heads, 1)),
    )


def _sizes(width: int, mlp_width: int, layers: int, heads: int, kv_heads: int | None, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


GPT2_SIZES = {"n_embd": 768, "n_head": 12, "n_layer": 12, "activation_function": "gelu_new"}
OPT_SIZES = {"hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
FAMILIES = {
    "llama": Family(LLAMA, _sizes(4096, 11008, 32, 32, None), _llama),
    "mistral": Family(LLAMA, _sizes(4096, 14336, 32, 32, 8), _llama),
    "qwen2": Family(LLAMA, _sizes(4096, 22016, 32, 32, 32), _qwen2),
    "qwen3": Family({**LLAMA, **QK_NORMS}, _sizes(4096, 22016, 32, 32, 32, head_dim=128), _qwen3),
    "smollm3": Family(LLAMA, _sizes(2048, 11008, 36, 16, 4, rope_theta=2e6), _smollm3),
    "phi3": Family(PHI3, _sizes(3072, 8192, 32, 32, None, rms_norm_eps=1e-5), _phi3),
    "gemma": Family(LLAMA, _sizes(3072, 24576, 28, 16, 16, head_dim=256), _gemma),
    "gemma2": Family(
        {**LLAMA, **SANDWICH}, _sizes(2304, 9216, 26, 8, 4, head_dim=256, attn_logit_softcapping=50.0), _gemma2
    ),
    "gemma3_text": Family({**LLAMA, **SANDWICH, **QK_NORMS}, _sizes(2304, 9216, 26, 8, 4, head_dim=256), _gemma3),
    "olmo2": Family({**LLAMA, **SANDWICH, **QK_NORMS}, _sizes(4096, 11008, 32, 32, None, rms_norm_eps=1e-5), _olmo2),
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
        _sizes(6144, 24576, 44, 64, None, hidden_act="gelu", rotary_pct=0.25),
        _gpt_neox,
        final_norm="final_layer_norm",
        by_head=True,
    ),
}
NATIVE = tuple(FAMILIES)
