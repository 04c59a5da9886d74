# SPDX-License-Identifier: Apache-2.0
"""Read layers from a checkpoint in the format of Meta and Mistral: ``params.json`` and ``consolidated.*``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_llmboost.llm.donor.families import FAMILIES, make_geometry
from monai_llmboost.llm.donor.names import check_depth, deinterleave_rotary, unify_dtype
from monai_llmboost.llm.donor.numbers import read_whole
from monai_llmboost.llm.donor.weight_sets import Files, WeightSet
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import DonorLayers, Layer

META = {
    "attention_norm.weight": "attention_norm.weight",
    "attention.wq.weight": "query.weight",
    "attention.wk.weight": "key.weight",
    "attention.wv.weight": "value.weight",
    "attention.wo.weight": "output.weight",
    "ffn_norm.weight": "mlp_norm.weight",
    "feed_forward.w1.weight": "gate.weight",
    "feed_forward.w3.weight": "up.weight",
    "feed_forward.w2.weight": "down.weight",
}
# In a checkpoint of several files these are split by inputs, norms are repeated, and the rest is split by outputs.
SPLIT_BY_INPUT = ("output.weight", "down.weight")
# Meaning of `use_scaled_rope` in Meta's code for Llama 3.1. The small models of Llama 3.2 have another factor, which is
# not in params.json; width and number of layers identify them.
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
SMALL, SMALL_FACTOR = ((2048, 16), (3072, 28)), 32.0
# Keys of params.json that mean another kind of layer.
OTHER_LAYERS = {
    "moe": "a mixture of experts",
    "quantization": "a quantised model",
    "q_lora_rank": "a model with latent attention",
}


def read_native(files: Files, parts: Sequence[WeightSet], choose: Callable[[int], Sequence[int]]) -> DonorLayers:
    """Read layers of the model whose ``params.json`` is next to these weights.

    Args:
        files: files of the model.
        parts: files that its matrices are split over, or one set with the whole matrices.
        choose: function from the number of layers to the wanted layer indices.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or has an invalid value, the model cannot be a donor, or ``choose`` raises.
    """
    params = _read_params(files)
    number = read_whole(params, "n_layers")
    indices = choose(number)
    maps = [part.read_weight_map(files) for part in parts]
    check_depth(maps[0], "layers.", number, files.donor)
    layers = []
    for index in indices:
        stored = _read_parts(files, parts, maps, f"layers.{index}.")
        layers.append(_make_layer(params, stored, index, files.donor))
    norm = _read_parts(files, parts[:1], maps[:1], "norm.weight")[0]
    return DonorLayers(
        tuple(layers),
        files.donor,
        number,
        files.revision,
        files.find_licence(),
        {"weight": norm["norm.weight"]} if norm else {},
    )


def _read_params(files: Files) -> dict[str, Any]:
    """Return the content of ``params.json``.

    Raises:
        ValueError: it is damaged, or describes an unsupported kind of model.
    """
    params = files.read_json("params.json") or {}
    for key, kind in OTHER_LAYERS.items():
        if params.get(key):
            raise ValueError(
                f"{files.donor} is {kind} ({key} in params.json), which is not supported: choose another donor"
            )
    return params


def _read_parts(
    files: Files, parts: Sequence[WeightSet], maps: Sequence[dict[str, str]], begin: str
) -> list[dict[str, Tensor]]:
    """Return the tensors of each part whose names start with ``begin``."""
    return [part.read(files, weight_map, lambda name: name.startswith(begin)) for part, weight_map in zip(parts, maps)]


def _make_layer(params: dict[str, Any], parts: list[dict[str, Tensor]], index: int, donor: str) -> Layer:
    prefix = f"layers.{index}."
    tensors = {}
    for old, new in META.items():
        pieces = [part[prefix + old] for part in parts if prefix + old in part]
        if len(pieces) != len(parts):
            raise ValueError(
                f"layer {index} of {donor}: {old} is in only {len(pieces)} of {len(parts)} consolidated files: "
                "download all files"
            )
        tensors[new] = _join_pieces(new, pieces)
    unknown = sorted({n for part in parts for n in part if n.startswith(prefix)} - {prefix + old for old in META})
    unknown = [name for name in unknown if not name.endswith("inv_freq")]
    if unknown:
        raise ValueError(
            f"layer {index} of {donor} has tensors that LLaMA does not have, {unknown}: choose another donor"
        )
    geometry = _make_geometry(params, tensors["gate.weight"].shape[0])
    geometry.check_tensors(tensors)  # fails too if the last of several files is missing
    # Without rotary positions the order has no effect; it is undone so that both formats have the same fingerprint.
    for name in ("query.weight", "key.weight"):
        tensors[name] = deinterleave_rotary(tensors[name], geometry.head_size)
    return Layer(unify_dtype(tensors), geometry, index=index)


def _join_pieces(name: str, pieces: list[Tensor]) -> Tensor:
    """Join the pieces of a tensor that is split over several files."""
    if pieces[0].ndim == 1 or len(pieces) == 1:
        return pieces[0]
    return torch.cat(pieces, dim=1 if name in SPLIT_BY_INPUT else 0)


def _make_geometry(params: dict[str, Any], mlp_width: int) -> BlockGeometry:
    width, heads = read_whole(params, "dim"), read_whole(params, "n_heads")
    if width % heads and not params.get("head_dim"):
        raise ValueError(f"dim {width} in params.json is not a multiple of n_heads {heads}: correct it")
    if params.get("hidden_dim") not in (None, mlp_width):
        raise ValueError(
            f"hidden_dim in params.json is {params['hidden_dim']}, but {mlp_width} in the weights: they belong to "
            "different models, download them again"
        )
    scaling: Any = None
    if params.get("use_scaled_rope"):
        scaling = {**SCALED, "factor": SMALL_FACTOR} if (width, params.get("n_layers")) in SMALL else SCALED
    if params.get("yarn"):
        scaling = {"rope_type": "yarn"}
    return make_geometry(
        FAMILIES["llama"],
        {
            "hidden_size": width,
            "intermediate_size": mlp_width,
            "num_attention_heads": heads,
            "num_key_value_heads": params.get("n_kv_heads"),
            "head_dim": params.get("head_dim"),
            "rms_norm_eps": params.get("norm_eps"),
            "rope_theta": params.get("rope_theta", 10000.0),
            "rope_scaling": scaling,
        },
        0,
    )
