# SPDX-License-Identifier: Apache-2.0
"""What it takes to cut one layer of ten out of a sharded checkpoint: bytes read, memory, and nothing else started."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_hub import extract, serve, stop
from tiny_models import CASES

MEASURE = """
import json, os, sys, threading
from pathlib import Path

def counter(file, field):
    lines = Path(file).read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])

import socket
def no_network(*_):
    raise AssertionError("a socket was opened")
socket.socket.connect = no_network

from monai_llmboost.llm import extract_block, read_layers
import safetensors.torch, torch, yaml, huggingface_hub.repocard
torch.set_num_threads(1)
model, out, warm = sys.argv[1:]
extract_block(warm, out + ".warm.safetensors")  # what is imported or set up once
Path("/proc/self/clear_refs").write_text("5")
threads = threading.active_count(), len(os.listdir("/proc/self/task"))
before = counter("/proc/self/io", "rchar"), counter("/proc/self/status", "VmRSS") * 1024
donor = read_layers(model, 4)
read = counter("/proc/self/io", "rchar") - before[0]
del donor
extract_block(model, out, 4)
peak = counter("/proc/self/status", "VmHWM") * 1024 - before[1]
same = threads == (threading.active_count(), len(os.listdir("/proc/self/task")))
children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
print(json.dumps({"read": read, "peak": peak, "same threads": same, "children": children}))
"""


def big_checkpoint(folder, case, layers=10):
    """A model of ten layers of about 25 MB in shards that cut through layers, and what the fifth layer is made of."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    model_type, numbers = CASES[case]
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": layers, "num_attention_heads": 6}
    numbers = {**{k: v for k, v in numbers.items() if k not in ("head_dim", "num_key_value_heads")}, **sizes}
    if model_type == "gpt2":
        numbers = {**numbers, "n_embd": 768, "n_layer": layers, "n_head": 6}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**numbers))
    model.save_pretrained(folder, max_shard_size="35MB")
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    named = {n: t for n, t in model.state_dict().items() if ".4." in n and n in weight_map}
    norm = [n for n in weight_map if re.search(r"(norm|ln_f)\.(weight|bias)$", n) and not re.search(r"\.\d+\.", n)]
    needed = {weight_map[n] for n in (*named, *norm)}
    assert len({weight_map[n] for n in named}) > 1, "the layer straddles two shards"
    headers = sum(8 + int.from_bytes((folder / file).read_bytes()[:8], "little") for file in needed)
    return sum(t.numel() * t.element_size() for t in named.values()), headers


@pytest.mark.parametrize("case", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_bytes_read_and_memory(case, tmp_path, llama_folder):
    if not Path("/proc/self/io").exists():
        pytest.skip("this system does not tell what a process reads")
    size, headers = big_checkpoint(tmp_path / "big", case)
    small = (tmp_path / "big" / "config.json", tmp_path / "big" / "model.safetensors.index.json")
    headers += sum(file.stat().st_size for file in small)
    command = [sys.executable, "-c", MEASURE, tmp_path / "big", tmp_path / "out.safetensors", llama_folder]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert size <= measured["read"] <= 1.01 * size + headers
    assert measured["peak"] <= 2 * size
    assert measured["same threads"]
    assert measured["children"] == []


def test_the_hub_sends_only_the_layer(tmp_path):
    size, headers = big_checkpoint(tmp_path / "big", "llama")
    server = serve(tmp_path / "big")
    done = extract(server.server_port, tmp_path, "lab/tiny", "--layer", "4")
    stop(server)
    assert done.returncode == 0, done.stderr
    assert size <= server.sent <= 1.01 * size + headers
    small = {one.name for one in server.asked if not one.name.startswith("model-")}
    listing = {name for name in small if name.startswith("revision/")}  # which files there are
    assert small - listing == {"config.json", "model.safetensors.index.json", "README.md"}
