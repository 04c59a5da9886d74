# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint of a family that is not run natively to a booster, by transformers' own layer class."""

import json
import logging
import os
import subprocess
import sys
import warnings

import pytest
import torch

from monai_llmboost.boosters import ResidualBooster, check_booster
from monai_llmboost.llm import (
    block_width,
    extract_block,
    load_block,
    random_block,
    read_block,
    read_geometry,
    read_header,
)
from monai_llmboost.llm.info import block_table
from monai_llmboost.llm.transformers_model import quiet

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32,
    "num_hidden_layers": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DONORS = {
    "starcoder2": SMALL,
    "falcon": {**{k: v for k, v in SMALL.items() if "key_value" not in k and "intermediate" not in k}, "alibi": False},
    "mixtral": {**SMALL, "num_local_experts": 2, "num_experts_per_tok": 1},
}


def save(model_type, numbers, folder):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**numbers)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.ndim == 1 else 0.0, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=DONORS)
def file(request, tmp_path_factory):
    folder = save(request.param, DONORS[request.param], tmp_path_factory.mktemp("donor") / request.param)
    assert extract_block(folder, folder / "block.safetensors", "1:")
    return folder / "block.safetensors"


def test_metadata_of_the_file(file):
    header = read_header(file)
    assert (json.loads(header["layers"]), header["num_layers"], header["geometries"]) == ([1, 2], "3", "[]")
    assert json.loads(header["config"])["model_type"] == header["donor"]
    assert block_width(file) == 32
    assert not extract_block(file.parent, file, "1,2"), "a second call does nothing"
    cells = [str(cell) for column in block_table(file).columns for cell in column.cells]
    assert f"{header['donor']}, run by transformers' own class" in cells
    assert "by computing the whole block" in cells


def test_it_has_the_interface_of_a_block(file):
    block = load_block(file)
    assert not list(block.parameters())
    assert list(block.state_dict()) == ["signature.code"]
    booster = ResidualBooster(16, block, start="published")
    check_booster(booster, 16)
    assert booster.describe_readout(2, 9, 1) == "whole block (run by transformers)"
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(booster(x, 2), booster(x)[:, :2])
    narrow = load_block(file, torch.bfloat16)
    assert narrow(torch.randn(1, 4, 32)).dtype == torch.float32
    booster.train()
    torch.testing.assert_close(booster(x), booster(x), msg="no dropout, whatever the network does")


def test_its_random_control_has_the_same_scale(file):
    donor, drawn = read_block(file), random_block(file, seed=4)
    for ours, theirs in zip(drawn.layer.buffers(), load_block(file).layer.buffers()):
        assert ours.shape == theirs.shape
    tensors, again = donor.layers[0].tensors, donor.random(4).layers[0].tensors
    for name, tensor in tensors.items():
        assert abs(again[name].std() - tensor.std()) < 0.2 * tensor.std() + 0.05


def test_features_of_native_families_only(file):
    with pytest.raises(ValueError, match="run by transformers' own class has neither causal nor rotary"):
        load_block(file, causal=True)
    with pytest.raises(ValueError, match=r"no final norm of .* for final_norm donor, but none"):
        load_block(file, final_norm="donor")
    with pytest.raises(ValueError, match="is not run natively: extract a layer"):
        read_geometry(file.parent)


def test_tensors_of_another_layer_are_refused(file, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text((file.parent / "config.json").read_text())
    weights = load_file(file.parent / "model.safetensors")
    gone = next(name for name in weights if ".2." in name and name.endswith("weight"))
    save_file({name: t for name, t in weights.items() if name != gone}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing or unknown|cannot join"):
        extract_block(folder, folder / "block.safetensors")
    assert not (folder / "block.safetensors").exists()


def test_a_recurrent_layer_is_refused(tmp_path):
    folder = save(
        "mamba", {k: SMALL[k] for k in ("hidden_size", "vocab_size", "num_hidden_layers")}, tmp_path / "mamba"
    )
    with pytest.raises(ValueError, match="reads tokens in order"):
        extract_block(folder, folder / "block.safetensors")
    assert not (folder / "block.safetensors").exists()


def test_transformers_output_is_suppressed(tmp_path):
    """BERT as a decoder is warned of whenever it is made; nothing of it, nor of progress, on either stream."""
    folder = save("bert", {**SMALL, "is_decoder": False}, tmp_path / "bert")
    out = tmp_path / "block.safetensors"
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "info"}
    commands = [["extract", str(folder), "--layer", "0", "--out", str(out)], ["info", str(out)]]
    code = f"from monai_llmboost.command_line.app import app\nfor one in {commands}: app(one, standalone_mode=False)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "bert" in done.stdout and "self-test" in done.stdout
    assert "transformers]" not in done.stdout
    assert "is_decoder=True" not in done.stdout


def test_transformers_output_is_restored(tmp_path):
    logger = logging.getLogger("transformers")
    level = logger.level
    with pytest.raises(RuntimeError, match="inside"), quiet():
        warnings.warn("said by a library", UserWarning, stacklevel=1)  # an error in tests
        print("said too")
        assert not logging.getLogger("transformers.models.bert").isEnabledFor(logging.CRITICAL)
        raise RuntimeError("inside")
    assert logger.level == level
