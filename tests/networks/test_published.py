# SPDX-License-Identifier: Apache-2.0
"""Golden tensors made with the published R-LLM code: the same checkpoint gives the same output and gradient."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from monai_llmboost.networks import from_published

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "rllm").glob("*.safetensors"))
TOLERANCE = 1e-5  # relative, float32


def read(file):
    with safe_open(file, framework="pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (safe_open is no dict)
        config = json.loads(content.metadata()["config"])
    weights = {name.removeprefix("weight."): value for name, value in tensors.items() if name.startswith("weight.")}
    return config, weights, tensors


def relative(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


def test_all_are_there():
    assert len(GOLDEN) == 16


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_output_and_gradient(file):
    config, weights, tensors = read(file)
    network = from_published(weights, **config)
    output = network(tensors["input"])
    assert relative(output.detach(), tensors["output"]) < TOLERANCE
    output.square().sum().backward()
    assert relative(network.booster.encode.weight.grad, tensors["grad.llama_dim_mapper1.weight"]) < TOLERANCE
    assert not any("llama" in name for name in network.state_dict())


def test_a_file_is_checked_before_it_is_used(tmp_path):
    config, weights, tensors = read(GOLDEN[0])
    file = tmp_path / "best.pth"
    torch.save(weights, file)
    network = from_published(file, **config)
    assert relative(network(tensors["input"]).detach(), tensors["output"]) < TOLERANCE
    content = bytearray(file.read_bytes())
    content[content.find(weights["mlp_head.0.weight"].numpy().tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"cannot read .*best\.pth: it is damaged, its checksum of data/\d+ does not match"
    ):
        from_published(file, **config)


def test_a_single_head_as_wide_as_the_tokens_has_no_output_map_in_the_published_code():
    config, weights, tensors = read(GOLDEN[0])
    width = 24
    alone = {name: value for name, value in weights.items() if ".to_out." not in name}
    for name in alone:
        if "to_qkv" in name:
            alone[name] = torch.randn(3 * width, width)
    network = from_published(alone, **{**config, "heads": 1, "dim_head": width})
    x = torch.randn(2, 5, width)
    layer = network.layers[0].attention
    q, k, v = layer.qkv(x).chunk(3, -1)
    expected = (q @ k.transpose(1, 2) * width**-0.5).softmax(-1) @ v
    torch.testing.assert_close(layer(x), expected)
    assert torch.isfinite(network(tensors["input"])).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "llm_new"}, "unknown mode 'llm_new'; choose from llm_in, .*"),
        ({"kind": "vit2d"}, "give kind 'vit3d' with depth"),
        ({"depth": None}, "give kind 'vit3d' with depth"),
        ({"llm_dim": 64}, "llm_dim 64 is not the width of the checkpoint's block: give llm_dim=32"),
        ({"num_classes": 5}, "does not fit these sizes"),
        ({"depth": 3}, "does not fit these sizes"),
    ],
)
def test_what_does_not_fit(change, message):
    config, weights, _ = read(next(file for file in GOLDEN if file.stem == "vit3d-cls-llm_in"))
    with pytest.raises(ValueError, match=message):
        from_published(weights, **{**config, **change})


def test_incomplete_checkpoint():
    config, weights, _ = read(next(file for file in GOLDEN if file.stem == "vit3d-cls-llm_in"))
    with pytest.raises(ValueError, match=r"llama\.layers\.0\.attention\.wq\.weight.* it is incomplete"):
        from_published({k: v for k, v in weights.items() if "wq" not in k}, **config)
    with pytest.raises(ValueError, match="the checkpoint holds 0 LLaMA layers"):
        from_published({k: v for k, v in weights.items() if "llama.layers" not in k}, **config)
