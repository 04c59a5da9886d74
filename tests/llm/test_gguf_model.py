# SPDX-License-Identifier: Apache-2.0
"""Layers out of GGUF files: the same as out of the model they were converted from, and as `transformers` reads them."""

import json
import shutil

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf_models import write_gguf
from rich.console import Console
from tiny_models import CASES, SCALED, run_theirs, tiny_model
from typer.testing import CliRunner

from monai_llmboost.command_line.app import app
from monai_llmboost.llm import FrozenBlock, extract_block, read_geometry, read_header, read_layers
from monai_llmboost.llm.info import block_table

# Those that `transformers` reads from GGUF as what they are (Mistral as LLaMA).
BY_TRANSFORMERS = ("llama", "llama with biases", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gpt2")
# GGUF does not say how these scale their attention.
UNTOLD = ("gpt2 unscaled",)
READ = [case for case, (family, _) in CASES.items() if family != "opt" and case not in UNTOLD]


def model_of(case):
    """The tiny model, where GGUF has no place for a number with the number that llama.cpp takes."""
    model = tiny_model(case)
    if hasattr(model.config, "query_pre_attn_scalar"):
        model.config.query_pre_attn_scalar = model.config.head_dim
        for layer in model.model.layers:
            layer.self_attn.scaling = model.config.head_dim**-0.5
    return model


def rope_factors(model):
    """By what the angles of Llama 3.1 are slowed down, as the converter writes them."""
    size = model.config.hidden_size // model.config.num_attention_heads
    plain = SCALED["rope_theta"] ** (-torch.arange(0, size, 2).double() / size)
    scaled = model.model.rotary_emb.inv_freq.double()
    return {"rope_freqs.weight": (plain / scaled).float()}


def extras(case, model):
    pattern = [kind == "sliding_attention" for kind in getattr(model.config, "layer_types", None) or []]
    changes = {"attention.sliding_window_pattern": pattern} if case == "gemma3_text" else {}
    return {"extra": rope_factors(model) if case == "llama 3.1" else None, **changes}


@pytest.mark.parametrize("case", READ)
def test_block_equals_that_of_the_original_model(case, tmp_path):
    model = model_of(case)
    model.save_pretrained(tmp_path / "hf")
    write_gguf(model, tmp_path / "x.gguf", **extras(case, model))
    ours, theirs = read_layers(tmp_path / "x.gguf", "0,-1"), read_layers(tmp_path / "hf", "0,-1")
    assert (ours.num_layers, ours.donor) == (4, "x")
    for one, other in zip(ours.layers, theirs.layers):
        assert one.index == other.index
        assert one.tensors.keys() == other.tensors.keys()
        for name, tensor in other.tensors.items():
            torch.testing.assert_close(one.tensors[name], tensor, rtol=0, atol=2e-7)  # of Gemma's gains one is taken
        torch.testing.assert_close(one.geometry.rotary, other.geometry.rotary)
        assert {**vars(one.geometry), "rotary": ()} == {**vars(other.geometry), "rotary": ()}
    for name, tensor in theirs.final_norm.items():
        torch.testing.assert_close(ours.final_norm[name], tensor, rtol=0, atol=2e-7)
    if not case.startswith("gemma") and case != "llama 3.1":
        assert ours.fingerprint == theirs.fingerprint
    x = torch.randn(2, 5, ours.width, generator=torch.Generator().manual_seed(5))
    found = FrozenBlock(read_layers(tmp_path / "x.gguf", -1), final_norm="none")(x)
    torch.testing.assert_close(found, run_theirs(model, 3, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", BY_TRANSFORMERS)
def test_transformers_reads_the_same_weights(case, tmp_path):
    """What the tests write is what `from_pretrained(gguf_file=...)` takes it for, by the function that it calls."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = model_of(case)
    write_gguf(model, tmp_path / "x.gguf", **extras(case, model))
    found = load_gguf_checkpoint(str(tmp_path / "x.gguf"), return_tensors=True, model_to_load=model)
    state = model.state_dict()
    layers = [name for name in state if ".layers." in name or ".h." in name]
    assert layers
    assert set(layers) <= found["tensors"].keys()
    for name in layers:
        torch.testing.assert_close(found["tensors"][name], state[name], rtol=0, atol=2e-7)


def wide_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 32}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_quantised_donor_is_dequantised_and_marked(kind, tmp_path):
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = wide_llama()
    path = write_gguf(model, tmp_path / "x.gguf", kind)
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    donor = read_layers(path)
    assert donor.quantised == kind
    for name, module in (("query", "self_attn.q_proj"), ("key", "self_attn.k_proj"), ("down", "mlp.down_proj")):
        tensor = donor.layers[0].tensors[f"{name}.weight"]
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, theirs[f"model.layers.1.{module}.weight"])
        exact = model.state_dict()[f"model.layers.1.{module}.weight"]
        assert not torch.equal(tensor, exact)
        assert (tensor - exact).abs().max() < 0.02
    extract_block(path, tmp_path / "b.safetensors")
    assert read_header(tmp_path / "b.safetensors")["quantised"] == kind
    console = Console(record=True, width=200)
    console.print(block_table(tmp_path / "b.safetensors"))
    assert f"in float32, dequantised from {kind}" in console.export_text()


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_16_bit_floats_keep_their_dtype(kind, tmp_path):
    """The norms, which lie there in float32, too, where they fit exactly; else all of it is in float32."""
    model = wide_llama()
    path = write_gguf(model, tmp_path / "x.gguf", kind)
    half = torch.float16 if kind == "F16" else torch.bfloat16
    donor = read_layers(path)
    assert {tensor.dtype for tensor in donor.layers[0].tensors.values()} == {half}
    assert donor.quantised == ""
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight.add_(1e-5)
    donor = read_layers(write_gguf(model, tmp_path / "y.gguf", kind))
    assert {tensor.dtype for tensor in donor.layers[0].tensors.values()} == {torch.float32}
    assert extract_block(path, tmp_path / "b.safetensors")


def test_the_command(tmp_path):
    path = write_gguf(wide_llama(), tmp_path / "x.gguf", "Q8_0", licence="mit")
    words = ["extract", str(path), "--out", str(tmp_path / "b.safetensors")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "layer 1 of 2 of x" in result.output
    assert "dequantised from Q8_0" in result.output
    assert "already exists" in CliRunner().invoke(app, words).output
    assert read_header(tmp_path / "b.safetensors")["licence"] == "mit"


def test_a_folder_with_one(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    model = wide_llama()
    write_gguf(model, folder / "my-model-Q8_0.gguf", "Q8_0")
    write_gguf(model, folder / "mmproj-my-model.gguf")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert read_layers(folder).donor == "my-model"
    write_gguf(model, folder / "my-model-F16.gguf", "F16")
    with pytest.raises(
        ValueError,
        match=r"my-model has several GGUF files: give one of them, my-model-F16\.gguf, my-model-Q8_0\.gguf",
    ):
        read_layers(folder)
    assert read_layers(folder / "my-model-F16.gguf").quantised == ""


def test_safetensors_are_preferred_to_gguf(tmp_path):
    model = wide_llama()
    model.save_pretrained(tmp_path)
    write_gguf(model, tmp_path / "x.gguf", "Q4_0")
    assert read_layers(tmp_path).quantised == ""


def test_a_model_in_parts(tmp_path):
    """As `llama-gguf-split` cuts them: the metadata in the first, each tensor in one."""
    from gguf import GGUFWriter

    model = wide_llama()
    whole = write_gguf(model, tmp_path / "whole.gguf")
    parts = tmp_path / "parts"
    parts.mkdir()
    tensors = GGUFReader(whole).tensors
    half = len(tensors) // 2
    first = write_gguf(model, parts / "x-00001-of-00002.gguf", keep=[tensor.name for tensor in tensors[:half]])
    writer = GGUFWriter(parts / "x-00002-of-00002.gguf", "llama")
    for tensor in tensors[half:]:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_layers(parts).fingerprint == read_layers(first).fingerprint == read_layers(whole).fingerprint
    (parts / "x-00002-of-00002.gguf").unlink()
    with pytest.raises(FileNotFoundError, match=r"x has 2 parts, but only \['x-00001-of-00002\.gguf'\]"):
        read_layers(parts)
    shutil.copy(first, parts / "x-00002-of-00002.gguf")
    with pytest.raises(ValueError, match="contain a tensor twice"):
        read_layers(parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"expert_count": 8},
            "x is a mixture of experts, which is not supported in GGUF: give the model's safetensors",
        ),
        ({"attention.value_length": 16}, "layer 3 of x: values must have 8 features per head, not 16"),
        ({"attention.head_count": 8}, "layer 3 of x: query.weight has shape"),
        ({"block_count": 9}, r"layer 8 of x: the layer lacks "),
        ({"block_count": 3}, "the configuration of x says 3 layers, but its weights have 4"),
        ({"block_count": 0}, "block_count in the GGUF metadata must be a whole number from 1, not 0"),
    ],
)
def test_invalid_metadata_are_refused(changes, message, tmp_path):
    write_gguf(tiny_model("llama"), tmp_path / "x.gguf", **changes)
    with pytest.raises(ValueError, match=message):
        read_layers(tmp_path / "x.gguf")


def test_head_size_without_metadata(tmp_path):
    path = write_gguf(tiny_model("llama"), tmp_path / "x.gguf")
    size = read_layers(path).layers[0].geometry.head_size
    path = write_gguf(
        tiny_model("llama"), tmp_path / "y.gguf", without=["attention.key_length", "attention.value_length"]
    )
    assert read_layers(path).layers[0].geometry.head_size == size == 8


@pytest.mark.parametrize("key", ["embedding_length", "attention.layer_norm_rms_epsilon", "feed_forward_length"])
def test_missing_metadata_are_refused(key, tmp_path):
    write_gguf(tiny_model("llama"), tmp_path / "x.gguf", without=[key])
    with pytest.raises(ValueError, match=f"the GGUF metadata lack {key}"):
        read_layers(tmp_path / "x.gguf")


def test_an_unsupported_architecture_is_refused(tmp_path):
    path = write_gguf(tiny_model("llama"), tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes().replace(b"llama", b"mamba"))
    with pytest.raises(
        ValueError, match=r"x is a GGUF file of the unsupported architecture 'mamba': .* a GGUF file of llama, "
    ):
        read_layers(path)


def test_scaled_rotary_positions(tmp_path):
    plain = write_gguf(tiny_model("llama"), tmp_path / "plain.gguf")
    angles = read_layers(plain).layers[0].geometry.rotary
    linear = write_gguf(
        tiny_model("llama"), tmp_path / "x.gguf", **{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    )
    assert read_layers(linear).layers[0].geometry.rotary == tuple(angle / 4 for angle in angles)
    other = write_gguf(
        tiny_model("llama"), tmp_path / "y.gguf", **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    )
    assert read_layers(other).layers[0].geometry.rotary == ()


def test_the_scale_of_gemmas_largest(tmp_path):
    """Of one size the scores are scaled by width / heads, which no metadata say; llama.cpp tells it by its layers."""
    for case, layers in (("gemma2", 46), ("gemma3_text", 62)):
        path = write_gguf(model_of(case), tmp_path / f"{case}.gguf", block_count=layers)
        (layer,) = read_layers(path, 0).layers
        assert layer.geometry.attention_scale == pytest.approx(6**-0.5)
        path = write_gguf(model_of(case), tmp_path / f"{case}.gguf")
        assert read_layers(path, 0).layers[0].geometry.attention_scale == pytest.approx(8**-0.5)


def test_the_size_of_a_layer_by_its_metadata(tmp_path):
    path = write_gguf(tiny_model("llama"), tmp_path / "x.gguf")
    assert read_geometry(path) == read_layers(path).layers[0].geometry
