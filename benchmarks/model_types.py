# SPDX-License-Identifier: Apache-2.0
"""Test which language models can be donors, with a tiny random model of every model type in transformers.

The default configuration of each type is shrunk, and transformers saves a model with random weights (standard deviation
0.25). Each layer is read from the checkpoint into a ``TransformersLayer``, which must pass the self-test. It is also
compared with the same layer in the model as transformers runs it: eager attention, an additive mask of zeros (nothing
masked), every token at position 0, alibi zero.

A type is ``general`` if at least one of its layers passes, ``native`` if block.py runs it (it is measured too),
``refused`` if no layer passes, and ``not built`` if no tiny model could be made, which does not show whether it can be
a donor. A model with several parts is read as the type of its language part. Each type runs in a separate process.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import multiprocessing
import re
import tempfile
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from report import RESULTS, save, show
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from monai_llmboost.llm.donor.families import NATIVE
from monai_llmboost.llm.self_tests import self_test
from monai_llmboost.llm.transformers_layer import TransformersLayer
from monai_llmboost.llm.transformers_model import number_of_layers, stack_of

TOKENS = 12
STD = 0.25
CPU = "CPU"
# Sizes of a tiny model, by the keys in configurations.
SIZES = {
    256: "max_position_embeddings n_positions n_ctx max_seq_len original_max_position_embeddings max_target_positions",
    128: "intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim dim_ff dff d_inner ffn_hidden_size "
    "intermediate_size_mlp dense_intermediate_size feed_forward_size",
    96: "vocab_size decoder_vocab_size vocab_size_per_layer_input pronunciation_vocab_size shape_vocab_size "
    "unpadded_vocab_size",
    64: "hidden_size n_embd d_model embedding_size word_embed_proj_dim input_embedding_size output_embedding_size "
    "emb_dim embedding_dim lru_width pronunciation_embed_dim shape_embed_dim attention_hidden_size "
    "backbone_hidden_size router_hidden_size",
    32: "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_intermediate_size "
    "moe_shared_expert_intermediate_size shared_experts_intermediate_size kv_lora_rank q_lora_rank o_lora_rank "
    "index_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim state_size mamba_d_state "
    "ssm_state_size mamba_dt_rank time_step_rank hc_lowrank gated_norm_rank ple_embed_dim laurel_rank adapter_rank "
    "num_centroids loop_gate_rank chunk_size mamba_chunk_size prompt_mid_dim mamba_d_head mamba_head_dim",
    16: "head_dim kv_channels qk_nope_head_dim qk_rope_head_dim v_head_dim dim_head d_head attention_head_size "
    "swa_head_dim attention_head_dim hidden_size_per_layer_input global_head_dim",
    8: "rotary_dim d_rel",
    4: "sliding_window sliding_window_size attention_chunk_size local_attention window_size attention_window_size "
    "local_attention_window_len index_block_size num_attention_heads n_head n_heads num_heads decoder_attention_heads "
    "encoder_attention_heads attention_heads num_encoder_attention_heads num_decoder_attention_heads index_n_heads "
    "linear_num_heads linear_num_value_heads swa_num_attention_heads num_experts n_routed_experts num_local_experts "
    "moe_num_experts num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers "
    "num_decoder_layers num_blocks",
    2: "num_key_value_heads num_kv_heads num_experts_per_tok num_experts_per_token moe_topk moe_k "
    "linear_num_key_heads swa_num_key_value_heads num_query_groups n_shared_experts zero_expert_num n_groups "
    "mamba_n_groups mamba_ngroups",
    1: "topk_group n_group num_expert_group first_k_dense_replace num_dense_layers num_nextn_predict_layers",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}
# Keys with a kind for each layer: the kinds of the default are used in turn.
KINDS = ("layer_types", "mlp_layer_types", "layers_block_type")
# Keys that are kept, although their names look like sizes.
KEPT = ("rope_parameters", "per_layer_config")
# Additional changes that some types need, found from their error messages.
HYBRID = ["linear_attention", "full_attention"] * 2
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32}
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1, 3]},
    "blt": {"global_config": {"num_hidden_layers": 5}},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}}
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"index_head_dim": 32},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 128},
    "gemma4_text": {"hidden_size_per_layer_input": 0},  # otherwise a layer needs a separate vector for each token
    "gemma3n_text": {
        "intermediate_size": 128,
        "activation_sparsity_pattern": [0.0] * 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {**MAMBA, "layer_types": HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": HYBRID},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"head_dim": 32},
    "musicgen_decoder": {"num_codebooks": 2},
    "musicgen_melody_decoder": {"num_codebooks": 2},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 16]},
    "zaya": {"num_experts_per_tok": 1},
}
# Arguments without which a default configuration cannot be made.
NO_INPUT = {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
DEFAULTS = {"gemma4_assistant": {"text_config": NO_INPUT}}


def shrink(default: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a configuration that are sizes, with small values."""
    small: dict[str, Any] = {}
    for key, value in default.items():
        if key in KEPT:
            continue
        derived = value is None and key in ("head_dim", "num_key_value_heads")
        if key in SMALL and (derived or (type(value) is int and value)):
            small[key] = SMALL[key]
        elif str(key).endswith("_token_id") and isinstance(value, int):
            small[key] = 1
        elif key in KINDS and value:
            kinds = list(dict.fromkeys(value))
            small[key] = (kinds * SMALL["num_hidden_layers"])[: SMALL["num_hidden_layers"]]
        elif isinstance(value, Mapping) and (inner := shrink(value)):
            small[key] = inner | ({"model_type": value["model_type"]} if "model_type" in value else {})
    if "kv_lora_rank" in small and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small


