# SPDX-License-Identifier: Apache-2.0
"""Every family that is run natively, from checkpoints that `transformers` saved, against its own layer."""

import json

import pytest
import torch
from tiny_models import CASES, LEARNED_POSITIONS, NORMED_KEYS, run_theirs, tiny_folder

from monai_llmboost.llm import (
    NATIVE,
    DecoderBlock,
    FrozenBlock,
    extract_block,
    load_block,
    random_block,
    read_block,
    read_geometry,
    read_header,
    read_layers,
    self_test,
)
from monai_llmboost.llm.donor.families import FAMILIES, find_family, make_geometry


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def saved(case, tmp_path_factory):
    """Their model, and the folder it saved itself into."""
    folder = tmp_path_factory.mktemp("donor") / "tiny"
    return tiny_folder(case, folder), folder


def block_of(folder, layer, **options):
    (one,) = read_layers(folder, layer).layers
    return DecoderBlock.from_tensors(one.geometry, one.tensors, **options)


def same(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_all_native_families_are_here():
    assert {model_type for model_type, _ in CASES.values()} == set(NATIVE)


@pytest.mark.parametrize("layer", [0, 3])
def test_equals_the_transformers_layer(saved, layer):
    model, folder = saved
    block = block_of(folder, layer)
    x = torch.randn(2, 7, block.width)
    with torch.no_grad():
        same(block(x), run_theirs(model, layer, x))
        same(block(x, 3), run_theirs(model, layer, x)[:, :3])


@pytest.mark.parametrize("layer", [0, 3])
def test_with_mask_and_positions_it_equals_the_language_model(case, saved, layer):
    model, folder = saved
    options = {"causal": True, "rotary": case not in LEARNED_POSITIONS}
    if case == "smollm3" and layer == 3:
        options["rotary"] = False  # every fourth layer has none
    block = block_of(folder, layer, **options)
    x = torch.randn(2, 7, block.width)
    with torch.no_grad():
        same(block(x), run_theirs(model, layer, x, in_order=True))
        same(block(x, 3), run_theirs(model, layer, x, in_order=True)[:, :3])


def test_layers_without_rotary_positions_refuse_rotary(case, saved):
    if case in LEARNED_POSITIONS or case == "smollm3":
        with pytest.raises(ValueError, match="the layer has no rotary positions"):
            block_of(saved[1], 3, rotary=True)


def test_passes_the_self_test(saved):
    donor = read_layers(saved[1])
    measured = self_test(FrozenBlock(donor), donor.name)
    assert all(value >= 0 for value in measured.values())


def test_several_layers(saved):
    model, folder = saved
    block = FrozenBlock(read_layers(folder, "1:3"), final_norm="none")
    x = torch.randn(2, 7, block.width)
    with torch.no_grad():
        expected = run_theirs(model, 2, run_theirs(model, 1, x))
        same(block(x), expected)
        same(block(x, 2), expected[:, :2])


def test_final_norms(case, saved):
    model, folder = saved
    donor = read_layers(folder)
    x = torch.randn(2, 7, FrozenBlock(donor).width)
    (theirs,) = (
        m for name, m in model.named_modules()
        if name.rpartition(".")[2] in ("norm", "ln_f", "final_layer_norm") and ".layers." not in name
    )  # fmt: skip
    bare = FrozenBlock(donor, final_norm="none")(x)
    with torch.no_grad():
        same(FrozenBlock(donor, final_norm="donor")(x), theirs(bare))
    unit = FrozenBlock(donor)(x)
    torch.testing.assert_close(unit.square().mean(-1), torch.ones(2, 7), rtol=1e-3, atol=0)
    centred = case.startswith(("gpt", "opt"))
    assert (unit.mean(-1).abs() < 1e-5).all() == centred, "a LayerNorm centres, an RMSNorm does not"


def test_extraction_round_trip(saved, tmp_path):
    folder = saved[1]
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA card.\n")
    file = tmp_path / "block.safetensors"
    assert extract_block(folder, file, "-2:")
    assert not extract_block(folder, file, "2,3"), "a second call finds it and does nothing"
    header = read_header(file)
    assert (header["donor"], header["licence"], json.loads(header["layers"])) == ("tiny", "apache-2.0", [2, 3])
    donor, again = read_layers(folder, [2, 3]), read_block(file)
    assert again.fingerprint == donor.fingerprint == header["fingerprint"]
    block = load_block(file, final_norm="donor")
    x = torch.randn(1, 5, block.width)
    assert torch.equal(block(x), FrozenBlock(donor, final_norm="donor")(x))
    assert sum(buffer.numel() for buffer in block.before.buffers()) > 1000
    assert random_block(file).layer.down.weight.shape == block.layer.down.weight.shape


def test_geometry_without_weights(case, saved):
    folder = saved[1]
    assert read_geometry(folder) == read_layers(folder).layers[-1].geometry


def test_families_with_linear_scores(case, saved):
    block = block_of(saved[1], 0)
    assert block.attention_form.normed_keys == (case in NORMED_KEYS)
    assert block_of(saved[1], 0, causal=True).attention_form is None


def test_old_checkpoints_with_buffers(tmp_path):
    """Causal masks and rotary frequencies that are no weights, as GPT-NeoX, GPT-2 and LLaMA files had them."""
    from safetensors.torch import load_file, save_file

    old = {
        "gpt_neox": {
            "attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool), "attention.masked_bias": torch.tensor(-1e9),
            "attention.rotary_emb.inv_freq": torch.ones(2),
        },
        "gpt2": {
            "attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8), "attn.masked_bias": torch.tensor(-torch.inf),
        },
        "llama": {"self_attn.rotary_emb.inv_freq": torch.ones(4)},
    }  # fmt: skip
    for case, buffers in old.items():
        folder = tmp_path / case
        tiny_folder(case, folder)
        expected = read_layers(folder).fingerprint
        state = {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
        begin = {"gpt_neox": "gpt_neox.layers.3.", "gpt2": "transformer.h.3.", "llama": "model.layers.3."}[case]
        for file in folder.glob("model*"):
            file.unlink()
        save_file({**state, **{f"{begin}{name}": t for name, t in buffers.items()}}, folder / "model.safetensors")
        assert read_layers(folder).fingerprint == expected
        if case == "gpt2":  # the hub's own file has no first word
            bare = {n.removeprefix("transformer."): t for n, t in state.items()}
            save_file(bare, folder / "model.safetensors")
            assert read_layers(folder).fingerprint == expected


def test_layers_that_share_memory_in_a_pickle(tmp_path):
    model = tiny_folder("gpt2", tmp_path)
    state = dict(model.state_dict())
    state |= {n.replace(".h.3.", ".h.2."): t for n, t in state.items() if ".h.3." in n}
    for file in tmp_path.glob("model*"):
        file.unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    both, alone = read_layers(tmp_path, "2:4"), read_layers(tmp_path, 3)
    for layer in both.layers:
        assert all(torch.equal(layer.tensors[name], tensor) for name, tensor in alone.layers[0].tensors.items())


def test_missing_numbers_are_the_familys_defaults():
    from transformers import CONFIG_MAPPING

    for name, family in FAMILIES.items():
        whole = CONFIG_MAPPING[name]().to_dict()
        for layer in (0, 3):
            assert make_geometry(family, {"model_type": name}, layer) == make_geometry(family, whole, layer), name


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 4}}),
        ("llama", {"rms_norm_eps": 10**400}),
        ("llama", {"hidden_size": 10**12}),
        ("llama", {"hidden_size": True}),
        ("llama", {"partial_rotary_factor": 1e12}),
        ("llama", {"rope_theta": float("nan")}),
        ("llama", {"rope_parameters": {"sliding_attention": None, "rope_theta": -1}}),
        ("gemma2", {"query_pre_attn_scalar": 0}),
        ("gemma2", {"query_pre_attn_scalar": -1}),
        ("gemma2", {"attn_logit_softcapping": -3}),
        ("gemma3_text", {"layer_types": ["full_attention"]}),
    ],
)
def test_inconsistent_numbers_are_refused(family, changes):
    config = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, **changes}
    with pytest.raises(ValueError, match=r"inconsistent|must be|does not|too many|choose from"):
        make_geometry(FAMILIES[family], config, 3)


def test_score_cap_is_optional():
    assert make_geometry(FAMILIES["gemma2"], {"attn_logit_softcapping": None}, 0).score_cap == 0
    assert make_geometry(FAMILIES["gemma2"], {}, 0).score_cap == 50


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "opt", "do_layer_norm_before": False},
        {"model_type": "opt", "layer_norm_elementwise_affine": False},
        {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
        {"model_type": "llama", "hidden_act": "tanhshrink"},
        {"model_type": "something else"},
        {},
    ],
)
def test_unsupported_layers_are_not_native(config):
    assert find_family(config) is None
