# SPDX-License-Identifier: Apache-2.0
"""Models of `transformers` written as GGUF files with the conventions of llama.cpp's convert_hf_to_gguf.py."""

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3", "gpt_neox": "gptneox"}  # where unlike the model type
PAIRED = ("llama", "smollm3")  # whose converter puts rotary pairs side by side


def pairs_side_by_side(weight, heads):
    """As `LlamaModel.permute` of the converter."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def one_after_the_other(weight, heads):
    """Queries, keys and values that lie head by head, as `GPTNeoXModel` of the converter parts them."""
    by_head = weight.reshape(heads, 3, -1, *weight.shape[1:])
    return torch.cat([by_head[:, i].reshape(-1, *weight.shape[1:]) for i in range(3)])


def converted(name, tensor, architecture, config):
    """A tensor as the converter changes it."""
    tensor = tensor.detach().float()
    heads = config.num_attention_heads
    if architecture in PAIRED and ".q_proj." in name:
        return pairs_side_by_side(tensor, heads)
    if architecture in PAIRED and ".k_proj." in name:
        return pairs_side_by_side(tensor, config.num_key_value_heads)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + 1
    if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return tensor.T
    if architecture == "gptneox" and "query_key_value" in name:
        return one_after_the_other(tensor, heads)
    return tensor


def write_metadata(writer, config, architecture):
    """The numbers, by the keys that the converter writes for this architecture."""
    width, heads = config.hidden_size, config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or width // heads
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * width)
    writer.add_head_count(heads)
    writer.add_vocab_size(config.vocab_size)
    if architecture in ("gpt2", "gptneox"):
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    if architecture in PAIRED:
        writer.add_rope_dimension_count(head_size)
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)
    if architecture in ("qwen3", "gemma", "gemma2", "gemma3", "olmo2"):
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)
    if architecture == "phi3":
        writer.add_rope_dimension_count(int(head_size * rope.get("partial_rotary_factor", 1.0)))
    if architecture == "gptneox":
        writer.add_rope_dimension_count(int(head_size * rope.get("partial_rotary_factor", 0.25)))
        writer.add_parallel_residual(config.use_parallel_residual)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if architecture in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(writer_scaling("linear"))
        writer.add_rope_scaling_factor(rope["factor"])


def writer_scaling(kind):
    from gguf import RopeScalingType

    return RopeScalingType(kind)


def write_gguf(model, path, kind="F32", licence=None, extra=None, keep=None, without=(), **changes):
    """Write a model of `transformers` as a GGUF file.

    Args:
        kind: type of the matrices, as ggml spells it; everything else is F32.
        extra: further tensors by name.
        without: metadata to leave out, below the architecture's name.
        keep: names of the tensors to write; all if ``None``.
        changes: metadata to add or to change, below the architecture's name.
    """
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    (arch,) = [key for key, name in MODEL_ARCH_NAMES.items() if name == architecture]
    assert isinstance(arch, MODEL_ARCH)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    writer = GGUFWriter(path, architecture)
    write_metadata(writer, config, architecture)
    writer.add_token_list([f"word {i}" for i in range(config.vocab_size)])
    if licence:
        writer.add_license(licence)
    for key, value in changes.items():
        key = f"{architecture}.{key}"
        for shard in writer.kv_data:
            shard.pop(key, None)
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](key, value)
    for key in without:
        for shard in writer.kv_data:
            shard.pop(f"{architecture}.{key}", None)
    tensors = {}
    for name, tensor in model.state_dict().items():
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is not None and not (name == "lm_head.weight" and config.tie_word_embeddings):
            tensors[new] = converted(name, tensor, architecture, config)
    for name, tensor in {**tensors, **(extra or {})}.items():
        if keep is not None and name not in keep:
            continue
        values = tensor.contiguous().numpy()
        matrix = values.ndim > 1 and name.startswith("blk.")
        form = GGMLQuantizationType[kind if matrix else "F32"]
        if form.name in ("F32", "F16"):
            writer.add_tensor(name, values.astype(np.float32 if form.name == "F32" else np.float16))
        else:
            writer.add_tensor(name, quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
