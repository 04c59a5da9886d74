# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from monai_llmboost.llm import (
    block_width,
    extract_block,
    frozen_block,
    load_block,
    random_block,
    read_block,
    read_header,
    read_layers,
    write_block,
)
from monai_llmboost.llm.frozen import SMALL_GEOMETRY
from monai_llmboost.llm.paths import EMBEDDED


@pytest.fixture
def block_file(llama_folder, tmp_path):
    extract_block(llama_folder, tmp_path / "block.safetensors", layer=1)
    return tmp_path / "block.safetensors"


def test_round_trip(llama_folder, block_file, geometry):
    donor = read_layers(llama_folder, 1)
    header = read_header(block_file)
    assert (header["donor"], header["layers"], header["num_layers"]) == ("tiny-llama", "[1]", "3")
    assert header["fingerprint"] == donor.fingerprint
    block = load_block(block_file)
    assert replace(block.geometry, rotary=()) == geometry
    assert torch.equal(block.layer.down.weight, donor.layers[0].tensors["down.weight"])
    assert block.signature.text == f"tiny-llama layer 1 ({header['fingerprint'][:12]})"
    assert str(llama_folder.parent) not in str(header), "no path of this machine"


def test_is_kept_in_the_donors_dtype_and_loaded_in_float32(llama, tmp_path):
    llama.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    extract_block(tmp_path / "half", tmp_path / "half.safetensors")
    assert max(load_file(tmp_path / "half.safetensors").values(), key=torch.numel).dtype == torch.bfloat16
    assert load_block(tmp_path / "half.safetensors").layer.up.weight.dtype == torch.float32
    assert load_block(tmp_path / "half.safetensors", torch.bfloat16).layer.up.weight.dtype == torch.bfloat16


def test_a_layer_too_large_for_float16_is_no_reason_to_refuse_it(llama, tmp_path):
    with torch.no_grad():
        for name in ("up_proj", "gate_proj"):
            getattr(llama.model.layers[2].mlp, name).weight.mul_(3000)
    llama.to(torch.float16).save_pretrained(tmp_path / "half")
    extract_block(tmp_path / "half", tmp_path / "half.safetensors")
    assert load_block(tmp_path / "half.safetensors").layer.up.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="not finite"):
        load_block(tmp_path / "half.safetensors", torch.float16)


def test_nothing_is_overwritten_unasked(llama_folder, block_file):
    before = block_file.read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        extract_block(llama_folder, block_file, layer=0)
    assert block_file.read_bytes() == before
    extract_block(llama_folder, block_file, layer=0, overwrite=True)
    assert read_header(block_file)["layers"] == "[0]"


def test_a_second_call_does_nothing_only_if_it_is_the_same(llama, llama_folder, block_file, tmp_path):
    assert not extract_block(llama_folder, block_file, layer=-2)
    with pytest.raises(ValueError, match="a folder has no revisions, but revision 'main' was given"):
        extract_block(llama_folder, tmp_path / "other.safetensors", revision="main")
    twin = tmp_path / "elsewhere" / "tiny-llama"  # other weights in a folder of the same name
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight.mul_(2)
    llama.save_pretrained(twin)
    with pytest.raises(FileExistsError, match="holds other layers"):
        extract_block(twin, block_file, layer=1)
    content = bytearray(block_file.read_bytes())
    content[-1] ^= 1
    block_file.write_bytes(content)
    with pytest.raises(FileExistsError, match="holds other layers"):
        extract_block(llama_folder, block_file, layer=1)


def test_only_block_files_are_overwritten(llama_folder, tmp_path):
    other = tmp_path / "weights.safetensors"
    other.write_text("somebody's work")
    with pytest.raises(FileExistsError, match="is no block file: choose another --out, or remove it"):
        extract_block(llama_folder, other, overwrite=True)
    assert other.read_text() == "somebody's work"
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"folder\.safetensors is a folder, not the file to write: give --out"):
        extract_block(llama_folder, tmp_path / "folder.safetensors")
    with pytest.raises(
        OSError, match=r"cannot write /proc/1/x\.safetensors .*: free some space there, or give another --out"
    ):
        extract_block(llama_folder, "/proc/1/x.safetensors")


def test_of_two_extractions_at_once_one_is_refused(llama_folder, tmp_path):
    out = tmp_path / "block.safetensors"
    donor = read_layers(llama_folder)
    write_block(donor, out, overwrite=False)
    with pytest.raises(FileExistsError):
        write_block(donor, out, overwrite=False)
    assert [file.name for file in tmp_path.glob("*.safetensors*")] == [out.name]


