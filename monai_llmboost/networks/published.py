# SPDX-License-Identifier: Apache-2.0
"""Import of checkpoints of the published R-LLM code (https://github.com/ZhixinLai/LLMBoostMedical, 3D)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import check_choice
from monai_llmboost.artifacts.weights import check_named, load_weights
from monai_llmboost.boosters import IdentityControl, ResidualBooster
from monai_llmboost.llm import BlockGeometry, DonorLayers, FrozenBlock, Layer
from monai_llmboost.llm.donor.meta import META
from monai_llmboost.networks.vit3d import ViT3D
from monai_llmboost.networks.vivit import ViViT

# Mode names of the published code and our residuals. (There, any other name runs the block without a residual.)
RESIDUAL_OF_MODE = {
    "llm_in": "inner",
    "llm_out": "outer",
    "llm_hybrid": "both",
    "llm_out_nn": "projected",
    "llm_mlp": "none",
    "llm": "none",
}
# Parameter names of the published code and ours; the first match wins.
RENAMES = [
    (r"^to_patch_embedding\.1\.", "patch_tokens.norm_in."),
    (r"^to_patch_embedding\.2\.", "patch_tokens.project."),
    (r"^to_patch_embedding\.3\.", "patch_tokens.norm_out."),
    (r"^pos_embedding$", "positions"),
    (r"^(transformer|spatial_transformer|temporal_transformer)\.layers\.(\d+)\.0\.norm\.", r"\1.\2.attention_norm."),
    (r"^(transformer|spatial_transformer|temporal_transformer)\.layers\.(\d+)\.0\.to_qkv\.", r"\1.\2.attention.qkv."),
    (
        r"^(transformer|spatial_transformer|temporal_transformer)\.layers\.(\d+)\.0\.to_out\.0\.",
        r"\1.\2.attention.out.",
    ),
    (r"^(transformer|spatial_transformer|temporal_transformer)\.layers\.(\d+)\.1\.net\.0\.", r"\1.\2.mlp_norm."),
    (r"^(transformer|spatial_transformer|temporal_transformer)\.layers\.(\d+)\.1\.net\.1\.", r"\1.\2.mlp.linear1."),
    (r"^(transformer|spatial_transformer|temporal_transformer)\.layers\.(\d+)\.1\.net\.4\.", r"\1.\2.mlp.linear2."),
    (r"^(spatial|temporal)_transformer\.norm\.", r"\1_norm."),
    (r"^mlp_head\.0\.", "head_norm."),
    (r"^mlp_head\.1\.", "head."),
    (r"^mlp_head\.", "head."),
    (r"^llama_dim_mapper1\.", "booster.encode."),
    (r"^llama_dim_mapper2\.", "booster.decode."),
    (r"^llama_dim_dim_mapper\.", "booster.skip.0."),
]
LAYERS = [
    (r"^transformer\.(\d)", r"layers.\1"),
    (r"^(spatial|temporal)_transformer\.(\d)", r"\1_layers.\2"),
]


def _frozen_block(weights: Mapping[str, Tensor], num_heads: int, norm_eps: float) -> FrozenBlock:
    """Return the block in a published checkpoint, ``llama.layers.K.*``, with its final norm ``llama.norm``."""
    found = {key.split(".")[2] for key in weights if key.startswith("llama.layers.")}
    if len(found) != 1:
        raise ValueError(f"the checkpoint holds {len(found)} LLaMA layers (llama.layers.K.*), not one: copy it again")
    (layer,) = found
    try:
        tensors = {new: weights[f"llama.layers.{layer}.{old}"] for old, new in META.items()}
    except KeyError as error:
        raise ValueError(f"no {error} in the checkpoint: it is incomplete, copy it again") from error
    width = tensors["query.weight"].shape[1]
    geometry = BlockGeometry(
        width=width,
        mlp_width=tensors["gate.weight"].shape[0],
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_size=width // num_heads,
        norm_eps=norm_eps,
    )
    gain = weights.get("llama.norm.weight")
    norm = {} if gain is None else {"weight": gain}
    donor = DonorLayers((Layer(tensors, geometry),), "published R-LLM checkpoint", final_norm=norm)
    return FrozenBlock(donor, final_norm="donor" if norm else "unit")


def _read(file: str | Path) -> dict[str, Tensor]:
    content = load_weights(file)
    check_named(content, str(file))
    return content


def _rename(key: str) -> str:
    for table in (RENAMES, LAYERS):
        for pattern, ours in table:
            key, hits = re.subn(pattern, ours, key)
            if hits:
                break
    return key


def _added_weights(own: Mapping[str, Tensor], dim: int, has_projection: bool) -> dict[str, Tensor]:
    """Return the weights of our network that published checkpoints do not have."""
    weights = {}
    if not has_projection:  # published attention without output projection: use the identity
        for name in [name for name in own if ".attention.out." in name]:
            weights[name] = torch.eye(dim) if name.endswith("weight") else torch.zeros(dim)
    weights |= {name: own[name] for name in own if name.endswith(".code")}  # texts, not weights
    weights |= {name: own[name] for name in own if own[name].numel() == 0}  # ViViT without CLS tokens
    return weights


def from_published(
    state_dict: Mapping[str, Tensor] | str | Path,
    *,
    kind: str,
    mode: str,
    pool: str,
    dim: int,
    heads: int,
    dim_head: int,
    mlp_dim: int,
    channels: int,
    image_size: int,
    image_patch_size: int,
    frames: int,
    frame_patch_size: int,
    num_classes: int,
    llm_dim: int,
    llm_heads: int,
    llm_norm_eps: float,
    depth: int | None = None,
    spatial_depth: int | None = None,
    temporal_depth: int | None = None,
) -> nn.Module:
    """Build the network of a checkpoint of the published R-LLM code, and load the checkpoint.

    ``kind`` is ``"vit3d"`` or ``"vivit"``. ``mode`` is the published ``model_name``: ``llm_in``, ``llm_out``,
    ``llm_hybrid``, ``llm_out_nn``, ``llm_mlp`` or ``llm``. The other arguments have the names of the published
    constructors (``ViTLLama``, ``ViViTLLama``). Published volumes are (B, channels, frames, height, width), which is
    our (B, channels, S0, S1, S2). The checkpoint is a state dict or a file with one.

    Raises:
        ValueError: an unknown kind or mode, a missing depth, a damaged file, or weights that do not match the sizes.
    """
    checkpoint = state_dict if isinstance(state_dict, Mapping) else _read(state_dict)
    check_choice("mode", mode, RESIDUAL_OF_MODE)
    sizes: dict[str, Any] = {
        "in_channels": channels,
        "num_classes": num_classes,
        "img_size": (frames, image_size, image_size),
        "patch_size": (frame_patch_size, image_patch_size, image_patch_size),
        "hidden_size": dim,
        "mlp_dim": mlp_dim,
        "num_heads": heads,
        "head_size": dim_head,
        "pool": pool,
    }
    block: nn.Module = IdentityControl(llm_dim)
    if mode != "llm_mlp":
        block = _frozen_block(checkpoint, llm_heads, llm_norm_eps)
        if block.width != llm_dim:
            raise ValueError(
                f"llm_dim {llm_dim} is not the width of the checkpoint's block: give llm_dim={block.width}"
            )
    booster = ResidualBooster(dim, block, RESIDUAL_OF_MODE[mode], start="published")
    network: nn.Module
    if kind == "vit3d" and depth is not None:
        network = ViT3D(num_layers=depth, booster=booster, **sizes)
    elif kind == "vivit" and spatial_depth is not None and temporal_depth is not None:
        network = ViViT(num_spatial_layers=spatial_depth, num_temporal_layers=temporal_depth, booster=booster, **sizes)
    else:
        raise ValueError(
            f"kind {kind!r} with depth {depth}, spatial_depth {spatial_depth}, temporal_depth {temporal_depth}: give "
            "kind 'vit3d' with depth, or 'vivit' with spatial_depth and temporal_depth"
        )
    # The published code always has the extra map of `llm_out_nn`; the other modes do not use it.
    unused = () if mode == "llm_out_nn" else ("llama_dim_dim_mapper.",)
    weights = {_rename(key): value for key, value in checkpoint.items() if not key.startswith(("llama.", *unused))}
    weights |= _added_weights(network.state_dict(), dim, has_projection=heads != 1 or dim_head != dim)
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint does not fit these sizes: {error}") from error
    return network
