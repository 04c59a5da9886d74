# SPDX-License-Identifier: Apache-2.0
"""Layers out of a checkpoint as Meta and Mistral hand them out: ``params.json`` and ``consolidated.*``."""

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
# A checkpoint of several files splits these along their inputs; the norms are repeated; all else along its outputs.
SPLIT_BY_INPUT = ("output.weight", "down.weight")
# What `use_scaled_rope` stands for in Meta's own code for Llama 3.1; of the small ones of 3.2, told by width and number
# of layers, the factor is another, which is not in params.json.
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
SMALL, SMALL_FACTOR = ((2048, 16), (3072, 28)), 32.0
# Keys of params.json that make another layer of it.
OTHER_LAYERS = {
    "moe": "a mixture of experts",
    "quantization": "a quantised model",
    "q_lora_rank": "a model with latent attention",
}


def read_native(files: Files, parts: Sequence[WeightSet], choose: Callable[[int], Sequence[int]]) -> DonorLayers:
    """Return layers of the model whose ``params.json`` lies next to these weights.

    Args:
        files: the model.
        parts: the files that its matrices are split over, or the one set that holds them whole.
        choose: number of layers -> indices of those that are wanted.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or says something impossible, the model is of another kind, or ``choose`` refuses.
    """
    params = _params(files)
    number = read_whole(params, "n_layers")
    indices = choose(number)
    maps = [part.weight_map(files) for part in parts]
    check_depth(maps[0], "layers.", number, files.donor)
    layers = [_layer(params, _read(files, parts, maps, f"layers.{index}."), index, files.donor) for index in indices]
    norm = _read(files, parts[:1], maps[:1], "norm.weight")[0]
    return DonorLayers(
        tuple(layers),
        files.donor,
        number,
        files.revision,
        files.find_licence(),
        {"weight": norm["norm.weight"]} if norm else {},
    )


def _params(files: Files) -> dict[str, Any]:
    """Return the content of ``params.json``.

    Raises:
        ValueError: it describes a model of another kind, or is damaged.
    """
    params = files.read_json("params.json") or {}
    for key, what in OTHER_LAYERS.items():
        if params.get(key):
            raise ValueError(
                f"{files.donor} is {what} by its params.json ({key}), which is not read: choose another donor"
            )
    return params


def _read(
    files: Files, parts: Sequence[WeightSet], maps: Sequence[dict[str, str]], begin: str
) -> list[dict[str, Tensor]]:
    """Return the tensors of each part whose names begin so."""
    return [part.read(files, weight_map, lambda name: name.startswith(begin)) for part, weight_map in zip(parts, maps)]


def _layer(params: dict[str, Any], parts: list[dict[str, Tensor]], index: int, donor: str) -> Layer:
    prefix = f"layers.{index}."
    tensors = {}
    for old, new in META.items():
        pieces = [part[prefix + old] for part in parts if prefix + old in part]
        if len(pieces) != len(parts):
            raise ValueError(
                f"layer {index} of {donor}: expected {old} in every consolidated file, found it in {len(pieces)} of "
                f"{len(parts)}: download all its files"
            )
        whole = pieces[0].ndim == 1 or len(pieces) == 1
        tensors[new] = pieces[0] if whole else torch.cat(pieces, dim=1 if new in SPLIT_BY_INPUT else 0)
    unknown = sorted({n for part in parts for n in part if n.startswith(prefix)} - {prefix + old for old in META})
    unknown = [name for name in unknown if not name.endswith("inv_freq")]
    if unknown:
        raise ValueError(f"layer {index} of {donor}: expected a layer of LLaMA, it also has {unknown}")
    geometry = _geometry(params, tensors["gate.weight"].shape[0])
    geometry.check_tensors(tensors)  # also tells if the last of several files is missing
    # Without rotary positions the order cancels; it is undone so that both forms of one model have one fingerprint.
    for name in ("query.weight", "key.weight"):
        tensors[name] = deinterleave_rotary(tensors[name], geometry.head_size)
    return Layer(unify_dtype(tensors), geometry, index=index)


def _geometry(params: dict[str, Any], mlp_width: int) -> BlockGeometry:
    width, heads = read_whole(params, "dim"), read_whole(params, "n_heads")
    if width % heads and not params.get("head_dim"):
        raise ValueError(f"expected dim to be a multiple of n_heads, got {width} and {heads}: correct params.json")
    if params.get("hidden_dim") not in (None, mlp_width):
        raise ValueError(
            f"expected hidden_dim {mlp_width} by the weights, got {params['hidden_dim']}: params.json and weights are "
            "not of one model, download them again"
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
