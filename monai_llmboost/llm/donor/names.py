# SPDX-License-Identifier: Apache-2.0
"""Tensor names of a layer in checkpoints of each family, and their names in block.py."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from monai_llmboost.llm.geometry import BlockGeometry

if TYPE_CHECKING:
    from torch import Tensor

Names = dict[
    str, str | tuple[str, ...]
]  # module in the checkpoint -> module in block.py, or several that are stored fused

LLAMA: Names = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.o_proj": "output",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
QK_NORMS: Names = {"self_attn.q_norm": "query_norm", "self_attn.k_norm": "key_norm"}
SANDWICH: Names = {
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}
PHI3: Names = {
    "input_layernorm": "attention_norm",
    "self_attn.qkv_proj": ("query", "key", "value"),
    "self_attn.o_proj": "output",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_up_proj": ("gate", "up"),
    "mlp.down_proj": "down",
}
GPT2: Names = {
    "ln_1": "attention_norm",
    "attn.c_attn": ("query", "key", "value"),
    "attn.c_proj": "output",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "up",
    "mlp.c_proj": "down",
}
OPT: Names = {
    "self_attn_layer_norm": "attention_norm",
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.out_proj": "output",
    "final_layer_norm": "mlp_norm",
    "fc1": "up",
    "fc2": "down",
}
GPT_NEOX: Names = {
    "input_layernorm": "attention_norm",
    "attention.query_key_value": ("query", "key", "value"),
    "attention.dense": "output",
    "post_attention_layernorm": "mlp_norm",
    "mlp.dense_h_to_4h": "up",
    "mlp.dense_4h_to_h": "down",
}


def rename_tensors(
    names: Names,
    geometry: BlockGeometry,
    tensors: Mapping[str, Tensor],
    transposed: bool = False,
    by_head: bool = False,
) -> dict[str, Tensor]:
    """Rename the tensors of one layer from checkpoint names (relative to the layer) to block.py names.

    Returns views where possible. Matrices are transposed in place, which overwrites the input.

    Args:
        names: the family's table of names.
        geometry: geometry of the layer.
        tensors: tensors by checkpoint name.
        transposed: matrices are stored as (in, out).
        by_head: fused queries, keys and values are stored head by head, instead of one after the other.

    Raises:
        ValueError: a tensor is unknown or missing, or has the wrong shape.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if module not in names:
            raise ValueError(f"the layer has a tensor {name}, which its family does not have: choose another donor")
        target = names[module]
        if transposed and tensor.ndim == 2:
            tensor = _transpose_(tensor)
        if isinstance(target, str):
            renamed[f"{target}.{kind}"] = tensor
        else:
            parts = [f"{part}.{kind}" for part in target]
            renamed.update(zip(parts, _split_fused(tensor, parts, geometry, by_head)))
    missing = sorted(set(geometry.tensor_shapes) - set(renamed))
    if missing:
        raise ValueError(f"the layer lacks {missing}: download all the model's files")
    geometry.check_tensors(renamed)
    return renamed


def select_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, by their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_depth(names: Iterable[str], begin: str, number: int, donor: str) -> None:
    """Check that there are not more layers than the configuration says; the last layer would be another one.

    Args:
        names: names of all tensors.
        begin: prefix of a layer's tensor names, before the layer index.
        number: number of layers in the configuration.
        donor: name of the model, for the message.

    Raises:
        ValueError: there are more layers.
    """
    found = [match[1] for name in names if (match := re.match(rf"{re.escape(begin)}(\d+)\.", name))]
    deepest = max(map(int, found), default=-1)
    if deepest >= number:
        raise ValueError(
            f"the configuration of {donor} says {number} layers, but its weights have {deepest + 1}: they belong to "
            "different models, download them again"
        )


def deinterleave_rotary(weight: Tensor, head_size: int) -> Tensor:
    """Reorder the rows of queries or keys from interleaved rotary pairs to half-split ones.

    Meta and llama.cpp store the two features of a rotary pair next to each other, Hugging Face half a head apart.
    """
    pairs = weight.view(-1, head_size // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()


def unify_dtype(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a layer's tensors to one dtype: that of its matrices if this is exact, else float32 (or float64).

    Some writers keep norms in float32 next to 16-bit matrices, and a layer does not run with mixed dtypes.
    """
    import torch  # the tables of names are used without it

    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) == 1:
        return dict(tensors)
    main = max(tensors.values(), key=torch.numel).dtype
    widest = torch.float64 if torch.float64 in dtypes else torch.float32
    exact = all(torch.equal(tensor.to(main).to(tensor.dtype), tensor) for tensor in tensors.values())
    return {name: tensor.to(main if exact else widest) for name, tensor in tensors.items()}


def _transpose_(tensor: Tensor) -> Tensor:
    """Transpose a matrix in its own memory, so that a layer is not held twice."""
    transposed = tensor.t().contiguous()
    return tensor.view(-1).copy_(transposed.view(-1)).view(transposed.shape)


def _split_fused(tensor: Tensor, parts: list[str], geometry: BlockGeometry, by_head: bool) -> list[Tensor]:
    shapes = geometry.tensor_shapes
    rows = [shapes[part][0] for part in parts if part in shapes]
    if len(rows) != len(parts) or tensor.shape[0] != sum(rows):
        raise ValueError(
            f"the fused tensor of {' and '.join(parts)} must have {sum(rows)} rows, but has {tensor.shape[0]}: the "
            "configuration and the weights belong to different models, download them again"
        )
    if by_head:
        heads = tensor.view(geometry.num_heads, len(parts), geometry.head_size, *tensor.shape[1:])
        return [heads[:, i].flatten(0, 1) for i in range(len(parts))]
    return list(tensor.split(rows))
