# SPDX-License-Identifier: Apache-2.0
"""GGUF metadata and tensors -> layers as block.py runs them, undoing what llama.cpp's converter does to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from monai_llmboost.llm.donor.families import FAMILIES, make_geometry
from monai_llmboost.llm.donor.gguf.file import FLOATS, GgufFile
from monai_llmboost.llm.donor.names import Names, check_depth, deinterleave_rotary, rename_tensors, unify_dtype
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
ROPE_FACTORS = "rope_freqs.weight"  # by which the turns of each pair are slowed down
UNUSED = ("attn_rot_embd.weight",)  # of a layer; angles that older converters wrote


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp's converter writes one architecture.

    Args:
        family: the family of families.py that it is.
        names: module in the file -> module of block.py.
        paired: rotary pairs of queries and keys lie side by side, instead of first halves before second halves.
        gain_added: what the converter added to every RMSNorm gain.
        full_scale_layers: number of layers of the one size whose attention is scaled by width / heads, not head size.
    """

    family: str
    names: Names
    paired: bool = False
    gain_added: float = 0.0
    full_scale_layers: int = 0


ARCHITECTURES = {
    "llama": Architecture("llama", {**NORMS, **ATTENTION, **GATED}, paired=True),  # Mistral's too
    "smollm3": Architecture("smollm3", {**NORMS, **ATTENTION, **GATED}, paired=True),
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
    """Return layers of the model in a GGUF file, or in the parts of one.

    Args:
        files: the parts by name, the one with the metadata first.
        read: how tensors of a part are read.
        donor: name of the model.
        choose: number of layers -> indices of those that are wanted.

    Raises:
        ValueError: the model is of a kind that cannot be a donor, is damaged, or ``choose`` refuses.
    """
    metadata = next(iter(files.values())).metadata
    architecture = _architecture(metadata, donor)
    number = _whole(metadata, "block_count")
    places = {name: file for file, content in files.items() for name in content.entries}
    if sum(len(content.entries) for content in files.values()) != len(places):
        raise ValueError(f"the parts of {donor} hold one tensor twice: download them again")
    indices = list(choose(number))
    check_depth(places, "blk.", number, donor)
    norm = [name for name in ("output_norm.weight", "output_norm.bias") if name in places]
    wanted = [name for name in places if any(name.startswith(f"blk.{index}.") for index in indices)]
    extra = [ROPE_FACTORS] if ROPE_FACTORS in places else []
    stored: dict[str, Tensor] = {}
    for file in files:
        stored |= read(file, [name for name in (*wanted, *norm, *extra) if places[name] == file])
    kinds = {files[places[name]].entries[name].kind for name in wanted}
    layers = [_layer(architecture, metadata, stored, index, donor) for index in indices]
    final = {name.rpartition(".")[2]: _remove_offset(architecture, name, stored[name]) for name in norm}
    return DonorLayers(
        tuple(layers),
        donor,
        number,
        licence=_licence(metadata),
        final_norm=final,
        quantised=", ".join(sorted(kinds - FLOATS.keys())),
    )


def _licence(metadata: Metadata) -> str:
    """Return the licence as a model's card would name it."""
    name, more = metadata.get("general.license"), metadata.get("general.license.name")
    if not isinstance(name, str):
        return ""
    return f"other ({more})" if name == "other" and isinstance(more, str) else name


def _architecture(metadata: Metadata, donor: str) -> Architecture:
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{donor} is a GGUF file of the architecture {name!r}, which is not read; {', '.join(ARCHITECTURES)} are: "
            "give the model's safetensors form"
        )
    if metadata.get(f"{name}.expert_count"):
        raise ValueError(
            f"{donor} is a mixture of experts, which is not read from GGUF: give the model's safetensors form"
        )
    return ARCHITECTURES[name]


def _value(metadata: Metadata, key: str, layer: int | None = None) -> Any:
    """Return what the metadata say below the architecture's name; of a list its entry for the layer."""
    found = metadata.get(f"{metadata['general.architecture']}.{key}")
    if isinstance(found, list):
        return found[layer] if layer is not None and layer < len(found) else None
    return found


def _whole(metadata: Metadata, key: str) -> int:
    found = _value(metadata, key)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 < found < 10_000:
        raise ValueError(f"expected {key} in the GGUF file's metadata, got {found!r}: download it again")
    return found


