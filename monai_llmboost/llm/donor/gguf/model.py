# SPDX-License-Identifier: Apache-2.0
"""Convert GGUF metadata and tensors to layers for block.py, reversing the changes of llama.cpp's converter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from monai_llmboost.arguments import is_whole
from monai_llmboost.llm.donor.families import FAMILIES, make_geometry
from monai_llmboost.llm.donor.gguf.file import FLOATS, GgufFile
from monai_llmboost.llm.donor.names import (
    Names,
    check_depth,
    deinterleave_rotary,
    rename_tensors,
    select_prefix,
    unify_dtype,
)
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import DonorLayers, Layer

Metadata = Mapping[str, Any]
Read = Callable[[str, list[str]], dict[str, Tensor]]  # file, names -> tensors

ATTENTION: Names = {"attn_q": "query", "attn_k": "key", "attn_v": "value", "attn_output": "output"}
FUSED: Names = {"attn_qkv": ("query", "key", "value"), "attn_output": "output"}
NORMS: Names = {"attn_norm": "attention_norm", "ffn_norm": "mlp_norm"}
POST_NORMS: Names = {"post_attention_norm": "attention_post_norm", "post_ffw_norm": "mlp_post_norm"}
QK_NORMS: Names = {"attn_q_norm": "query_norm", "attn_k_norm": "key_norm"}
GATED: Names = {"ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}
PLAIN: Names = {"ffn_up": "up", "ffn_down": "down"}
GATE_AND_UP: Names = {"ffn_up": ("gate", "up"), "ffn_down": "down"}
ROPE_FACTORS = "rope_freqs.weight"  # divisors of the rotary angles
UNUSED = ("attn_rot_embd.weight",)  # tensors of a layer: rotary angles from old converters


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp's converter writes one architecture.

    Args:
        family: name of its family in families.py.
        names: module name in the file -> module name in block.py.
        interleaved: rotary pairs of queries and keys are interleaved, instead of half a head apart.
        gain_added: constant that the converter added to every RMSNorm gain.
        full_scale_layers: number of layers of the model size that scales attention by width / heads, not head size.
    """

    family: str
    names: Names
    interleaved: bool = False
    gain_added: float = 0.0
    full_scale_layers: int = 0


ARCHITECTURES = {
    "llama": Architecture("llama", {**NORMS, **ATTENTION, **GATED}, interleaved=True),  # Mistral's too
    "smollm3": Architecture("smollm3", {**NORMS, **ATTENTION, **GATED}, interleaved=True),
    "qwen2": Architecture("qwen2", {**NORMS, **ATTENTION, **GATED}),
    "qwen3": Architecture("qwen3", {**NORMS, **ATTENTION, **QK_NORMS, **GATED}),
    "phi3": Architecture("phi3", {**NORMS, **FUSED, **ATTENTION, **GATE_AND_UP}),
    "gemma": Architecture("gemma", {**NORMS, **ATTENTION, **GATED}, gain_added=1.0),
    "gemma2": Architecture(
        "gemma2", {**NORMS, **POST_NORMS, **ATTENTION, **GATED}, gain_added=1.0, full_scale_layers=46
    ),
    "gemma3": Architecture(
        "gemma3_text",
        {**NORMS, **POST_NORMS, **ATTENTION, **QK_NORMS, **GATED},
        gain_added=1.0,
        full_scale_layers=62,
    ),
    "olmo2": Architecture("olmo2", {**POST_NORMS, **ATTENTION, **QK_NORMS, **GATED}),
    "gpt2": Architecture("gpt2", {**NORMS, **FUSED, **PLAIN}),
    "gptneox": Architecture("gpt_neox", {**NORMS, **FUSED, **PLAIN}),
}


