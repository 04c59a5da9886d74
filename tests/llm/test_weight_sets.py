# SPDX-License-Identifier: Apache-2.0
"""Donor folders with weights there twice, under other names, in parts without an index, or in a form not read."""

import json
import logging

import pytest
import torch
from conftest import llama_config
from safetensors.torch import load_file, save_file
from test_checkpoint import write_meta

from monai_llmboost.llm import BlockGeometry, random_layer, read_layers
from monai_llmboost.llm.donor.meta import META

GEOMETRY = BlockGeometry(
    width=32, mlp_width=40, num_heads=4, num_kv_heads=2, head_size=8, norm_eps=1e-5,
    rotary=tuple(10000.0 ** (-i / 4) for i in range(4)),
)  # fmt: skip
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def models():
    """An old and a new model of one configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def made(seed):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**llama_config(GEOMETRY, pad_token_id=0)))

    return made(0), made(1)


def state_of(model, dtype=torch.float32):
    return {name: tensor.to(dtype, copy=True) for name, tensor in model.state_dict().items()}


def shards(model, folder, size="9KB"):
    model.save_pretrained(folder, max_shard_size=size)
    return sorted(folder.glob("model-*.safetensors"))


def single(model, folder, name="model.safetensors", dtype=torch.float32):
    save_file(state_of(model, dtype), folder / name, metadata={"format": "pt"})


def bins(model, folder):
    """Shards as pickles, with their index."""
    names = sorted(state_of(model))
    state = state_of(model)
    files = {name: f"pytorch_model-0000{1 + position % 2}-of-00002.bin" for position, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: state[name] for name in names if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))


def config(model, folder):
    model.config.save_pretrained(folder)


def query(model, layer=-1):
    return model.model.layers[layer].self_attn.q_proj.weight


def read(folder, layer=-1):
    return read_layers(folder, layer).layers[0].tensors["query.weight"]


# Two sets of weights


def stale_shards(old, new, folder):
    shards(old, folder)
    single(new, folder)


def stale_bins(old, new, folder):
    bins(old, folder)
    torch.save(state_of(new), folder / "pytorch_model.bin")
    config(new, folder)


def stale_bin_by_safetensors(old, new, folder):
    torch.save(state_of(old), folder / "pytorch_model.bin")
    single(new, folder)
    config(new, folder)


def two_indices(old, new, folder):
    bins(old, folder)
    shards(new, folder)


def two_shardings(old, new, folder):
    for file in shards(old, folder, "18KB"):
        file.rename(folder / f"kept-{file.name}")
    (folder / INDEX).unlink()
    shards(new, folder, "9KB")
    for file in folder.glob("kept-*"):
        file.rename(folder / file.name.removeprefix("kept-"))


def native_by_hugging_face(old, new, folder):
    native(folder, read_layers_of(old, folder.parent / "scratch"))
    single(new, folder)
    config(new, folder)


def read_layers_of(model, folder):
    folder.mkdir()
    model.save_pretrained(folder)
    return [layer.tensors for layer in read_layers(folder, ":").layers]


def native(folder, layers, name="consolidated.safetensors", **params):
    """As Mistral writes: one file, rotary pairs side by side."""
    state = {"norm.weight": torch.ones(GEOMETRY.width), "tok_embeddings.weight": torch.ones(3, GEOMETRY.width)}
    for index, tensors in enumerate(layers):
        for theirs, ours in META.items():
            tensor = tensors[ours]
            if ours in ("query.weight", "key.weight"):
                halves = tensor.view(-1, 2, GEOMETRY.head_size // 2, GEOMETRY.width)
                tensor = halves.transpose(1, 2).reshape(tensor.shape)
            state[f"layers.{index}.{theirs}"] = tensor.contiguous()
    folder.mkdir(exist_ok=True)
    save_file(state, folder / name)
    numbers = {"dim": 32, "n_layers": len(layers), "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "hidden_dim": 40}
    (folder / "params.json").write_text(json.dumps({**numbers, "norm_eps": 1e-5, "vocab_size": 3, **params}))


TWO_SETS = {
    "stale shards and a new file": (stale_shards, INDEX, r"model\.safetensors"),
    "stale pickled shards and a new pickle": (stale_bins, r"pytorch_model\.bin\.index\.json", r"pytorch_model\.bin"),
    "a stale pickle and new safetensors": (stale_bin_by_safetensors, r"model\.safetensors", r"pytorch_model\.bin"),
    "two indices": (two_indices, INDEX, r"pytorch_model\.bin\.index\.json"),
    "shards of two numbers, one with an index": (two_shardings, INDEX, "model-00001-of-"),
    "Mistral's form and Hugging Face's": (native_by_hugging_face, r"model\.safetensors", r"consolidated\.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", TWO_SETS)
def test_two_sets_that_differ_are_refused_and_both_named(case, models, tmp_path):
    make, one, other = TWO_SETS[case]
    folder = tmp_path / "model"
    folder.mkdir()
    make(*models, folder)
    with pytest.raises(
        ValueError,
        match=rf"^model holds two sets of weights that differ, .*{one}.* and .*{other.rstrip(':')}.*: remove",
    ):
        read_layers(folder)


@pytest.mark.parametrize("case", TWO_SETS)
def test_one_model_in_two_formats_is_read(case, models, tmp_path, caplog):
    make, _, _ = TWO_SETS[case]
    folder = tmp_path / "model"
    folder.mkdir()
    new = models[1]
    with torch.no_grad():
        new.model.norm.weight.fill_(1.0)  # as in what stands for Mistral's form
    make(new, new, folder)
    assert torch.equal(read(folder), query(new))
    assert not caplog.records


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_model_in_two_precisions_is_read(dtype, models, tmp_path):
    old, new = models
    torch.save(state_of(new), tmp_path / "pytorch_model.bin")
    single(new, tmp_path, dtype=dtype)
    config(new, tmp_path)
    assert torch.equal(read(tmp_path), query(new).to(dtype))
    torch.save(state_of(new, torch.bfloat16), tmp_path / "pytorch_model.bin")
    assert torch.equal(read(tmp_path), query(new).to(dtype))
    torch.save(state_of(old), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="two sets of weights that differ"):
        read(tmp_path)


def test_an_index_without_its_files_is_ignored(models, tmp_path):
    old, new = models
    shards(old, tmp_path)
    new.save_pretrained(tmp_path)  # which removes the shards and leaves their index
    assert (tmp_path / INDEX).is_file()
    assert torch.equal(read(tmp_path), query(new))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks the weight file model-\d+-of-\d+\.safetensors"):
        read(tmp_path)


def test_a_whole_file_replaces_an_incomplete_index(models, tmp_path):
    old, new = models
    files = shards(old, tmp_path)
    single(new, tmp_path)
    needed = json.loads((tmp_path / INDEX).read_text())["weight_map"]["model.layers.2.self_attn.q_proj.weight"]
    (tmp_path / needed).unlink()
    assert torch.equal(read(tmp_path), query(new))
    assert len(files) > 3


def test_leftover_shards_of_an_older_save_are_ignored(models, tmp_path):
    old, new = models
    leftover = shards(old, tmp_path, "18KB")[0]
    kept = leftover.rename(tmp_path / "kept")
    shards(new, tmp_path)
    kept.rename(leftover)
    assert torch.equal(read(tmp_path), query(new))


def test_a_second_set_that_cannot_be_read_is_logged(models, tmp_path, caplog):
    new = models[1]
    torch.save(state_of(new), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    single(new, tmp_path)
    config(new, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(read(tmp_path), query(new))
    (record,) = caplog.records
    assert "pytorch_model.bin could not be compared with model.safetensors" in record.getMessage()
    assert ": cannot read pytorch_model.bin: it is of torch before 1.6" in record.getMessage()


def test_a_tensor_in_two_shards_is_refused(models, tmp_path):
    """One shard is of an older save, whose cuts were elsewhere."""
    files = shards(models[1], tmp_path)
    name = "model.layers.2.self_attn.q_proj.weight"
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    other = tmp_path / weight_map["model.layers.2.mlp.up_proj.weight"]
    assert other.name != weight_map[name]
    save_file({**load_file(other), name: torch.zeros(32, 32)}, other, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"q_proj\.weight is in {other.name} of .*, but in {weight_map[name]} in {INDEX}"
    ):
        read(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(ValueError, match=r"q_proj\.weight is in .* and in .*, and there is no index"):
        read(tmp_path)
    assert len(files) > 3


def test_a_tensor_that_the_index_does_not_have_is_refused(models, tmp_path):
    shards(models[1], tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    file = index["weight_map"]["model.layers.2.mlp.up_proj.weight"]
    content = load_file(tmp_path / file)
    save_file({**content, "model.layers.2.mlp.up_proj.bias": torch.zeros(40)}, tmp_path / file)
    with pytest.raises(ValueError, match=rf"up_proj\.bias is in {file} of .*, but missing in {INDEX}"):
        read(tmp_path)


# Weights under other names


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_without_an_index(kind, models, tmp_path):
    new = models[1]
    if kind == "bin":
        bins(new, tmp_path)
        config(new, tmp_path)
    else:
        shards(new, tmp_path)
    for index in tmp_path.glob("*.index.json"):
        index.unlink()
    for layer in (0, -1):
        assert torch.equal(read(tmp_path, layer), query(new, layer))
    next(iter(sorted(tmp_path.glob(f"*-00001-of-*.{kind}")))).unlink()
    with pytest.raises(FileNotFoundError, match=r"has only some shards of .*, without an index"):
        read(tmp_path)


VARIANTS = ["model.fp16.safetensors", "model.bf16.safetensors", "pytorch_model.fp16.bin", "shards", "older shards"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant(name, models, tmp_path):
    new = models[1]
    config(new, tmp_path)
    if name == "shards":
        new.save_pretrained(tmp_path, variant="fp16", max_shard_size="9KB")
        assert list(tmp_path.glob("model.fp16-*")) + list(tmp_path.glob("model-*.fp16.*"))
    elif name == "older shards":
        for file in shards(new, tmp_path):
            file.rename(tmp_path / file.name.replace(".safetensors", ".fp16.safetensors"))
        (tmp_path / INDEX).unlink()
    elif name.endswith(".bin"):
        torch.save(state_of(new), tmp_path / name)
    else:
        single(new, tmp_path, name)
    assert torch.equal(read(tmp_path), query(new))


def test_the_default_weights_are_preferred_to_a_variant(models, tmp_path):
    old, new = models
    config(new, tmp_path)
    single(old, tmp_path, "model.fp16.safetensors")
    single(new, tmp_path)
    assert torch.equal(read(tmp_path), query(new))


def test_several_variants_without_default_weights_are_refused(models, tmp_path):
    new = models[1]
    config(new, tmp_path)
    single(new, tmp_path, "model.fp16.safetensors")
    single(new, tmp_path, "model.bf16.safetensors")
    with pytest.raises(
        ValueError,
        match=r"the variants bf16, fp16 of its weights \(model\.bf16\.safetensors, model\.fp16\.safetensors\)",
    ):
        read(tmp_path)


@pytest.mark.parametrize("name", ["consolidated.safetensors", "consolidated-00001-of-00001.safetensors"])
def test_mistral_format(name, tmp_path):
    layers = [random_layer(GEOMETRY, seed).layers[0].tensors for seed in (1, 2)]
    native(tmp_path / "mistral", layers, name)
    donor = read_layers(tmp_path / "mistral", -1)
    assert donor.layers[0].geometry == GEOMETRY
    assert donor.fingerprint == random_layer(GEOMETRY, 2).fingerprint
    assert donor.final_norm["weight"].tolist() == [1.0] * 32
    assert donor.num_layers == 2


def test_a_given_head_size(tmp_path):
    geometry = BlockGeometry(width=24, mlp_width=40, num_heads=4, num_kv_heads=2, head_size=8, norm_eps=1e-5)
    donor = random_layer(geometry, 1)
    folder = write_meta(tmp_path / "meta", donor.layers[0].tensors, geometry, parts=1)
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({**params, "head_dim": 8}))
    (layer,) = read_layers(folder).layers
    assert layer.geometry.head_size == 8
    assert torch.equal(layer.tensors["query.weight"], donor.layers[0].tensors["query.weight"])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"moe": {"num_experts": 8}}, r"a mixture of experts \(moe in params\.json\)"),
        ({"quantization": {"qformat_weight": "fp8_e4m3"}}, r"a quantised model \(quantization in params\.json\)"),
        ({"n_layers": 1}, "the configuration of mistral says 1 layers, but its weights have 2"),
        ({"hidden_dim": 48}, r"hidden_dim in params.json is 48, but 40 in the weights"),
    ],
)
def test_unsupported_layers_of_mistral_are_refused(params, message, tmp_path):
    native(tmp_path / "mistral", [random_layer(GEOMETRY, seed).layers[0].tensors for seed in (1, 2)], **params)
    with pytest.raises(ValueError, match=message):
        read_layers(tmp_path / "mistral")


@pytest.mark.parametrize(("width", "layers", "factor"), [(4096, 32, 8), (2048, 16, 32), (3072, 28, 32)])
def test_scaled_positions_of_llama_3(width, layers, factor):
    """The factor is not in params.json; the slowest pair is slowed down by all of it."""
    from monai_llmboost.llm.donor.meta import _make_geometry

    params = {"dim": width, "n_layers": layers, "n_heads": 32, "norm_eps": 1e-5, "rope_theta": 5e5}
    plain, scaled = (_make_geometry({**params, "use_scaled_rope": on}, 1024).rotary for on in (False, True))
    assert plain[-1] / scaled[-1] == pytest.approx(factor)
    assert plain[0] == scaled[0]


def test_two_native_formats_that_differ(tmp_path):
    folder = write_meta(tmp_path / "meta", random_layer(GEOMETRY, 1).layers[0].tensors, GEOMETRY, parts=2)
    native(folder, [random_layer(GEOMETRY, seed).layers[0].tensors for seed in (3, 2, 1)])
    torch.save(
        {**torch.load(folder / "consolidated.00.pth"), "norm.weight": torch.ones(32)}, folder / "consolidated.00.pth"
    )
    assert read_layers(folder).fingerprint == random_layer(GEOMETRY, 1).fingerprint
    native(folder, [random_layer(GEOMETRY, seed).layers[0].tensors for seed in (3, 2, 4)])
    with pytest.raises(ValueError, match=r"differ, consolidated\.safetensors and consolidated\.00\.pth"):
        read_layers(folder)


def test_a_complete_format_replaces_an_incomplete_one(models, tmp_path):
    """Parts of Meta's form next to Hugging Face's, and parts of Hugging Face's next to Mistral's."""
    new = models[1]
    new.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "params.json").write_text("{}")
    (tmp_path / "hf" / "consolidated.01.pth").write_bytes(b"")
    assert torch.equal(read(tmp_path / "hf"), query(new))
    native(tmp_path / "native", [random_layer(GEOMETRY, 1).layers[0].tensors])
    config(new, tmp_path / "native")
    (tmp_path / "native" / "model-00002-of-00002.safetensors").write_bytes(b"")
    assert read_layers(tmp_path / "native").fingerprint == random_layer(GEOMETRY, 1).fingerprint


# Weights that are not read


FORMS = {
    "adapter_model.safetensors": r"only an adapter \(LoRA\), not a model \(adapter_.*merge it into its base model",
    "model.onnx": r"an ONNX model \(model\.onnx\), which is not supported: choose the safetensors form",
    "tf_model.h5": "TensorFlow weights",
    "model.ckpt.index": "TensorFlow weights",
    "flax_model.msgpack": "Flax weights",
    "weights.npz": "MLX or NumPy weights",
    "epoch=3.ckpt": r"a training checkpoint \(\.ckpt\) \(epoch=3\.ckpt\), .*: load it where it was trained",
    "rust_model.ot": "weights for Rust",
    "openvino_model.bin": "an OpenVINO model",
    "ggml-model-q4_0.bin": r"a llama\.cpp file in a format before GGUF",
    "model.nemo": "a NeMo archive",
    "__0_0.distcp": "a checkpoint of distributed training",
    "model.bin": r"weights under another name \(model\.bin\)",
    "my-weights.safetensors": "weights under another name .*rename it to model.safetensors",
}


@pytest.mark.parametrize("has_config", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_unsupported_formats_are_named(name, has_config, models, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    if has_config:
        config(models[1], folder)
    (folder / name).write_bytes(b"content")
    (folder / "training_args.bin").write_bytes(b"content")
    with pytest.raises(FileNotFoundError, match=rf"^model has no .*, but {FORMS[name]}") as caught:
        read_layers(folder)
    assert "\n" not in str(caught.value)


def test_weights_without_a_configuration(models, tmp_path):
    single(models[1], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no config\.json .*: give the folder of a model's"):
        read_layers(tmp_path)
    config(models[1], tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "optimizer.pt").write_bytes(b"content")
    with pytest.raises(FileNotFoundError, match=r"has no .* or pytorch_model\.bin: download"):
        read_layers(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"the model is quantised \(gptq, 4 bits\)"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"the model is quantised \(awq, 4 bits\)"),
        ({"quantization_config": {"load_in_8bit": True}}, r"the model is quantised \(bitsandbytes, 8 bits\)"),
        (
            {"quantization": {"group_size": 64, "bits": 4}},
            r"the model is quantised \(MLX, 4 bits\): choose the",
        ),
    ],
)
def test_a_quantised_model_is_refused_with_its_method(changes, message, models, tmp_path):
    models[1].save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        read_layers(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.gguf", "consolidated.safetensors"])
def test_a_pointer_of_git_lfs(name, models, tmp_path):
    if name.startswith("consolidated"):
        native(tmp_path, [random_layer(GEOMETRY, 1).layers[0].tensors])
    else:
        config(models[1], tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=rf"cannot read {name}: it is a Git LFS pointer"):
        read_layers(tmp_path)


def test_norms_in_another_precision(models, tmp_path):
    """Some writers keep norms in float32: then all of the layer is, unless they fit what the matrices are in."""
    state = state_of(models[1], torch.bfloat16)
    state |= {name: tensor.float() for name, tensor in state.items() if "norm" in name}
    config(models[1], tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    assert {t.dtype for t in read_layers(tmp_path).layers[0].tensors.values()} == {torch.bfloat16}
    state["model.layers.2.input_layernorm.weight"] += 1e-6
    save_file(state, tmp_path / "model.safetensors")
    assert {t.dtype for t in read_layers(tmp_path).layers[0].tensors.values()} == {torch.float32}