@pytest.mark.parametrize("key", ["donor", "licence", "layers", "num_layers", "width", "geometries"])
def test_an_altered_header_is_refused(block_file, tmp_path, key):
    header = read_header(block_file)
    save_file(load_file(block_file), tmp_path / "other.safetensors", metadata={**header, key: "1"})
    with pytest.raises(ValueError, match="was altered, its header is not the one that was written"):
        read_header(tmp_path / "other.safetensors")
    save_file(
        load_file(block_file), tmp_path / "old.safetensors", metadata={**header, "format": "monai-llmboost block 1"}
    )
    with pytest.raises(ValueError, match=r"is a block file of another version, 'monai-llmboost block 1': extract"):
        read_header(tmp_path / "old.safetensors")


def test_a_failed_extraction_leaves_nothing(llama_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "monai_llmboost.llm.block_file.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full"))
    )
    folder = tmp_path / "new"
    with pytest.raises(OSError, match="disk full"):
        extract_block(llama_folder, folder / "block.safetensors")
    assert not list(folder.iterdir())


def test_an_altered_file_is_refused(block_file):
    content = bytearray(block_file.read_bytes())
    content[-1] ^= 1
    block_file.write_bytes(content)
    with pytest.raises(ValueError, match="was altered, its weights are not those that were extracted"):
        load_block(block_file)


def test_other_files_are_refused(tmp_path, llama_folder):
    with pytest.raises(FileNotFoundError, match=r"make one with `monai-llmboost extract"):
        load_block(tmp_path / "nothing.safetensors")
    with pytest.raises(
        ValueError, match=r"is a folder, not a block file: cut one layer out of the model with `monai-llmboost extract"
    ):
        load_block(llama_folder)
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is a safetensors file, but no block file"):
        load_block(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    with pytest.raises(ValueError, match="is no block file, or damaged"):
        load_block(tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match=r"does not end in \.safetensors"):
        extract_block(llama_folder, tmp_path / "block.bin")


def test_random_like_a_donor(block_file, geometry):
    block, donor = random_block(block_file, seed=7), load_block(block_file)
    assert replace(block.geometry, rotary=()) == geometry
    assert block.signature.text.startswith("random seed 7 like tiny-llama layer 1 (")
    assert block.fingerprint != donor.fingerprint
    spread = load_file(block_file)["0.gate.weight"].std()
    assert 0.8 < block.layer.gate.weight.std() / spread < 1.2


def test_the_block_in_the_package(tmp_path):
    """The default of the bundle: small, pre-trained, described, and a block like any other."""
    assert EMBEDDED.stat().st_size <= 2_000_000
    header = read_header("embedded")
    assert (header["donor"], header["licence"], header["layers"]) == ("tiny-english", "apache-2.0", "[5]")
    block = load_block("embedded", final_norm="donor")
    assert block.width == block_width("embedded") == 256
    card = (EMBEDDED.parent / "README.md").read_text()
    training = json.loads((ROOT / "benchmarks" / "results" / "tiny-english.json").read_text())
    assert training["held_out"]["perplexity"] < training["held_out"]["unigram_perplexity"] / 10
    for figure in ("perplexity", "unigram_perplexity"):
        assert f"{training['held_out'][figure]:.1f}" in card
    assert f"{training['layer_weights']:,}" in card
    assert int(header["num_weights"]) == training["layer_weights"]
    learned = read_block("embedded").layers[0].tensors["gate.weight"].float()
    drawn = torch.randn(learned.shape, generator=torch.Generator().manual_seed(0)) * learned.std()
    top = torch.linalg.svdvals(learned)[0] / torch.linalg.svdvals(drawn)[0]
    assert top > 1.3, "training leaves directions that random weights do not have"
    assert random_block("embedded").signature.text.startswith("random seed 0 like tiny-english layer 5 (")


def test_what_the_block_option_says(block_file):
    assert frozen_block("random", seed=2).signature.text.startswith("random seed 2 (")
    assert frozen_block(block_file).signature.text.startswith("tiny-llama layer 1 (")
    assert frozen_block("embedded").signature.text.startswith("tiny-english layer 5 (")
    assert block_width("random") == SMALL_GEOMETRY.width
    assert block_width(block_file) == 24
