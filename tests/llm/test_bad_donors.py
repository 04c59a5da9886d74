# SPDX-License-Identifier: Apache-2.0
"""The command `extract` with bad donors: a message of one sentence, exit status 1, no partial file."""

import json
import resource
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import llama_config
from processes import run_python
from safetensors.torch import load_file, save_file
from test_hub import extract, serve, stop
from tiny_models import tiny_folder


def index_of(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def shard_of(folder, name="model.layers.2.mlp.up_proj.weight"):
    return folder / index_of(folder)[name]


def config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncated(folder):
    shard = shard_of(folder)
    shard.write_bytes(shard.read_bytes()[:-100])


def header_cut(folder):
    shard_of(folder).write_bytes(shard_of(folder).read_bytes()[:20])


def header_lies(folder):
    content = bytearray(shard_of(folder).read_bytes())
    content[:8] = (1 << 40).to_bytes(8, "little")
    shard_of(folder).write_bytes(content)


def header_tampered(folder):
    content = shard_of(folder).read_bytes()
    shard_of(folder).write_bytes(content.replace(b"data_offsets", b"data_offsetz"))


def not_finite(folder):
    tensors = load_file(shard_of(folder))
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(tensors, shard_of(folder))


def other_shape(folder):
    tensors = load_file(shard_of(folder))
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.ones(3, 3)
    save_file(tensors, shard_of(folder))


def index_lies(folder):
    weight_map = {**index_of(folder), "model.layers.2.mlp.up_proj.weight": shard_of(folder, "model.norm.weight").name}
    weight_map["model.layers.2.mlp.other.weight"] = weight_map["model.norm.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def index_leads_out(folder):
    weight_map = {**index_of(folder), "model.layers.2.mlp.up_proj.weight": "../../etc/passwd"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


WRONG = {
    "truncated shard": (truncated, "it is truncated", ()),
    "header cut": (header_cut, "it is truncated", ()),
    "header of a terabyte": (header_lies, "more than the limit of", ()),
    "header tampered": (header_tampered, "its header has an invalid tensor", ()),
    "not finite": (not_finite, "up_proj.weight has NaN or infinite weights", ()),
    "another shape": (other_shape, "up.weight has shape (3, 3), not (40, 24)", ()),
    "shard missing": (lambda folder: shard_of(folder).unlink(), "lacks the weight file model-", ()),
    "index names a missing tensor": (index_lies, "index and weights belong to different models", ()),
    "index leads out": (index_leads_out, "do not trust this model", ()),
    "no weights": (lambda f: [file.unlink() for file in f.glob("model*")], "download the weights", ()),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json (Hugging Face) or", ()),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON", ()),
    "config of lists": (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds a list", ()),
    "words for numbers": (lambda folder: config(folder, hidden_size="24"), "hidden_size in config.json", ()),
    "layer out of range": (lambda folder: None, "layer 7 is not in this model: it has", ("--layer", "7")),
    "range out of range": (lambda folder: None, "range '2:9' is outside the layers 0 to 3", ("--layer", "2:9")),
    "layer in words": (lambda folder: None, "invalid layers 'last'", ("--layer", "last")),
    "unknown type": (lambda folder: config(folder, model_type="abacus"), "model type 'abacus'", ()),
    "another family": (lambda folder: config(folder, model_type="qwen3"), "the layer lacks", ()),
    "quantised": (lambda folder: config(folder, quantization_config={"bits": 4}), "is quantised (4 bits)", ()),
    "recurrent": (
        lambda folder: config(folder, model_type="mamba", num_hidden_layers=4), "choose another", ()
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    tiny_folder("llama", tmp_path / "tiny")
    return tmp_path / "tiny"


def assert_one_sentence(done, out, message):
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [
        line for line in done.stderr.splitlines() if not line.startswith(("Retrying in", "HTTP Error", "'[Errno"))
    ]
    assert line.startswith("monai-llmboost: ")
    assert message in line
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize("wrong", WRONG)
def test_a_local_folder(folder, tmp_path, wrong, monkeypatch, capsys):
    from monai_llmboost.__main__ import main

    spoil, message, options = WRONG[wrong]
    spoil(folder)
    out = tmp_path / "out"
    words = [
        "monai-llmboost",
        "extract",
        str(folder),
        "--out",
        str(out / "block.safetensors"),
        "--layer",
        "2",
        *options,
    ]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as exit:
        main()
    done = subprocess.CompletedProcess(words, exit.value.code, *capsys.readouterr())
    assert_one_sentence(done, out, message)


def test_a_pickle_that_runs_code(geometry, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("code of the checkpoint was run",))

    (tmp_path / "config.json").write_text(json.dumps(llama_config(geometry)))
    torch.save({"model.layers.2.x": Evil()}, tmp_path / "pytorch_model.bin")
    words = [
        sys.executable,
        "-m",
        "monai_llmboost",
        "extract",
        tmp_path,
        "--out",
        tmp_path / "out" / "block.safetensors",
    ]
    done = run_python(words)
    assert_one_sentence(done, tmp_path / "out", "cannot read pytorch_model.bin")
    assert "was run" not in done.stdout


def test_a_disk_without_room(folder, tmp_path):
    """The system lets the process write files of 4 kB at most."""
    words = [sys.executable, "-m", "monai_llmboost", "extract", folder, "--out", tmp_path / "out" / "block.safetensors"]
    done = run_python(words, preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (4096, 4096)))
    assert_one_sentence(done, tmp_path / "out", "free some space there, or give another --out")


@pytest.mark.parametrize(
    ("traits", "model", "message"),
    [
        ({"answers": [{"breaks": 0}] * 50}, "lab/tiny", "check the network, then try again"),
        ({"answers": [{}, {}, {"breaks": 10}, *[{"breaks": 0}] * 50]}, "lab/tiny", "check the network, then try again"),
        ({"answers": [{"ignores": True}] * 50}, "lab/tiny", "run `hf download lab/tiny"),
        ({"answers": [{"status": 503}] * 50}, "lab/tiny", "cannot reach the hub for"),
        ({}, "gated/tiny", "is gated: accept its licence on its hub page, then run `hf auth login`"),
        ({}, "lab/nothing", "no model 'lab/nothing' on the hub"),
    ],
    ids=["cut off", "cut off within the weights", "no ranges", "busy", "gated", "unknown"],
)
def test_the_hub(folder, tmp_path, traits, model, message):
    server = serve(folder, **traits)
    (tmp_path / "run").mkdir()
    done = extract(server.server_port, tmp_path / "run", model)
    stop(server)
    assert_one_sentence(done, tmp_path / "none", message)
    assert not list((tmp_path / "run").glob("*out*"))


def test_a_broken_download_is_resumed(folder, tmp_path):
    server = serve(folder, answers=[{"breaks": 100}] * 20)
    done = extract(server.server_port, tmp_path, "lab/tiny")
    stop(server)
    assert done.returncode == 0, done.stderr
    weights = [one for one in server.asked if one.method == "GET" and one.name.endswith(".safetensors")]
    assert len(weights) > 20
    assert server.sent < 2 * sum(file.stat().st_size for file in folder.glob("model-*")), "nothing is sent twice"


def test_no_network(tmp_path):
    done = extract(1, tmp_path, "lab/tiny")
    assert_one_sentence(done, tmp_path / "none", "the hub cannot be reached")
    assert not list(tmp_path.glob("*out*"))


def test_offline(tmp_path):
    done = extract(1, tmp_path, "lab/tiny", HF_HUB_OFFLINE="1")
    assert_one_sentence(done, tmp_path / "none", "HF_HUB_OFFLINE is set and the file is not in the local cache")
