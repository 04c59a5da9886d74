# SPDX-License-Identifier: Apache-2.0
"""Layers out of a checkpoint as Meta hands out LLaMA: ``params.json`` and ``consolidated.*.pth``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_llmboost.artifacts.weights import TensorArchive
from monai_llmboost.llm.donor.families import FAMILIES, geometry_of
from monai_llmboost.llm.donor.hub import LocalFolder
from monai_llmboost.llm.donor.numbers import whole_number
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
# What `use_scaled_rope` stands for in Meta's own code for Llama 3.1 (the factor of 3.2 is not in params.json).
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip


def read_meta(folder: Path, choose: Callable[[int], list[int]]) -> DonorLayers:
    """Layers of the model in ``folder``.

    Args:
        folder: with ``params.json`` and ``consolidated.00.pth`` and so on.
        choose: number of layers -> indices of those that are wanted.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or says something impossible, or ``choose`` refuses.
    """
    params = LocalFolder(folder).json("params.json") or {}
    number = whole_number(params, "n_layers")
    indices = choose(number)
    paths = sorted(folder.glob("consolidated.*.pth"))
    if not paths:
        raise FileNotFoundError(
            f"expected consolidated.00.pth beside params.json in {folder}: download the weights too"
        )
    if [path.suffixes[-2] for path in paths] != [f".{part:02d}" for part in range(len(paths))]:
        raise FileNotFoundError(f"expected all parts from consolidated.00.pth on, found {[p.name for p in paths]}")
    archives = [TensorArchive(path) for path in paths]
    layers = [_layer(params, _parts(archives, index), index, folder.name) for index in indices]
    norm = {"weight": archives[0].read(["norm.weight"])["norm.weight"]} if "norm.weight" in archives[0].names() else {}
    return DonorLayers(tuple(layers), folder.resolve().name, number, final_norm=norm)


def _parts(archives: list[TensorArchive], index: int) -> list[dict[str, Tensor]]:
    prefix = f"layers.{index}."
    return [archive.read(name for name in archive.names() if name.startswith(prefix)) for archive in archives]


def _layer(params: dict[str, Any], parts: list[dict[str, Tensor]], index: int, donor: str) -> Layer:
    prefix = f"layers.{index}."
    tensors = {}
    for old, new in META.items():
        pieces = [part[prefix + old] for part in parts if prefix + old in part]
        if len(pieces) != len(parts):
            raise ValueError(f"layer {index} of {donor}: expected {old} in every file: download all its files")
        whole = pieces[0].ndim == 1 or len(pieces) == 1
        tensors[new] = pieces[0] if whole else torch.cat(pieces, dim=1 if new in SPLIT_BY_INPUT else 0)
    unknown = sorted({n for part in parts for n in part if n.startswith(prefix)} - {prefix + old for old in META})
    unknown = [name for name in unknown if not name.endswith("inv_freq")]
    if unknown:
        raise ValueError(f"layer {index} of {donor}: expected a layer of LLaMA, it also has {unknown}")
    geometry = _geometry(params, tensors["gate.weight"].shape[0])
    geometry.check_tensors(tensors)  # also tells if the last of several files is missing
    # Meta stores the two halves of each rotary pair side by side, Hugging Face one after the other. Without rotary
    # positions the order cancels; it is undone so that both forms of one model have one fingerprint.
    for name in ("query.weight", "key.weight"):
        tensors[name] = halves_apart(tensors[name], geometry.head_size)
    return Layer(tensors, geometry, index=index)


def halves_apart(weight: Tensor, head_size: int) -> Tensor:
    """Rows of a query or key matrix from pairs side by side to first halves, then second halves, of each head."""
    pairs = weight.view(-1, head_size // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()


def _geometry(params: dict[str, Any], mlp_width: int) -> BlockGeometry:
    width, heads = whole_number(params, "dim"), whole_number(params, "n_heads")
    if width % heads:
        raise ValueError(f"expected dim to be a multiple of n_heads, got {width} and {heads}: correct params.json")
    return geometry_of(
        FAMILIES["llama"],
        {
            "hidden_size": width,
            "intermediate_size": mlp_width,
            "num_attention_heads": heads,
            "num_key_value_heads": params.get("n_kv_heads"),
            "rms_norm_eps": params.get("norm_eps"),
            "rope_theta": params.get("rope_theta", 10000.0),
            "rope_scaling": SCALED if params.get("use_scaled_rope") else None,
        },
        0,
    )