def find_language_part(config: Any) -> str | None:
    """Return the key of the language model's configuration in a model with several parts."""
    parts = [key for key in ("text_config", "decoder") if getattr(getattr(config, key, None), "model_type", "")]
    return parts[0] if parts else None


def make_tiny_model(model_type: str, model_class: type | None = None) -> nn.Module:
    """Make a small transformers model of a type, with random weights and eager attention."""
    config_class = CONFIG_MAPPING[model_type]
    small = shrink(config_class().to_dict())
    for key, change in CHANGES.get(model_type, {}).items():
        small[key] = {**small.get(key, {}), **change} if isinstance(change, dict) else change
    config = config_class(**small)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = (model_class or MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])(config).eval()
    for parameter in filter(
        lambda parameter: parameter.requires_grad, model.parameters()
    ):  # except sinusoidal positions
        parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, STD)
    return model


def record_call(model: nn.Module, layer: nn.Module) -> tuple[tuple, dict[str, Any]] | None:
    """Return the arguments that a model passes to a layer, with every token at position 0; ``None`` if it fails."""
    calls: list[tuple[tuple, dict[str, Any]]] = []
    hook = layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    base = model.base_model if hasattr(model, "base_model") else model
    x = torch.randn(1, TOKENS, model.config.get_text_config().hidden_size)
    options = {"position_ids": torch.zeros(1, TOKENS, dtype=torch.long), "use_cache": False}
    with contextlib.suppress(Exception):  # any exception of a model: only the call of the layer matters
        base(inputs_embeds=x, **options)
    hook.remove()
    return calls[0] if calls else None


def remove_mask(value: Any, key: str) -> Any:
    """Return an argument of a layer with nothing masked and every token at position 0."""
    if key == "attention_mask":
        if isinstance(value, Tensor) and value.shape[-1] == TOKENS and value.ndim > 2:
            return torch.full_like(value, value.flatten()[0])  # the value for the first token and itself
        return torch.zeros(1, 1, TOKENS, TOKENS)
    if key in ("alibi", "position_bias") and isinstance(value, Tensor):
        return torch.zeros_like(value)
    if key == "sinusoidal_pos" and isinstance(value, Tensor):
        return value[..., :1, :].expand_as(value)
    return value


def measure_difference(model: nn.Module, layer: nn.Module, block: TransformersLayer) -> float | None:
    """Return the largest relative difference to the layer of transformers; ``None`` if that cannot be run."""
    call = record_call(model, layer)
    if call is None:
        return None
    args, kwargs = call
    names = list(inspect.signature(layer.forward).parameters)
    arguments = dict(zip(names, args)) | kwargs
    if "attention_mask" in names:
        arguments.setdefault("attention_mask", None)
    tokens = names[0]
    arguments = {key: remove_mask(value, key) for key, value in arguments.items()}
    for module in layer.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.ndim == 4 and buffer.shape[2] == buffer.shape[3]:
                module._buffers[name] = torch.ones_like(buffer)  # the causal mask of old layers
    try:
        theirs = layer(**arguments)
    except Exception:  # any exception: not possible in eager attention with this mask
        return None
    theirs = theirs[0] if isinstance(theirs, (tuple, list)) else theirs
    ours = block(arguments[tokens])
    return float((ours - theirs).abs().max() / theirs.abs().max())


