# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from conftest import llama_config
from safetensors.torch import save_file

from monai_llmboost.llm import BlockGeometry, FrozenBlock, load_block, random_layer, read_layers, write_block
from monai_llmboost.llm.donor.checkpoint import parse_layers
from monai_llmboost.llm.donor.meta import META


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_reads_a_layer_that_straddles_shards(llama, llama_folder):
    donor = read_layers(llama_folder, 1)
    (layer,) = donor.layers
    index = json.loads((llama_folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len({file for name, file in index.items() if ".layers.1." in name}) > 1
    assert (layer.index, donor.num_layers, donor.donor) == (1, 3, "tiny-llama")
    assert torch.equal(layer.tensors["key.weight"], llama.model.layers[1].self_attn.k_proj.weight)
    assert torch.equal(layer.tensors["mlp_norm.weight"], llama.model.layers[1].post_attention_layernorm.weight)


def test_reads_only_the_files_that_hold_the_layer(llama_folder):
    index = json.loads((llama_folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if ".layers.2." in name or name == "model.norm.weight"}
    for file in set(index.values()) - needed:
        (llama_folder / file).unlink()
    assert read_layers(llama_folder, -1).layers[0].index == 2


@pytest.mark.parametrize("sharded", [False, True])
def test_reads_pytorch_bin(llama, geometry, tmp_path, sharded):
    state = dict(llama.state_dict())
    (tmp_path / "config.json").write_text(json.dumps(llama_config(geometry)))
    if sharded:
        names = sorted(state)
        for number, part in enumerate((names[::2], names[1::2])):
            torch.save({name: state[name] for name in part}, tmp_path / f"part-{number}.bin")
        weight_map = {name: f"part-{position % 2}.bin" for position, name in enumerate(names)}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    (layer,) = read_layers(tmp_path, 0).layers
    assert torch.equal(layer.tensors["gate.weight"], llama.model.layers[0].mlp.gate_proj.weight)


def write_meta(folder, tensors, geometry, parts):
    """As Meta writes: rotary pairs side by side, split over files by outputs (by inputs for wo and w2)."""
    folder.mkdir()
    state = {}
    for theirs, name in META.items():
        tensor = tensors[name]
        if name in ("query.weight", "key.weight"):
            halves = tensor.view(-1, 2, geometry.head_size // 2, geometry.width)
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        state[f"layers.2.{theirs}"] = tensor
    for part in range(parts):
        piece = {}
        for key, tensor in state.items():
            split = 1 if key.endswith(("wo.weight", "w2.weight")) else 0
            piece[key] = tensor if tensor.ndim == 1 else tensor.chunk(parts, split)[part].clone()
        torch.save(piece, folder / f"consolidated.{part:02d}.pth")
    heads = {"n_heads": geometry.num_heads, "n_kv_heads": geometry.num_kv_heads}
    params = {"dim": geometry.width, "n_layers": 3, "norm_eps": geometry.norm_eps, **heads}
    (folder / "params.json").write_text(json.dumps(params))
    return folder


@pytest.fixture
def meta_geometry():
    turns = tuple(10000.0 ** (-i / 4) for i in range(4))
    return BlockGeometry(width=32, mlp_width=40, num_heads=4, num_kv_heads=2, head_size=8, norm_eps=1e-5, rotary=turns)


@pytest.mark.parametrize("parts", [1, 2])
def test_meta_files_give_the_fingerprint_of_the_hugging_face_tensors(meta_geometry, tmp_path, parts):
    donor = random_layer(meta_geometry, 1)
    meta = read_layers(write_meta(tmp_path / "meta", donor.layers[0].tensors, meta_geometry, parts), -1)
    assert meta.layers[0].geometry == meta_geometry
    assert meta.fingerprint == donor.fingerprint


@pytest.mark.parametrize("gone", [0, 1])
def test_a_missing_meta_file_is_refused(meta_geometry, tmp_path, gone):
    folder = write_meta(tmp_path / "meta", random_layer(meta_geometry, 1).layers[0].tensors, meta_geometry, parts=2)
    (folder / f"consolidated.{gone:02d}.pth").unlink()
    with pytest.raises(
        (FileNotFoundError, ValueError), match=r"some of the files from consolidated\.00|query\.weight has shape"
    ):
        read_layers(folder)


def test_the_really_pretrained_block_passes_its_self_test(tiny_llm_folder, tmp_path):
    donor = read_layers(tiny_llm_folder)
    geometry = donor.layers[0].geometry
    assert (geometry.width, geometry.mlp_width, geometry.num_kv_heads) == (192, 1024, 1)
    assert donor.num_weights == 700_800
    write_block(donor, tmp_path / "block.safetensors")
    assert load_block(tmp_path / "block.safetensors").width == 192


def test_stories260k_in_metas_layout_passes_its_self_test(stories_folder, tmp_path):
    """Its rotary pairs lie side by side. That must not matter: queries and keys meet only in products over a head's
    features, and one order of the features in both leaves every product as it is, unless positions turn the pairs."""
    donor = read_layers(stories_folder, "0:5")
    assert (donor.num_layers, donor.layers[0].geometry.num_kv_heads) == (5, 4)
    write_block(donor, tmp_path / "block.safetensors")
    block = load_block(tmp_path / "block.safetensors", final_norm="donor")
    raw = torch.load(stories_folder / "consolidated.00.pth", weights_only=True)
    x = torch.randn(1, 6, 64)
    ours = block(x)
    for layer, index in zip((*block.before, block.layer), range(5)):
        for name, short in (("query", "wq"), ("key", "wk")):
            as_stored = raw[f"layers.{index}.attention.{short}.weight"]
            assert not torch.equal(getattr(layer, name).weight, as_stored)
            getattr(layer, name).weight = as_stored
    torch.testing.assert_close(block(x), ours)
    turned = FrozenBlock(donor, rotary=True)
    ours = turned(x)
    turned.layer.query.weight = raw["layers.4.attention.wq.weight"]
    turned.layer.key.weight = raw["layers.4.attention.wk.weight"]
    assert (turned(x) - ours).abs().max() > 1e-3, "with positions it does matter"


@pytest.mark.parametrize("layer", [3, -4, 100])
def test_a_missing_layer_is_refused(llama_folder, layer):
    with pytest.raises(ValueError, match=rf"layer {layer} is not in this model: it has the layers 0 to 2"):
        read_layers(llama_folder, layer)


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        (-1, [7]), ("-1", [7]), ("3,5", [3, 5]), (" 5, 3 ", [5, 3]), ([0, -1], [0, 7]), (range(2, 4), [2, 3]),
        ("4:8", [4, 5, 6, 7]), ("-2:", [6, 7]), (":2", [0, 1]), ("-3:-1", [5, 6]), (":", list(range(8))),
    ],
)  # fmt: skip
def test_parse_layers(asked, got):
    assert parse_layers(asked, 8) == got


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("last", "invalid layers 'last': give an index"),
        ("1:2:3", "invalid layers"),
        ("", "invalid layers"),
        ("5:3", "'5:3' selects no layer"),
        ([], r"\[\] selects no layer"),
        ("4:9", "range '4:9' is outside the layers 0 to 7"),
        ("3,9", "layer 9 is not in this model"),
        ("7,-1", "'7,-1' selects a layer twice"),
    ],
)
def test_invalid_layers_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        parse_layers(asked, 8)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a model folder, a GGUF file, or a hub id"):
        read_layers(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"config\.json .* or params\.json"):
        read_layers(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "no such type"}, "no such type"),
        ({"attention_bias": True}, r"layer 2 of tiny-llama: the layer lacks \['key\.bias', "),
        ({"rope_parameters": {"rope_theta": "much"}}, "rope_theta in config.json must be a finite number, not 'much'"),
        ({"rope_parameters": [1]}, "rope_parameters and rope_scaling in config.json must be objects"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps in config.json must be a finite number, not 'tiny'"),
        ({"rms_norm_eps": 2.0}, "norm_eps must be between 0 and 1"),
        ({"quantization_config": {"bits": 4}}, "the model is quantised"),
        ({"hidden_size": "24"}, "hidden_size in config.json must be a whole number from 1, not '24'"),
        ({"num_hidden_layers": None}, "num_hidden_layers in the configuration must be the number of layers"),
        ({"num_attention_heads": 0}, "num_attention_heads in config.json must be a whole number"),
    ],
)
def test_an_invalid_configuration_is_refused(llama_folder, changes, message):
    change_config(llama_folder, **changes)
    with pytest.raises(ValueError, match=message):
        read_layers(llama_folder)