def read_gguf(
    files: Mapping[str, GgufFile], read: Read, donor: str, choose: Callable[[int], Sequence[int]]
) -> DonorLayers:
    """Read layers of the model in a GGUF file, or in its parts.

    Args:
        files: the parts by name, the one with the metadata first.
        read: function that reads tensors of a part.
        donor: name of the model.
        choose: function from the number of layers to the wanted layer indices.

    Raises:
        ValueError: the model cannot be a donor, is damaged, or ``choose`` raises.
    """
    metadata = next(iter(files.values())).metadata
    architecture = _find_architecture(metadata, donor)
    number = _read_whole(metadata, "block_count")
    places = {name: file for file, content in files.items() for name in content.entries}
    if sum(len(content.entries) for content in files.values()) != len(places):
        raise ValueError(f"the parts of {donor} contain a tensor twice: download them again")
    indices = list(choose(number))
    check_depth(places, "blk.", number, donor)
    norm = [name for name in ("output_norm.weight", "output_norm.bias") if name in places]
    wanted = [name for name in places if any(name.startswith(f"blk.{index}.") for index in indices)]
    extra = [ROPE_FACTORS] if ROPE_FACTORS in places else []
    stored = _read_tensors(read, files, {name: places[name] for name in (*wanted, *norm, *extra)})
    kinds = {files[places[name]].entries[name].kind for name in wanted}
    layers = [_make_layer(architecture, metadata, stored, index, donor) for index in indices]
    final = {name.rpartition(".")[2]: _remove_offset(architecture, name, stored[name]) for name in norm}
    return DonorLayers(
        tuple(layers),
        donor,
        number,
        licence=_format_licence(metadata),
        final_norm=final,
        quantised=", ".join(sorted(kinds - FLOATS.keys())),
    )


def _read_tensors(read: Read, files: Iterable[str], places: Mapping[str, str]) -> dict[str, Tensor]:
    """Read tensors from the parts in which they are."""
    stored: dict[str, Tensor] = {}
    for file in files:
        stored |= read(file, [name for name, place in places.items() if place == file])
    return stored


def _format_licence(metadata: Metadata) -> str:
    """Return the licence, in the form of a model card."""
    name, custom = metadata.get("general.license"), metadata.get("general.license.name")
    if not isinstance(name, str):
        return ""
    return f"other ({custom})" if name == "other" and isinstance(custom, str) else name


def _find_architecture(metadata: Metadata, donor: str) -> Architecture:
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{donor} is a GGUF file of the unsupported architecture {name!r}: give the model's safetensors form, or a "
            f"GGUF file of {', '.join(ARCHITECTURES)}"
        )
    if metadata.get(f"{name}.expert_count"):
        raise ValueError(
            f"{donor} is a mixture of experts, which is not supported in GGUF: give the model's safetensors form"
        )
    return ARCHITECTURES[name]


def _read_value(metadata: Metadata, key: str, layer: int | None = None) -> Any:
    """Return a metadata value of the architecture; from a list, the entry of the layer."""
    found = metadata.get(f"{metadata['general.architecture']}.{key}")
    if isinstance(found, list):
        return found[layer] if layer is not None and layer < len(found) else None
    return found


def _read_whole(metadata: Metadata, key: str) -> int:
    found = _read_value(metadata, key)
    if not is_whole(found) or not 0 < found < 10_000:
        raise ValueError(f"{key} in the GGUF metadata must be a whole number from 1, not {found!r}: download it again")
    return found


def _make_layer(
    architecture: Architecture, metadata: Metadata, stored: Mapping[str, Tensor], index: int, donor: str
) -> Layer:
    found = select_prefix(f"blk.{index}.", stored)
    found = {name: _remove_offset(architecture, name, tensor) for name, tensor in found.items() if name not in UNUSED}
    try:
        geometry = _make_geometry(architecture, metadata, found, stored.get(ROPE_FACTORS), index)
        tensors = rename_tensors(architecture.names, geometry, found)
    except ValueError as error:
        raise ValueError(f"layer {index} of {donor}: {error}") from error
    if architecture.interleaved:
        # Without rotary positions the order has no effect; it is undone so that both formats give the same block.
        for name in tensors:
            if name.startswith(("query.", "key.")):
                tensors[name] = deinterleave_rotary(tensors[name], geometry.head_size)
    return Layer(unify_dtype(tensors), geometry, index=index)


def _remove_offset(architecture: Architecture, name: str, tensor: Tensor) -> Tensor:
    """Return a gain as the original model stores it."""
    if architecture.gain_added and name.endswith("norm.weight"):
        return tensor.float() - architecture.gain_added
    return tensor