def format_error(error: BaseException) -> str:
    """Return an error message on one line."""
    return " ".join(f"{error}".split())[:300] or type(error).__name__


def select_layer(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of one layer by their names within it."""
    return {name.partition(prefix)[2]: tensor for name, tensor in tensors.items() if prefix in name}


def find_layer(model: nn.Module, block: TransformersLayer, index: int) -> nn.Module:
    """Return the layer of the model from which a block was read."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > index]
    return next(layers[index] for layers in lists if type(layers[index]) is type(block.layer))


def examine(model_type: str) -> dict[str, Any]:
    """Test one model type, and return its row."""
    row: dict[str, Any] = {"type": model_type}
    try:
        outer = CONFIG_MAPPING[model_type](**DEFAULTS.get(model_type, {}))
        part = find_language_part(outer)
        inner = getattr(outer, part).model_type if part else model_type
        if inner != model_type:
            row["read as"] = inner
            if inner in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
                return row
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(outer)] if part else None
        model = make_tiny_model(inner, model_class)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            config = json.loads((Path(folder) / "config.json").read_text())
            tensors = load_file(Path(folder) / "model.safetensors")
    except Exception as error:  # some 200 classes, any exception
        return row | {"outcome": "not built", "reason": format_error(error)}
    if part:
        config = {"model_type": model_type, part: config}
    passed, refused = [], []
    try:
        stack, number = stack_of(config), number_of_layers(config)
    except ValueError as error:
        return row | {"outcome": "refused", "reason": format_error(error)}
    for index in range(number):
        of_layer = select_layer(f"{stack}.{index}.", tensors) or select_layer(
            f".{stack.rpartition('.')[2]}.{index}.", tensors
        )
        try:
            block = TransformersLayer(config, of_layer, index)
            measured = self_test(block, f"layer {index}")
        except ValueError as error:
            refused.append(format_error(error))
            continue
        with torch.no_grad():
            passed.append(
                (measured["permutation_error"], measure_difference(model, find_layer(model, block, index), block))
            )
    row["layers"] = f"{len(passed)} of {number}"
    if passed:
        errors, differences = zip(*passed)
        row["permutation error"] = max(errors)
        row["difference"] = max(differences) if None not in differences else None
    if refused:
        kinds = {re.sub(r"\(.*?\)|\d+", "", line): line for line in reversed(refused)}  # the first of each kind
        row["reason"] = "; ".join(reversed(kinds.values()))
    return row | {"outcome": ("native" if model_type in NATIVE else "general") if passed else "refused"}


def send_row(model_type: str, out: Connection) -> None:
    """Send the row of one type, from a separate process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    out.send(examine(model_type))


def examine_in_process(seconds: float, model_type: str) -> dict[str, Any]:
    """Return the row of one type, also if it takes too long or crashes."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send_row, args=(model_type, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if ours.poll(seconds):
            return ours.recv()
        reason = f"took more than {seconds:.0f} s"
    except EOFError:
        process.join()
        reason = f"its process ended with code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return {"type": model_type, "outcome": "not built", "reason": reason}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--types", nargs="+", help="model types; None: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit for each type")
    parser.add_argument("--out", type=Path, default=RESULTS / "model-types.json", help="the JSON file to write")
    options = parser.parse_args()
    types = sorted(options.types or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    rows = {name: examine_in_process(options.seconds, name) for name in tqdm(types, desc="model types")}
    for row in rows.values():  # a model with several parts has the outcome of its language part
        if "outcome" not in row:
            other = rows.get(row["read as"]) or examine_in_process(options.seconds, row["read as"])
            row.update({key: value for key, value in other.items() if key != "type"})
    settings = {"tokens": TOKENS, "standard deviation of the weights": STD, "layers": SMALL["num_hidden_layers"]}
    benchmark = "one decoder layer of a tiny random model of each type, by transformers' own class"
    save(options.out, benchmark, "CPU", settings, list(rows.values()))
    show(options.out)


if __name__ == "__main__":
    main()
