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
from monai_llmboost.llm.families import family_of


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


def test_layers_without_turned_pairs_refuse_rotary(case, saved):
    if case in LEARNED_POSITIONS or case == "smollm3":
        with pytest.raises(ValueError, match="expected a layer with rotary positions, this one has none"):
            block_of(saved[1], 3, rotary=True)


def test_passes_the_self_test(saved):
    donor = read_layers(saved[1])
    measured = self_test(FrozenBlock(donor), donor.name)
    assert all(value >= 0 for value in measured.values())


def test_several_layers_one_after_another(saved):
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


def test_geometry_needs_no_weights(case, saved):
    folder = saved[1]
    assert read_geometry(folder) == read_layers(folder).layers[-1].geometry


def test_which_families_have_linear_scores(case, saved):
    block = block_of(saved[1], 0)
    assert block.scores_are_linear == (case not in NORMED_KEYS)
    assert not block_of(saved[1], 0, causal=True).scores_are_linear


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
def test_what_block_cannot_do_is_not_called_native(config):
    assert family_of(config) is None
