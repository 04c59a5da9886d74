# SPDX-License-Identifier: Apache-2.0
"""What several tests need: small models, real data where they are present, one job of the bundle at small size."""

import json
import os

# By default tests compute in float32 on every processor, also on those that have bfloat16; jobs inherit this.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")

from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from monai_llmboost.bundle import copy_bundle, run_bundle
from monai_llmboost.data.datasets import named, phantoms
from monai_llmboost.engines.evaluation import cases as evaluated_cases
from monai_llmboost.llm import BlockGeometry
from monai_llmboost.tasks import bootstrap_draws

# Thousands of operations on tiny tensors: more threads only wait for one another.
torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
# For jobs of two processes: where there are not as many GPUs, they run on the CPU.
TWO_PROCESSES = {} if torch.cuda.device_count() > 1 else {"CUDA_VISIBLE_DEVICES": ""}
# Differences of one case's probabilities in batches of other sizes: in float32, or, on a GPU, in bfloat16.
PRECISION = 1e-2 if torch.cuda.is_available() else 2e-6
BUNDLE = "medmnist3d_rllm_classification"
# Configs of this bundle as version 0.1.0 had them, whose users may have copied them.
EARLIER = ROOT / "tests" / "bundle" / "earlier"
# A network and a schedule that train in a second or two; the shapes of the data stay real.
SMALL = {"hidden_size": 16, "mlp_dim": 16, "num_layers": 1, "num_heads": 2, "batch_size": 120}


@pytest.fixture(scope="session", autouse=True)
def quick_jobs():
    """Draw each set of phantoms once, not for each job, and intervals over the cases from fewer samples."""
    drawn = lru_cache(maxsize=8)(phantoms.phantom_arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            named,
            "phantom_arrays",
            lambda split, size: [array.copy() for array in drawn(split, size, phantoms.PHANTOM_CASES[split])],
        )
        patch.setattr(evaluated_cases, "bootstrap_draws", partial(bootstrap_draws, resamples=40))
        yield


@pytest.fixture
def geometry():
    """Grouped heads whose total is not the width, so that no two numbers can be mistaken for one another."""
    return BlockGeometry(width=24, mlp_width=40, num_heads=4, num_kv_heads=2, head_size=8, norm_eps=1e-5)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real data, or a skip with its reason."""
    folder = Path(os.environ.get("MONAI_LLMBOOST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set MONAI_LLMBOOST_DATA to run this test")
    return folder


def llama_config(geometry, num_layers=3, **changes):
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": geometry.width,
        "intermediate_size": geometry.mlp_width,
        "num_attention_heads": geometry.num_heads,
        "num_key_value_heads": geometry.num_kv_heads,
        "head_dim": geometry.head_size,
        "num_hidden_layers": num_layers,
        "rms_norm_eps": geometry.norm_eps,
        "hidden_act": "silu",
        "vocab_size": 32,
        **changes,
    }


@pytest.fixture
def llama(geometry):
    """A small LLaMA of `transformers` with random weights and gains that are not one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**llama_config(geometry))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return model


@pytest.fixture
def llama_folder(llama, tmp_path):
    """The small LLaMA as a Hugging Face folder of several shards, written by `transformers` itself."""
    folder = tmp_path / "tiny-llama"
    llama.save_pretrained(folder, max_shard_size="9KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="session")
def tiny_llm_folder(real_data, tmp_path_factory):
    """The really pre-trained block of the real data as a Hugging Face folder."""
    import numpy as np

    source = real_data / "llm" / "tiny-llm-block"
    config = json.loads((source / "config.json").read_text())
    width, mlp = config["hidden_size"], config["intermediate_size"]
    kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (mlp, width),
        "mlp.up_proj": (mlp, width),
        "mlp.down_proj": (width, mlp),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    files = {"input_layernorm": "norm1", "post_attention_layernorm": "norm2"}
    tensors = {}
    for name, shape in shapes.items():
        raw = np.fromfile(source / f"{files.get(name, name.rpartition('.')[2])}.bin", "<f4")
        tensors[f"model.layers.0.{name}.weight"] = torch.from_numpy(raw.reshape(shape))
    folder = tmp_path_factory.mktemp("real") / "tiny-llm"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def stories_folder(real_data, tmp_path_factory):
    """The really pre-trained small LLaMA 2 of the real data (a llama2.c file) in Meta's own form."""
    import numpy as np

    source = real_data / "llm" / "stories260K" / "stories260K.bin"
    content = source.read_bytes()
    dim, mlp, layers, heads, kv_heads, vocabulary, _ = np.frombuffer(content, "<i4", 7)
    kv = dim // heads * kv_heads
    state, place = {}, 28 + 4 * dim * abs(vocabulary)  # behind header and embedding
    for name, shape in {
        "attention_norm": (dim,), "attention.wq": (dim, dim), "attention.wk": (kv, dim), "attention.wv": (kv, dim),
        "attention.wo": (dim, dim), "ffn_norm": (dim,), "feed_forward.w1": (mlp, dim), "feed_forward.w2": (dim, mlp),
        "feed_forward.w3": (mlp, dim),
    }.items():  # fmt: skip
        size = int(np.prod(shape)) * int(layers)
        every = np.frombuffer(content, "<f4", size, place).reshape(int(layers), *shape)
        state |= {f"layers.{i}.{name}.weight": torch.from_numpy(every[i].copy()) for i in range(int(layers))}
        place += 4 * size
    state["norm.weight"] = torch.from_numpy(np.frombuffer(content, "<f4", int(dim), place).copy())
    folder = tmp_path_factory.mktemp("meta") / "stories260K"
    folder.mkdir()
    torch.save(state, folder / "consolidated.00.pth")
    numbers = {"dim": dim, "n_layers": layers, "n_heads": heads, "n_kv_heads": kv_heads}
    (folder / "params.json").write_text(json.dumps({k: int(v) for k, v in numbers.items()} | {"norm_eps": 1e-5}))
    return folder


@pytest.fixture
def run_job(tmp_path):
    """One job of the bundle at small size, in this process, into a folder of this test."""

    def run(job, arm=None, **options):
        places = {"ckpt_dir": str(tmp_path / "run"), "output_dir": str(tmp_path / "run")}
        run_bundle(BUNDLE, job, arm, logging_file=False, **{**SMALL, **places, **options})
        return Path(options.get("output_dir", tmp_path / "run"))

    return run


def forget_training(folder):
    """Make a trained folder one of an earlier version, which does not describe itself: its options are given again."""
    (folder / "model.json").unlink()


@pytest.fixture(scope="session")
def trained_bundle(tmp_path_factory):
    """A copy of the bundle with a small plain network in it, with random weights: quick to ask, different per class."""
    from monai.bundle import ConfigParser

    folder = tmp_path_factory.mktemp("trained") / "bundle"
    copy_bundle(BUNDLE, folder)
    parser = ConfigParser()
    configs = folder / "configs"
    parser.read_config([str(configs / "inference.json"), str(configs / "arms" / "none.json")])
    parser.update({key: value for key, value in SMALL.items() if key != "batch_size"})
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    with torch.no_grad():
        network.head.weight.mul_(2)  # so that volumes differ in their probabilities
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def interrupted_after(epochs):
    """Return a handler like ``TrainingCheckpoints.epoch_completed``, with Ctrl-C after some epochs."""
    from monai_llmboost.engines import TrainingCheckpoints

    save = TrainingCheckpoints.epoch_completed

    def handler(self, engine):
        save(self, engine)
        if engine.state.epoch == epochs:
            raise KeyboardInterrupt

    return handler