def _make_geometry(
    architecture: Architecture,
    metadata: Metadata,
    found: Mapping[str, Tensor],
    factors: Tensor | None,
    index: int,
) -> BlockGeometry:
    config = _make_config(architecture, metadata, index, found.get("attn_q.weight"))
    if architecture.family == "gpt2" and "ffn_up.weight" in found:  # the converter always writes 4 * width
        config["n_inner"] = found["ffn_up.weight"].shape[0]
    family = FAMILIES[architecture.family]
    geometry = make_geometry(family, config, index)
    size = _read_value(metadata, "attention.value_length", index)
    if size not in (None, geometry.head_size):
        raise ValueError(f"values must have {geometry.head_size} features per head, not {size}: choose another donor")
    if architecture.family in ("llama", "gpt_neox"):  # some have biases, which the metadata do not mention
        biases = "attn_q.bias" in found or "attn_qkv.bias" in found
        geometry = replace(
            geometry, qkv_bias=biases, output_bias="attn_output.bias" in found, mlp_bias="ffn_up.bias" in found
        )
    if factors is not None and geometry.rotary:
        if factors.numel() != len(geometry.rotary):
            raise ValueError(
                f"{ROPE_FACTORS} must have {len(geometry.rotary)} values, not {factors.numel()}: download it again"
            )
        angles = tuple(angle / factor for angle, factor in zip(geometry.rotary, factors.double().tolist()))
        geometry = replace(geometry, rotary=angles)
    return geometry


def _make_config(architecture: Architecture, metadata: Metadata, index: int, queries: Tensor | None) -> dict[str, Any]:
    """Return the metadata under the keys of a ``config.json``, for families.py; missing values are left out."""

    def value(key: str) -> Any:
        return _read_value(metadata, key, index)

    width, heads = value("embedding_length"), value("attention.head_count")
    layer_norm = architecture.family in ("gpt2", "gpt_neox")
    epsilon = "attention.layer_norm_epsilon" if layer_norm else "attention.layer_norm_rms_epsilon"
    _check_present(metadata, index, ("embedding_length", "attention.head_count", "feed_forward_length", epsilon))
    whole = isinstance(width, int) and isinstance(heads, int) and heads > 0
    inner = queries.shape[0] if queries is not None else width  # used if the metadata have no head size
    head_size = value("attention.key_length") or (inner // heads if whole else None)
    numbers = {
        "hidden_size": width,
        "n_embd": width,
        "intermediate_size": value("feed_forward_length"),
        "num_attention_heads": heads,
        "n_head": heads,
        "num_key_value_heads": value("attention.head_count_kv") or heads,
        "head_dim": head_size,
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "layer_norm_eps": value("attention.layer_norm_epsilon"),
        "layer_norm_epsilon": value("attention.layer_norm_epsilon"),
        "use_parallel_residual": value("use_parallel_residual"),
        "attn_logit_softcapping": value("attn_logit_softcapping"),
        "rope_theta": value("rope.freq_base"),
        "rope_local_base_freq": value("rope.freq_base_swa"),
    }
    config = {
        "model_type": architecture.family,
        **{key: number for key, number in numbers.items() if number is not None},
    }
    fraction = _compute_rotary_fraction(value("rope.dimension_count"), head_size)
    config["partial_rotary_factor"] = config["rotary_pct"] = fraction
    config |= _convert_window_pattern(value("attention.sliding_window_pattern"), index)
    kind = value("rope.scaling.type")
    if kind not in (None, "none"):
        config["rope_scaling"] = {"rope_type": kind, "factor": value("rope.scaling.factor") or 1.0}
    if architecture.full_scale_layers:
        full = whole and value("block_count") == architecture.full_scale_layers
        config["query_pre_attn_scalar"] = width // heads if full else head_size
    return config


def _check_present(metadata: Metadata, index: int, keys: Sequence[str]) -> None:
    """Raise ValueError if a metadata value of the layer is missing."""
    for key in keys:
        if _read_value(metadata, key, index) is None:
            raise ValueError(f"the GGUF metadata lack {key}: download the file again")


def _compute_rotary_fraction(rotated: Any, head_size: Any) -> float:
    """Return the fraction of a head's features that are rotated."""
    is_partial = isinstance(rotated, int) and isinstance(head_size, int) and 0 < rotated < head_size
    # Half a feature is added, because the fraction is rounded down to a number of features again.
    return (rotated + 0.5) / head_size if is_partial else 1.0


def _convert_window_pattern(is_local: Any, index: int) -> dict[str, Any]:
    """Return the layer's sliding window pattern under its key of a ``config.json``."""
    if isinstance(is_local, bool):
        return {"layer_types": ["sliding_attention" if is_local else "full_attention"] * (index + 1)}
    return {} if is_local is None else {"sliding_window_pattern": is_local}
