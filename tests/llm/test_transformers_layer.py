# SPDX-License-Identifier: Apache-2.0
"""Layers in transformers' own classes: each equals the layer of its model, unmasked, and none is run any other way."""

import copy
import inspect
import json

import pytest
import torch
from safetensors.torch import load_file

from monai_llmboost.llm import self_test
from monai_llmboost.llm.frozen import freeze_
from monai_llmboost.llm.transformers_layer import TransformersLayer
from monai_llmboost.llm.transformers_model import number_of_layers, stack_of

TOKENS = 7
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 32, "bos_token_id": 1, "eos_token_id": 2}
FALCON = {key: value for key, value in SMALL.items() if key not in ("intermediate_size", "num_key_value_heads")}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "head_dim": 8}
LATENT = {
    **SMALL,
    **EXPERTS,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 0,
    "index_n_heads": 2,
    "index_head_dim": 16,
}
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
# Name of the case -> model type and its numbers; the last layer is read.
CASES = {
    "starcoder2": ("starcoder2", {**SMALL, "sliding_window": 2}),
    "falcon": ("falcon", FALCON),
    "falcon with alibi": ("falcon", {**FALCON, "alibi": True}),
    "bloom": ("bloom", {**GPT, "hidden_size": 32}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 32}),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4, "resid_pdrop": 0.5, "attn_pdrop": 0.5}),
    "gpt_neo": ("gpt_neo", {**FALCON, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}),
    "phi": ("phi", SMALL),
    "stablelm": ("stablelm", SMALL),
    "cohere": ("cohere", SMALL),
    "granite": ("granite", SMALL),
    "mixtral": ("mixtral", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("qwen3_moe", {**SMALL, **EXPERTS, "num_experts": 4}),
    "gpt_oss": ("gpt_oss", {**SMALL, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v32": ("deepseek_v32", LATENT),
    "bert": ("bert", SMALL),
    "exaone": ("exaone", SMALL),
    "olmo_hybrid": ("olmo_hybrid", {**SMALL, **HYBRID}),
}


class Donor:
    """A tiny random model as transformers makes it, and what its files say."""

    def __init__(self, case, folder):
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM

        model_type, numbers = CASES[case]
        if model_type not in CONFIG_MAPPING:  # the releases for Python 3.10 end before some
            pytest.skip(f"this release of transformers has no {model_type}")
        config = CONFIG_MAPPING[model_type](**numbers)
        config._attn_implementation = "eager"
        torch.manual_seed(3)
        self.model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.normal_(0.5 if parameter.ndim == 1 else 0.0, 0.25)
        self.model.save_pretrained(folder)
        self.config = json.loads((folder / "config.json").read_text())
        self.stack = stack_of(self.config)
        self.stored = load_file(folder / "model.safetensors")

    def tensors(self, layer=1):
        begin = f"{self.stack}.{layer}."
        found = {name.partition(begin)[2]: tensor for name, tensor in self.stored.items() if begin in name}
        assert found
        return found

    def layer(self, index=1):
        return TransformersLayer(self.config, self.tensors(index), index)

    def their_layer(self, index=1):
        lists = [m for m in self.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2]
        return lists[0][index]

    @torch.no_grad()
    def theirs(self, x):
        """The model's own layer in eager attention, told that nothing is masked and every token is at position 0."""
        layer, n = self.their_layer(), x.shape[1]
        positions, scores = torch.zeros(x.shape[:2], dtype=torch.long), torch.zeros(1, 1, n, n)
        rotary = getattr(self.model.base_model, "rotary_emb", None)
        told = {
            "attention_mask": scores.bool() if self.config["model_type"] == "mpt" else scores,
            "position_ids": positions,
            "position_embeddings": rotary(x, positions) if rotary is not None else None,
            "position_bias": torch.zeros(4, 1, n),
            "alibi": torch.zeros(4 * len(x), 1, n) if self.config.get("alibi", True) else None,
        }
        takes = inspect.signature(layer.forward).parameters
        for module in layer.modules():
            if isinstance(getattr(module, "bias", None), torch.Tensor) and module.bias.ndim == 4:
                module.bias.fill_(True)  # GPT-Neo's causal mask
        y = layer(x, **{key: value for key, value in told.items() if key in takes})
        return y[0] if isinstance(y, tuple) else y


@pytest.fixture
def donor(request, tmp_path):
    return Donor(request.param, tmp_path)


def only(*cases):
    return pytest.mark.parametrize("donor", cases, indirect=True)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6 * float(expected.detach().abs().max()))


@only(*CASES)
def test_equals_the_models_own_layer_with_nothing_masked(donor):
    state = torch.get_rng_state()
    layer = donor.layer()
    assert self_test(layer, "it")["permutation_error"] < 1e-5
    assert torch.equal(torch.get_rng_state(), state), "no random number of anyone else's is touched"
    x = torch.randn(2, TOKENS, 32, requires_grad=True)
    y = layer(x)
    close(y, donor.theirs(x))
    close(layer(x, read=3), y[:, :3])
    (gradient,) = torch.autograd.grad((y[:, 0] * torch.randn(32)).sum(), x)
    assert (gradient.abs().sum(-1) > 0).all(), "the first token sees every token"
    assert number_of_layers(donor.config) == 2
    assert layer.width == 32


@only("phi", "qwen3_moe", "gpt_neo")
def test_goes_where_a_block_goes(donor):
    layer, x = donor.layer(), torch.randn(1, TOKENS, 32)
    expected = layer(x)
    close(copy.deepcopy(layer)(x), expected)
    other = copy.deepcopy(layer)
    other.load_state_dict({name: torch.zeros_like(value) for name, value in layer.state_dict().items()})
    assert not torch.allclose(other(x), expected)
    other.load_state_dict(layer.state_dict())
    close(other(x), expected)
    freeze_(layer)
    assert not list(layer.parameters())
    assert not layer.state_dict()
    close(layer(x), expected)
    close(copy.deepcopy(layer)(x), expected)
    layer.to(torch.bfloat16)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert self_test(layer, "it")["permutation_error"] < 2e-2


@only("gptj")
def test_dropout_never_comes_on(donor):
    layer, x = donor.layer(), torch.randn(1, TOKENS, 32)
    around = torch.nn.Sequential(layer).train()
    assert around.training
    assert not any(module.training for module in layer.modules())
    close(around(x), donor.theirs(x))


@only("phi", "deepseek_v32")
def test_keeps_the_donors_dtypes(donor):
    tensors = {name: tensor.bfloat16() if tensor.ndim > 1 else tensor for name, tensor in donor.tensors().items()}
    layer = TransformersLayer(donor.config, tensors, 1).layer
    got = layer.state_dict()
    for name, tensor in tensors.items():
        assert name not in got or got[name].dtype == tensor.dtype
    assert {tensor.dtype for tensor in got.values()} == {torch.bfloat16, torch.float32}


@only("phi")
def test_uses_the_tensors_without_copying(donor):
    tensors = donor.tensors()
    layer = TransformersLayer(donor.config, tensors, 1).layer
    assert layer.self_attn.q_proj.weight.data_ptr() == tensors["self_attn.q_proj.weight"].data_ptr()


@only("gpt_neo")
def test_more_tokens_than_the_model_has_positions(donor):
    x = torch.randn(1, 40, 32)
    few = {**donor.config, "max_position_embeddings": 8}
    close(TransformersLayer(few, donor.tensors(), 1)(x), donor.theirs(x))


@only("deepseek_v32")
def test_sparse_attention_leaves_out_no_token(donor):
    x = torch.randn(1, TOKENS, 32)
    sparse = TransformersLayer({**donor.config, "index_topk": 2}, donor.tensors(), 1)
    close(sparse(x), donor.theirs(x))


@only("starcoder2")
def test_what_the_files_say_about_code_is_not_read(donor, tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    config = {
        **donor.config,
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        "attn_implementation": "someone/kernel",
        "_attn_implementation_internal": "someone/kernel",
        "experts_implementation": "no such thing",
        "torch_dtype": "no such thing",
    }
    x = torch.randn(1, TOKENS, 32)
    close(TransformersLayer(config, donor.tensors(), 1)(x), donor.theirs(x))


@only("starcoder2")
def test_the_language_model_of_several_parts(donor):
    config = {"model_type": "llava", "text_config": donor.config, "vision_config": {"model_type": "none"}}
    assert stack_of(config) == "model.layers"
    x = torch.randn(1, TOKENS, 32)
    close(TransformersLayer(config, donor.tensors(), 1)(x), donor.theirs(x))


@only("exaone")
def test_the_name_of_the_layers_is_that_in_the_files(donor):
    assert donor.stack == "transformer.h"
    assert donor.model.get_submodule("model.layers")


def test_names_as_in_the_files():
    assert stack_of({"model_type": "bert", **SMALL}) == "bert.encoder.layer"
    assert stack_of({"model_type": "qwen2_5_vl_text", **SMALL, "layer_types": None}) == "layers"
    assert number_of_layers({"model_type": "gpt_neo", "num_layers": 6, "attention_types": [[["global"], 6]]}) == 6


@only("phi")
def test_leftovers_of_old_checkpoints_are_no_weights(donor):
    old = {"self_attn.rotary_emb.inv_freq": torch.ones(4), "attn.masked_bias": torch.ones(())}
    TransformersLayer(donor.config, {**donor.tensors(), **old}, 1)


@only("phi")
def test_other_tensors_are_refused(donor):
    tensors = donor.tensors()
    with pytest.raises(ValueError, match=r"tensors of phi layer 1 that are missing or unknown: \['more'\]; read them"):
        TransformersLayer(donor.config, {**tensors, "more": torch.ones(1)}, 1)
    with pytest.raises(
        ValueError, match=r"mlp\.fc1\.bias of phi layer 1 has shape \(3,\), not \(40,\): give the config"
    ):
        TransformersLayer(donor.config, {**tensors, "mlp.fc1.bias": torch.ones(3)}, 1)
    del tensors["mlp.fc1.bias"]
    with pytest.raises(ValueError, match=r"missing or unknown: \['mlp\.fc1\.bias'\]"):
        TransformersLayer(donor.config, tensors, 1)
    with pytest.raises(ValueError, match="no layer 2 in this model: choose one from 0 to 1"):
        TransformersLayer(donor.config, tensors, 2)


@only("mixtral")
def test_missing_experts_are_refused(donor):
    for gone, message in (
        ("experts.3.", r"has shape \(3, .*, not \(4, .*give the config"),
        ("experts.3.w3", "transformers cannot join the tensors that make up .*gate_up_proj"),
    ):
        tensors = {name: tensor for name, tensor in donor.tensors().items() if gone not in name}
        with pytest.raises(ValueError, match=message):
            TransformersLayer(donor.config, tensors, 1)


MAMBA = {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 32, "state_size": 4}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "mamba", **MAMBA},
            r"mamba layer 0 reads tokens in order \(linear_attention, MambaBlock\): choose",
        ),
        ({"model_type": "rwkv", **MAMBA}, r"rwkv layer 0 reads tokens in order \(RwkvBlock, RwkvSelfAttention\)"),
        (
            {"model_type": "olmo_hybrid", **SMALL, **HYBRID},
            r"olmo_hybrid layer 0 reads .*GatedDeltaNet\): choose another",
        ),
        ({"model_type": "xlnet", "d_model": 32, "n_head": 4, "n_layer": 2}, "xlnet layer 0 needs output_g"),
        (
            {"model_type": "xlm", "emb_dim": 32, "n_heads": 4, "n_layers": 2},
            "a xlm model has not one list of decoder layers",
        ),
        ({"model_type": "gemma3n_text"}, r"gemma3n_text layer 0 has 4 vectors for each token \(altup_num_inputs\)"),
        (
            {"model_type": "no_such_type"},
            "the model type 'no_such_type' is no causal language model that .*: choose another donor",
        ),
        ({}, "the model type 'None' is no"),
        ({"model_type": "t5"}, "the model type 't5' is no causal language model that transformers knows"),
        (
            {"model_type": "phi", **SMALL, "quantization_config": {"bits": 4}},
            "the model is quantised .*choose the donor",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "phi", "quantization_config": {"bits": 4}}},
            "quantised",
        ),
        (
            {"model_type": "phi", **SMALL, "num_hidden_layers": 10**9},
            "1000000000 layers are not from 1 to 10000: correct",
        ),
        (
            {"model_type": "phi", **SMALL, "hidden_size": "wide"},
            "transformers refuses the configuration of this phi model",
        ),
        ({"model_type": "phi", **SMALL, "hidden_act": "no such"}, "transformers cannot build a phi model from this"),
    ],
)
def test_what_cannot_be_a_donor_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        TransformersLayer(config, {}, 0)
