# SPDX-License-Identifier: Apache-2.0
"""Block files with 8 to 4 bits a weight: what they hold, how far they are off, what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.command_line.app import app
from monai_llmboost.llm import (
    BlockGeometry,
    DonorLayers,
    FrozenBlock,
    Layer,
    extract_block,
    load_block,
    quantise_layers,
    random_block,
    random_layer,
    read_block,
    read_header,
    trained_block,
    write_block,
)
from monai_llmboost.llm.block_file import _digest
from monai_llmboost.llm.quantise import find_salient
from monai_llmboost.llm.quantised_matrix import quantise_matrix

LAYER = BlockGeometry(width=96, mlp_width=200, num_heads=4, num_kv_heads=2, head_size=16)
FAMILIES = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "gemma2": {"gain_offset": 1.0, "post_norm": True, "score_cap": 50.0, "activation": "gelu_tanh"},
    "olmo2": {"pre_norm": False, "post_norm": True, "qk_norm": "all"},
    "gpt2": {"norm": "layer", "gated": False, "qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "neox": {"norm": "layer", "gated": False, "parallel": True, "qkv_bias": True, "mlp_bias": True},
}


def weight(out=24, inputs=150, seed=0):
    return torch.randn(out, inputs, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("group", [7, 64, 200])
def test_a_matrix_is_at_most_half_a_step_off_and_takes_its_bits(bits, group):
    original = weight()
    matrix = quantise_matrix(original, bits, group=group)
    found = matrix.dequantise(150, torch.float32, group)
    grid = matrix.scales.float().abs().repeat_interleave(group, dim=1)[:, :150]
    inside = original.abs() < grid * (2 ** (bits - 1) - 1)
    assert ((found - original).abs() <= 0.5001 * grid)[inside].all()
    assert inside.float().mean() > 0.3
    groups = -(-150 // group)
    assert matrix.num_bytes == bits * 24 * 19 + 2 * 24 * groups  # 150 bits are 19 bytes


def test_more_bits_and_smaller_groups_are_nearer():
    original = weight(64, 512)

    def error(bits, group):
        found = quantise_matrix(original, bits, group=group).dequantise(512, torch.float32, group)
        return float((found - original).norm() / original.norm())

    errors = [error(*one) for one in ((2, 64), (3, 64), (4, 64), (4, 16), (5, 64), (8, 64))]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.1 and errors[-1] < 0.01


def test_the_codes_as_the_documentation_says():
    """Reading with NumPy alone, from the page on file formats."""
    original, channels = weight(), torch.tensor([3, 149])
    matrix = quantise_matrix(original, 4, channels)
    planes = np.unpackbits(matrix.codes.numpy(), axis=2, count=148, bitorder="little").astype(int)
    codes = sum(plane << bit for bit, plane in enumerate(planes))
    scales = matrix.scales.numpy().astype(np.float32).repeat(64, axis=1)[:, :148]
    found = np.zeros((24, 150), np.float32)
    found[:, [3, 149]] = matrix.salient.float()
    found[:, np.delete(np.arange(150), [3, 149])] = (codes - 8) * scales
    assert matrix.channels.tolist() == [3, 149]
    np.testing.assert_array_equal(matrix.dequantise(150, torch.float32).numpy(), found)
    assert torch.equal(matrix.salient, original[:, [3, 149]].half())


def test_values_on_the_grid_are_kept():
    codes = torch.randint(-8, 8, (16, 128), generator=torch.Generator().manual_seed(0)).float()
    codes[:, ::64] = -8.0  # the end of the grid is in each group
    for sign in (1, -1):
        original = codes * sign * 2.0**-9
        assert torch.equal(quantise_matrix(original, 4).dequantise(128, torch.float32), original)


def test_zeros_and_unlike_sizes():
    original = weight(4, 128)
    original[0] = 0.0
    original[1] *= 1e-3
    original[2, :64] = 0.0
    found = quantise_matrix(original, 4).dequantise(128, torch.float32)
    assert found.isfinite().all() and not found[0].any() and not found[2, :64].any()
    assert (found[1] - original[1]).norm() < 0.15 * original[1].norm()


def test_salient_channels_are_those_that_change_the_output():
    matrix, x = weight(32, 100), torch.randn(64, 100, generator=torch.Generator().manual_seed(1))
    assert find_salient(matrix, x, 0) is None
    x[:, 17] *= 20  # a large activation
    matrix[:, 60] *= 20  # a large weight
    assert set(find_salient(matrix, x, 0.02).tolist()) == {17, 60}
    assert len(find_salient(matrix, x, 0.001)) == 1 and len(find_salient(matrix, x, 0.999)) == 99
    random = torch.arange(2)
    errors = []
    for channels in (None, random, find_salient(matrix, x, 0.02)):
        found = quantise_matrix(matrix, 4, channels).dequantise(100, torch.float32)
        errors.append(float((x @ (found - matrix).T).norm()))
    assert errors[2] < 0.7 * min(errors[:2])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("salient", [0.0, 0.1])
def test_a_file_of_every_kind_of_layer(name, salient, tmp_path):
    geometry = replace(LAYER, **FAMILIES[name])
    layers = [random_layer(geometry, seed).layers[0] for seed in (1, 2)]
    donor = DonorLayers(tuple(replace(one, index=i) for i, one in enumerate(layers)), name, 2)
    small = quantise_layers(donor, 4, salient)
    write_block(small, tmp_path / "b.safetensors")
    again, header = read_block(tmp_path / "b.safetensors"), read_header(tmp_path / "b.safetensors")
    assert (again.fingerprint, header["source"]) == (small.donor.fingerprint, donor.fingerprint)
    assert again.fingerprint != donor.fingerprint
    for before, after in zip(donor.layers, again.layers):
        for key, tensor in before.tensors.items():
            same = torch.equal(tensor, after.tensors[key])
            assert same == (tensor.ndim != 2), key
            assert after.tensors[key].dtype == tensor.dtype
    kept = load_file(tmp_path / "b.safetensors")
    assert not [key for key, tensor in kept.items() if tensor.ndim == 2 and tensor.dtype == torch.float32]
    assert 0 < small.error < 0.3


def test_the_stored_error_is_that_of_the_output():
    donor = read_block("embedded")
    errors = {bits: quantise_layers(donor, bits).error for bits in (8, 4)}
    salient = quantise_layers(donor, 4, 0.1)
    assert errors[8] < 0.007 and errors[8] < errors[4] / 10 and salient.error < errors[4] < 0.1
    x = torch.randn(2, 50, 256, generator=torch.Generator().manual_seed(5))
    whole, small = (FrozenBlock(one, h_rms=salient.h_rms)(x) for one in (donor, salient.donor))
    assert float((whole - small).norm() / whole.norm()) == pytest.approx(salient.error, rel=0.1)


def test_norms_and_a_random_control():
    donor = read_block("embedded")
    small = quantise_layers(donor, 4).donor
    assert (
        small.name == "tiny-english layer 5 in 4 bits" and small.layers[0].tensors["up.weight"].dtype == torch.bfloat16
    )
    assert small.random(0).name.startswith("random seed 0 like tiny-english layer 5")
    assert not small.random(0).name.endswith("bits")


@pytest.fixture
def files(llama_folder, tmp_path):
    """Files of one layer by their options."""
    made = {}
    for bits, salient in ((16, 0.0), (8, 0.0), (6, 0.0), (5, 0.0), (4, 0.0), (4, 0.1)):
        made[bits, salient] = tmp_path / f"{bits}-{salient}.safetensors"
        assert extract_block(llama_folder, made[bits, salient], 1, bits=bits, salient=salient)
    return made


def test_files_with_other_bits_are_other_blocks(files, llama_folder):
    headers = {key: read_header(file) for key, file in files.items()}
    assert len({header["fingerprint"] for header in headers.values()}) == len(files)
    assert [header["format"][-1] for header in headers.values()] == ["3", *"44444"]
    assert {header.get("source", header["fingerprint"]) for header in headers.values()} == {
        headers[16, 0.0]["fingerprint"]
    }
    assert json.loads(headers[4, 0.1]["h_rms"]) == json.loads(headers[16, 0.0]["h_rms"])
    for (bits, salient), file in files.items():
        assert not extract_block(llama_folder, file, 1, bits=bits, salient=salient), "it is there already"
        block = load_block(file)
        assert block.fingerprint == headers[bits, salient]["fingerprint"]
    with pytest.raises(FileExistsError, match="holds other layers or bits"):
        extract_block(llama_folder, files[4, 0.0], 1)
    with pytest.raises(FileExistsError, match="holds other layers or bits"):
        extract_block(llama_folder, files[4, 0.0], 1, bits=4, salient=0.1)


def test_everything_else_works_unchanged(files):
    """The exact read-out, a checkpoint, a trained block and a random control of a file with 4 bits."""
    block = load_block(files[4, 0.1], h_scale="donor")
    booster = ResidualBooster(12, block, start="published")
    x = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(booster(x, 1), booster(x)[:, :1], atol=1e-5, rtol=1e-5)
    state = booster.state_dict()
    booster.load_state_dict(state)
    whole = ResidualBooster(12, load_block(files[16, 0.0], h_scale="donor"), start="published")
    with pytest.raises((RuntimeError, ValueError), match="in 4 bits"):
        whole.load_state_dict(state)
    assert load_block(files[4, 0.1], torch.bfloat16).layer.up.weight.dtype == torch.bfloat16
    assert trained_block(files[4, 0.1]).layer.up.weight.requires_grad
    assert random_block(files[4, 0.1], seed=1).width == 24


def test_an_altered_file_is_refused(files, tmp_path):
    file = files[4, 0.1]
    content, header = load_file(file), read_header(file)
    other = tmp_path / "other.safetensors"
    changed = {
        "codes": content["0.up.weight.codes"] ^ 1,
        "scales": content["0.up.weight.scales"] * 2,
        "salient": content["0.up.weight.salient"] + 1,
        "channels": content["0.up.weight.channels"].flip(0) * 0,
    }
    for part, tensor in changed.items():
        for tensors in ({f"0.up.weight.{part}": tensor}, {f"0.up.weight.{part}": tensor[:1]}):
            save_file({**content, **tensors}, other, metadata=header)
            with pytest.raises(ValueError, match="was altered, its weights are not those that were extracted"):
                read_block(other)
        save_file({k: v for k, v in content.items() if k != f"0.up.weight.{part}"}, other, metadata=header)
        with pytest.raises(ValueError, match="was altered, its weights are not those that were extracted"):
            read_block(other)
    save_file(content, other, metadata={**header, "bits": "8"})
    with pytest.raises(ValueError, match="its header is not the one that was written"):
        read_block(other)
    later = {**header, "format": "monai-llmboost block 5"}
    save_file(content, other, metadata={**later, "header": _digest(later)})
    with pytest.raises(ValueError, match=r"another version, 'monai-llmboost block 5'"):
        read_block(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 7}, "unknown bits 7; choose from 16, 8, 6, 5, 4"),
        ({"salient": 0.1}, "--salient 0.1 needs fewer bits for the others: give --bits 8, 6, 5 or 4 too"),
        ({"bits": 4, "salient": 1.0}, "salient must be a share of the input channels from 0 to below 1, not 1.0"),
        ({"bits": 4, "salient": -0.1}, "salient must be a share"),
        ({"bits": 4, "salient": float("nan")}, "salient must be a share"),
        ({"bits": 4, "salient": True}, "salient must be a share"),
    ],
)
def test_what_is_refused_before_anything_is_read(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        extract_block(tmp_path / "no such model", tmp_path / "b.safetensors", **options)


def test_layers_of_transformers_are_refused():
    layer = Layer({"w.weight": torch.ones(2, 2)}, None, '{"model_type": "falcon"}', 3)
    with pytest.raises(
        ValueError, match="other layer 3 is run by transformers' own class, whose weights cannot be stored"
    ):
        quantise_layers(DonorLayers((layer,), "other"), 4)


def test_weights_too_large_for_16_bits_are_refused(llama, tmp_path):
    with torch.no_grad():
        llama.model.layers[-1].mlp.down_proj.weight.mul_(1e7)
    llama.save_pretrained(tmp_path / "large")
    with pytest.raises(ValueError, match=r"a weight of size .* does not fit in 16 bits: leave out --bits"):
        extract_block(tmp_path / "large", tmp_path / "b.safetensors", bits=4)
    assert not (tmp_path / "b.safetensors").exists()


def test_the_size_of_a_large_layer():
    """LLaMA-7B: 4 bits and 16 for 64 weights are 4.25 bits a weight, by the sizes of a smaller matrix of its kind."""
    geometry = BlockGeometry(width=4096, mlp_width=11008, num_heads=32, num_kv_heads=32, head_size=128)
    weights = sum(shape[0] * shape[1] for shape in geometry.tensor_shapes.values() if len(shape) == 2)
    for share, megabytes in ((0, 107.5), (0.1, 137)):
        channels = torch.arange(round(share * 4096))
        matrix = quantise_matrix(weight(1024, 4096), 4, channels)
        assert matrix.num_bytes / (1024 * 4096) * weights / 1e6 == pytest.approx(megabytes, rel=0.01)


def test_on_the_command_line(llama_folder, tmp_path):
    out = tmp_path / "b.safetensors"
    done = CliRunner().invoke(app, ["extract", str(llama_folder), "--bits", "4", "--salient", "0.1", "--out", str(out)])
    assert done.exit_code == 0 and "weights, 4 bits (error " in done.stdout
    shown = " ".join(CliRunner().invoke(app, ["info", str(out)]).stdout.replace("│", " ").split())
    error = 100 * float(read_header(out)["error"])
    assert (
        f"4 bits, a scale for 64 inputs, 10 % of the inputs in 16 bits: 0.0 MB; the output differs by {error:.2g} %"
        in shown
    )
    with safe_open(out, "pt") as content:
        assert content.get_tensor("0.up.weight.codes").dtype == torch.uint8