def test_broken_files_are_named(llama_folder):
    index = llama_folder / "model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    shard = llama_folder / shards["model.layers.2.self_attn.q_proj.weight"]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"cannot read {shard.name}: .* Download it again"):
        read_layers(llama_folder)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks the weight file {shard.name}"):
        read_layers(llama_folder)
    index.write_text(json.dumps({"weight_map": {"model.layers.2.self_attn.q_proj.weight": "../../secret"}}))
    with pytest.raises(ValueError, match=r"names a file '\.\./\.\./secret'"):
        read_layers(llama_folder)
    index.write_text("{")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is not JSON"):
        read_layers(llama_folder)
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r"has only some shards of model\.safetensors or pytorch_model\.bin"):
        read_layers(llama_folder)


def test_tensors_of_another_kind_are_refused(llama, geometry, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(llama_config(geometry)))
    state = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    save_file({**state, "model.layers.2.self_attn.q_norm.weight": torch.ones(8)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"layer 2 of .*: the layer has a tensor self_attn\.q_norm\.weight"):
        read_layers(tmp_path)
    name = "model.layers.2.mlp.up_proj.weight"
    save_file({**state, name: state[name].to(torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.layers\.2\.mlp\.up_proj\.weight is torch\.int8, not a float dtype"):
        read_layers(tmp_path)
    del state[name]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"the layer lacks \['up\.weight'\]"):
        read_layers(tmp_path)


def test_weights_that_are_not_finite_are_refused(llama, geometry, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(llama_config(geometry)))
    state = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    state["model.layers.2.self_attn.q_proj.weight"][0, 0] = torch.nan
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.layers\.2\.self_attn\.q_proj\.weight has NaN"):
        read_layers(tmp_path)


def test_two_stacks_of_layers_are_refused(llama, geometry, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(llama_config(geometry)))
    state = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    state |= {name.replace("model.", "vision."): tensor + 1 for name, tensor in state.items() if ".layers." in name}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"must have one list of layers, but has \['model\.', 'vision\.'\]"):
        read_layers(tmp_path)


def test_a_configuration_of_another_model_is_refused(llama_folder):
    change_config(llama_folder, head_dim=16)
    with pytest.raises(ValueError, match=r"query\.weight has shape \(32, 24\), not \(64, 24\)"):
        read_layers(llama_folder)


def test_weights_of_more_layers_than_the_configuration_says_are_refused(llama_folder):
    """Layer -1 would be another than the model's last."""
    change_config(llama_folder, num_hidden_layers=2)
    with pytest.raises(ValueError, match="the configuration of tiny-llama says 2 layers, but its weights have 3"):
        read_layers(llama_folder)


def test_a_pickle_that_runs_code_is_refused(geometry, tmp_path):
    class Evil:
        def __reduce__(self):
            return (exit, ("code of the checkpoint was run",))

    (tmp_path / "config.json").write_text(json.dumps(llama_config(geometry)))
    torch.save({"model.layers.2.x": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"cannot read pytorch_model\.bin"):
        read_layers(tmp_path)