def _layer(
    architecture: Architecture, metadata: Metadata, stored: Mapping[str, Tensor], index: int, donor: str
) -> Layer:
    begin = f"blk.{index}."
    found = {name.removeprefix(begin): tensor for name, tensor in stored.items() if name.startswith(begin)}
    found = {name: _remove_offset(architecture, name, tensor) for name, tensor in found.items() if name not in UNUSED}
    try:
        geometry = _geometry(architecture, metadata, found, stored.get(ROPE_FACTORS), index)
        tensors = rename_tensors(architecture.names, geometry, found)
    except ValueError as error:
        raise ValueError(f"layer {index} of {donor}: {error}") from error
    if architecture.paired:
        # Without rotary positions the order cancels; it is undone so that both forms of one model are one block.
        for name in tensors:
            if name.startswith(("query.", "key.")):
                tensors[name] = deinterleave_rotary(tensors[name], geometry.head_size)
    return Layer(unify_dtype(tensors), geometry, index=index)


def _remove_offset(architecture: Architecture, name: str, tensor: Tensor) -> Tensor:
    """Return a gain as the model itself stores it."""
    if architecture.gain_added and name.endswith("norm.weight"):
        return tensor.float() - architecture.gain_added
    return tensor


def _geometry(
    architecture: Architecture,
    metadata: Metadata,
    found: Mapping[str, Tensor],
    factors: Tensor | None,
    index: int,
) -> BlockGeometry:
    config = _config(architecture, metadata, index, found.get("attn_q.weight"))
    if architecture.family == "gpt2" and "ffn_up.weight" in found:  # the converter writes 4 * width, whatever it is
        config["n_inner"] = found["ffn_up.weight"].shape[0]
    family = FAMILIES[architecture.family]
    geometry = make_geometry(family, config, index)
    size = _value(metadata, "attention.value_length", index)
    if size not in (None, geometry.head_size):
        raise ValueError(f"expected values of {geometry.head_size} features a head, got {size}: choose another donor")
    if architecture.family in ("llama", "gpt_neox"):  # of which some have biases, and no metadata say so
        biases = "attn_q.bias" in found or "attn_qkv.bias" in found
        geometry = replace(
            geometry, qkv_bias=biases, output_bias="attn_output.bias" in found, mlp_bias="ffn_up.bias" in found
        )
    if factors is not None and geometry.rotary:
        if factors.numel() != len(geometry.rotary):
            raise ValueError(f"expected {len(geometry.rotary)} of {ROPE_FACTORS}, got {factors.numel()}")
        turns = tuple(angle / factor for angle, factor in zip(geometry.rotary, factors.double().tolist()))
        geometry = replace(geometry, rotary=turns)
    return geometry


def _config(architecture: Architecture, metadata: Metadata, index: int, queries: Tensor | None) -> dict[str, Any]:
    """Return the numbers by the names that families.py reads in a ``config.json``; what is not there is left out."""

    def value(key: str) -> Any:
        return _value(metadata, key, index)

    width, heads = value("embedding_length"), value("attention.head_count")
    layer_norm = architecture.family in ("gpt2", "gpt_neox")
    epsilon = "attention.layer_norm_epsilon" if layer_norm else "attention.layer_norm_rms_epsilon"
    for key in ("embedding_length", "attention.head_count", "feed_forward_length", epsilon):
        if value(key) is None:
            raise ValueError(f"expected {key} in the GGUF file's metadata, found none: download it again")
    whole = isinstance(width, int) and isinstance(heads, int) and heads > 0
    inner = queries.shape[0] if queries is not None else width  # where no metadata give the size of a head
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
    turned = value("rope.dimension_count")
    partly = isinstance(turned, int) and isinstance(head_size, int) and 0 < turned < head_size
    # Half a feature more, which is left off where this is made a number of features again.
    config["partial_rotary_factor"] = config["rotary_pct"] = (turned + 0.5) / head_size if partly else 1.0
    near = value("attention.sliding_window_pattern")
    if isinstance(near, bool):
        config["layer_types"] = ["sliding_attention" if near else "full_attention"] * (index + 1)
    elif near is not None:
        config["sliding_window_pattern"] = near
    kind = value("rope.scaling.type")
    if kind not in (None, "none"):
        config["rope_scaling"] = {"rope_type": kind, "factor": value("rope.scaling.factor") or 1.0}
    if architecture.full_scale_layers:
        full = whole and value("block_count") == architecture.full_scale_layers
        config["query_pre_attn_scalar"] = width // heads if full else head_size
    return config
