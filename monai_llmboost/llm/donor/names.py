# SPDX-License-Identifier: Apache-2.0
"""What the tensors of a layer are called on disk, family by family, and in block.py."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from monai_llmboost.llm.geometry import BlockGeometry

Names = dict[str, str | tuple[str, ...]]  # module on disk -> module of block.py, or several that are stored as one

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
    """Tensors of one layer by their names in block.py, from names on disk relative to the layer.

    Views where that can be; transposed matrices take the memory of those that came in, which are lost.

    Args:
        names: the family's table.
        geometry: what the layer must be.
        tensors: by names on disk.
        transposed: matrices are stored (in, out).
        by_head: queries, keys and values stored as one lie head by head, not one after the other.

    Raises:
        ValueError: a tensor that such a layer does not have, or none of those it has.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if module not in names:
            raise ValueError(f"expected a layer as its family has it, it also has {name}: choose another donor")
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
        raise ValueError(f"expected {missing} in the layer, found none: download all the model's files")
    geometry.check_tensors(renamed)
    return renamed


def check_depth(names: Iterable[str], begin: str, number: int, donor: str) -> None:
    """Raise ValueError if there are weights of more layers than the configuration says: the last is another then.

    Args:
        names: of all tensors.
        begin: what the name of a layer's tensor begins with, before the layer's number.
        number: how many layers the configuration says there are.
        donor: name of the model.
    """
    found = [match[1] for name in names if (match := re.match(rf"{re.escape(begin)}(\d+)\.", name))]
    deepest = max(map(int, found), default=-1)
    if deepest >= number:
        raise ValueError(
            f"expected {number} layers in {donor} by its configuration, the weights have {deepest + 1}: they are not "
            "of one model"
        )


def deinterleave_rotary(weight: Tensor, head_size: int) -> Tensor:
    """Return the rows of queries or keys with first halves before second halves of each head, from pairs side by side.

    Meta and llama.cpp store the two features of a rotary pair side by side, Hugging Face a half of a head apart.
    """
    pairs = weight.view(-1, head_size // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()


def unify_dtype(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a layer's tensors in one dtype: that of its matrices if all fit it exactly, else float32 (or float64).

    Some writers keep norms in float32 next to matrices of 16 bits, which no layer runs with.
    """
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) == 1:
        return dict(tensors)
    main = max(tensors.values(), key=torch.numel).dtype
    widest = torch.float64 if torch.float64 in dtypes else torch.float32
    exact = all(torch.equal(tensor.to(main).to(tensor.dtype), tensor) for tensor in tensors.values())
    return {name: tensor.to(main if exact else widest) for name, tensor in tensors.items()}


def _transpose_(tensor: Tensor) -> Tensor:
    """The transposed matrix in the same memory, so that a layer is not held twice."""
    transposed = tensor.t().contiguous()
    return tensor.view(-1).copy_(transposed.view(-1)).view(transposed.shape)


def _split_fused(tensor: Tensor, parts: list[str], geometry: BlockGeometry, by_head: bool) -> list[Tensor]:
    shapes = geometry.tensor_shapes
    rows = [shapes[part][0] for part in parts if part in shapes]
    if len(rows) != len(parts) or tensor.shape[0] != sum(rows):
        raise ValueError(
            f"expected {' and '.join(parts)} as one tensor of {sum(rows)} rows, got {tensor.shape[0]}: "
            "the configuration and the weights are not of one model"
        )
    if by_head:
        heads = tensor.view(geometry.num_heads, len(parts), geometry.head_size, *tensor.shape[1:])
        return [heads[:, i].flatten(0, 1) for i in range(len(parts))]
    return list(tensor.split(rows))
