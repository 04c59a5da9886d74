# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of every family that is run natively, made and saved by `transformers` itself."""

import inspect

import torch

WORDS = {"vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Grouped heads whose total is not the width where the family allows it, so that no two numbers can be mistaken.
LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    **WORDS,
}
WIDE_HEADS = {**LLAMA, "head_dim": 8}
GEMMA = {**WIDE_HEADS, "query_pre_attn_scalar": 11}
GPT2 = {"n_embd": 24, "n_head": 4, "n_layer": 4, **WORDS}
OPT = {
    "hidden_size": 24,
    "ffn_dim": 40,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "word_embed_proj_dim": 24,
    **WORDS,
}
GPT_NEOX = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_hidden_layers": 4, **WORDS}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# Name of the case -> model type and its numbers; several cases where a family has options that change the layer.
CASES = {
    "llama": ("llama", WIDE_HEADS),
    "llama with biases": ("llama", {**WIDE_HEADS, "attention_bias": True, "mlp_bias": True}),
    "llama 3.1": ("llama", {**LLAMA, "rope_parameters": SCALED}),
    "mistral": ("mistral", WIDE_HEADS),
    "qwen2": ("qwen2", LLAMA),
    "qwen3": ("qwen3", WIDE_HEADS),
    "smollm3": ("smollm3", LLAMA),
    "phi3": ("phi3", LLAMA),
    "phi3 partly turned": ("phi3", {**LLAMA, "rope_parameters": {
        "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.4}}),
    "gemma": ("gemma", WIDE_HEADS),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0}),
    "gemma3_text": ("gemma3_text", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "olmo2": ("olmo2", LLAMA),
    "gpt2": ("gpt2", GPT2),
    "gpt2 unscaled": ("gpt2", {**GPT2, "scale_attn_weights": False, "n_inner": 40}),
    "opt": ("opt", OPT),
    "opt without biases": ("opt", {**OPT, "enable_bias": False}),
    "gpt_neox": ("gpt_neox", GPT_NEOX),
    "gpt_neox in series": ("gpt_neox", {**GPT_NEOX, "use_parallel_residual": False, "attention_bias": False}),
}  # fmt: skip
# Their keys are normed, so scores are not linear in the tokens.
NORMED_KEYS = ("qwen3", "gemma3_text", "olmo2")
LEARNED_POSITIONS = ("gpt2", "gpt2 unscaled", "opt", "opt without biases")


def tiny_model(case):
    """A model of `transformers` with random weights, gains that are not one, biases that are not zero."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    model_type, numbers = CASES[case]
    config = CONFIG_MAPPING[model_type](**numbers)
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.ndim == 1 else 0.0, 0.3)
    return model


def tiny_folder(case, folder):
    """The model and a folder of several shards into which it saved itself."""
    model = tiny_model(case)
    model.save_pretrained(folder, max_shard_size="9KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return model


def run_theirs(model, layer, x, in_order=False):
    """Layer ``layer`` of their model on tokens (B, N, D): all at one place and unmasked, or in order."""
    (layers,) = (m for name, m in model.named_modules() if name.rpartition(".")[2] in ("layers", "h") and len(m) == 4)
    b, n, _ = x.shape
    mask = torch.zeros(1, 1, n, n)
    places = torch.zeros(b, n, dtype=torch.long)
    if in_order:
        mask = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)[None, None]
        places = torch.arange(n).expand(b, n)
    options = {}
    for name, rotary in model.named_modules():
        if name.endswith("rotary_emb"):
            kind = (
                (model.config.layer_types[layer],)
                if "layer_type" in inspect.signature(rotary.forward).parameters
                else ()
            )
            options["position_embeddings"] = rotary(x, places, *kind)
    with torch.no_grad():
        y = layers[layer](x, attention_mask=mask, **options)
    return y[0] if isinstance(y, tuple) else y
