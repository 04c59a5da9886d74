# SPDX-License-Identifier: Apache-2.0
"""The cost of a network, counted and measured."""

import json

import pytest
import torch
from conftest import BUNDLE, SMALL
from torch import nn
from typer.testing import CliRunner

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.bundle import bundle_path, job_configs
from monai_llmboost.command_line.app import app
from monai_llmboost.llm import BlockGeometry, random_block, read_geometry
from monai_llmboost.networks import ViT3D
from monai_llmboost.studies import cost_of_arms, cost_table, costs
from monai_llmboost.studies.cost.arms import read_out
from monai_llmboost.studies.cost.measure import checkpoint_bytes, flops, memory_growth, numbers_of_weights, seconds

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning", "ignore::FutureWarning:monai")
CPU = torch.device("cpu")


def test_weights_are_counted_apart(geometry):
    booster = ResidualBooster(12, random_block(geometry), start="published")
    maps = 2 * 12 * geometry.width
    tensors = sum(torch.Size(shape).numel() for shape in geometry.tensor_shapes.values())
    assert numbers_of_weights(booster) == {"trained": maps, "frozen": tensors}
    booster.encode.requires_grad_(False)
    assert numbers_of_weights(booster) == {"trained": maps // 2, "frozen": tensors + maps // 2}
    assert 4 * maps < checkpoint_bytes(booster) < 4 * maps + 8000


def test_operations_of_a_linear_map():
    layer, x = nn.Linear(30, 50), torch.randn(7, 30)
    assert flops(lambda: layer(x)) == 2 * 7 * 30 * 50


def test_operations_of_attention():
    """On the CPU too, whose kernel torch itself did not always count."""
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    products = 2 * (2 * 3 * 5 * 7 * 8)  # of one of the two, scores and sums
    assert flops(lambda: nn.functional.scaled_dot_product_attention(q, k, v)) == 2 * products
    backwards = flops(lambda: nn.functional.scaled_dot_product_attention(q, k, v).sum().backward())
    assert backwards == 6 * products, "as counted without computing, on meta tensors"


def test_memory_growth_sees_what_a_step_holds():
    kept = []
    growth = memory_growth(lambda: kept.append(torch.ones(25_000_000)), CPU)
    if growth is None:
        pytest.skip("this system does not report the peak of a process's memory")
    assert 95e6 < growth < 150e6
    assert memory_growth(lambda: torch.ones(1), CPU) < 20e6


def test_seconds_run_the_sides_in_turn():
    order = []
    times = seconds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, CPU)
    assert order == ["a", "b"] * 4, "one round is not counted"
    assert [len(values) for values in times.values()] == [3, 3]


def test_costs_compare_with_the_first():
    networks = {"small": nn.Linear(64, 8), "large": nn.Sequential(nn.Linear(64, 4096), nn.Linear(4096, 8))}
    result = costs(networks, torch.randn(16, 64), rounds=3)
    assert result["small"]["forward_ratio"] == result["small"]["step_ratio"] == 1
    assert result["large"]["forward_flops"] == 2 * 4096 * (64 + 8)
    assert result["large"]["step_flops"] == 2 * 4096 * (2 * 64 + 3 * 8)
    assert result["large"]["forward_ratio"] > 1
    least, most = result["large"]["step_ratio_range"]
    assert least <= result["large"]["step_ratio"] <= most
    if result["large"]["step_memory_bytes"] is not None:
        assert result["large"]["step_memory_bytes"] > 4 * 4096 * (64 + 8), "the gradients among it"
    assert all(parameter.grad is None for network in networks.values() for parameter in network.parameters())


def test_costs_are_of_what_they_say(monkeypatch):
    """Forward passes in eval(), steps in train(), both under autocast where asked for; times are per volume."""
    seen = set()

    class Spy(nn.Linear):
        def forward(self, x):
            z = super().forward(x)
            seen.add((self.training, torch.is_grad_enabled(), z.dtype))
            return z

    monkeypatch.setattr("monai_llmboost.studies.cost.measure.seconds", lambda *_: {"spy": [8.0, 16.0, 4.0]})
    result = costs({"spy": Spy(64, 8)}, torch.randn(16, 64), rounds=3, amp=torch.bfloat16)["spy"]
    assert seen == {(False, False, torch.bfloat16), (True, True, torch.bfloat16)}
    assert result["forward_seconds"] == result["step_seconds"] == 0.5
    assert (result["trained"], result["frozen"], result["weight_bytes"]) == (64 * 8 + 8, 0, 4 * (64 * 8 + 8))


def test_the_table_shows_the_numbers():
    cost = {
        "trained": 2_000_000, "frozen": 7_000_000, "checkpoint_bytes": 3_000_000, "weight_bytes": 40_000_000,
        "forward_flops": 11e9, "step_flops": 33e9, "forward_seconds": 0.005, "step_seconds": 0.016,
        "forward_ratio": 1.25, "step_ratio": 1.5, "forward_ratio_range": [1.1, 1.4], "step_ratio_range": [1.2, 1.9],
        "step_memory_bytes": 100_000_000, "read_out": "each token for itself",
    }  # fmt: skip
    result = {"device": "a device", "amp": "torch.bfloat16", "batch_size": 4, "img_size": 28, "rounds": 3}
    table = cost_table({**result, "arms": {"one": cost}})
    shown = dict(zip(*(column.cells for column in table.columns)))
    assert shown == {
        "read out": "each token for itself",
        "trained weights": "2.00 M", "frozen weights": "7.00 M", "checkpoint": "3.0 MB",
        "training memory": "156 MB",  # 40 at rest, two moments of 2 M weights, 100 in the step
        "forward, GFLOP": "11", "step, GFLOP": "33", "forward, ms": "5", "step, ms": "16",
        "forward, ratio": "1.25 [1.10, 1.40]", "step, ratio": "1.50 [1.20, 1.90]",
    }  # fmt: skip
    assert table.title.endswith("batches of 4\na device, autocast to torch.bfloat16")


def test_the_read_out_of_any_network(geometry):
    x = torch.rand(2, 1, 8, 8, 8)
    assert read_out(nn.Flatten(), x) == "-"
    sizes = {"in_channels": 1, "num_classes": 2, "img_size": 8, "patch_size": 4, "hidden_size": 12, "num_heads": 2}
    booster = ResidualBooster(12, random_block(geometry), start="published")
    text = "all tokens are read: whole block; in inference F_E folded into queries, keys and values"
    assert read_out(ViT3D(**sizes, booster=booster, pool="mean"), x) == text
    assert read_out(ViT3D(**sizes, booster=booster), x) == booster.describe_readout(2, 9, 1)


def test_the_device_may_be_a_word():
    arms = {"none": job_configs(bundle_path(BUNDLE), "train", "none")}
    result = cost_of_arms(arms, {**SMALL, "batch_size": 2, "device": "cpu", "precision": "bfloat16"}, rounds=1)
    assert result["amp"] in ("torch.bfloat16", "torch.float16")
    assert cost_of_arms(arms, {**SMALL, "batch_size": 2, "device": "cpu"}, rounds=1)["amp"] is None


def test_arms_of_the_bundle():
    folder = bundle_path(BUNDLE)
    arms = {arm: job_configs(folder, "train", arm) for arm in ("none", "mlp", "random")}
    result = cost_of_arms(arms, {**SMALL, "batch_size": 4}, rounds=1)
    assert (result["batch_size"], result["img_size"], list(result["arms"])) == (4, 28, list(arms))
    none, mlp, random = result["arms"].values()
    assert none["frozen"] == mlp["frozen"] == 0 < random["frozen"]
    assert none["trained"] < mlp["trained"] == random["trained"]
    assert none["forward_flops"] < mlp["forward_flops"] < random["forward_flops"]
    json.dumps(result)
    with pytest.raises(ValueError, match="rounds must be a whole number from 1, not 0"):
        cost_of_arms(arms, SMALL, rounds=0)
    for wrong in (0, -4, 2.5, "abc"):
        with pytest.raises(ValueError, match=f"batch_size must be a whole number from 1, not {wrong!r}"):
            cost_of_arms(arms, {**SMALL, "batch_size": wrong})


def options(**more):
    return [word for key, value in {**SMALL, "batch_size": 2, **more}.items() for word in (f"--{key}", str(value))]


def test_the_verb(llama_folder, tmp_path):
    """A donor's config alone gives the cost of its block."""
    file = tmp_path / "cost.json"
    words = ["cost", "--rounds", "1", "--donor", str(llama_folder), "--json", str(file), *options()]
    done = CliRunner().invoke(app, words, catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert all(word in done.output for word in ("none", "mlp", "random", "GFLOP", "MB", "ms"))
    geometry = read_geometry(llama_folder / "config.json")
    tensors = sum(torch.Size(shape).numel() for shape in geometry.tensor_shapes.values())
    assert json.loads(file.read_text())["arms"]["random"]["frozen"] == tensors


def test_an_overlay(tmp_path):
    file = tmp_path / "cost.json"
    words = ["cost", "--rounds", "1", "--json", str(file), "--overlay", "published/network", "--batch_size", "1"]
    assert CliRunner().invoke(app, [*words, "--num_layers", "1"], catch_exceptions=False).exit_code == 0
    assert json.loads(file.read_text())["arms"]["none"]["trained"] > 3e6


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--hiden_size", "3"], ValueError, "did you mean --hidden_size"),
        (["--donor", "/nothing"], FileNotFoundError, "no config.json at /nothing"),
        (["--donor", "/nothing", "--block", "random"], ValueError, "--block and --donor exclude one another"),
        (["--overlay", "published/nothing"], FileNotFoundError, "the bundle has no such overlay, there is nothing at"),
        (["--block", "/nothing"], FileNotFoundError, "no block file at /nothing: give --block FILE"),
        (["--bundle", "nothing"], FileNotFoundError, "there is no bundle 'nothing'"),
        (["--patch_size", "5"], ValueError, "is no multiple of patch_size"),
    ],
)
def test_a_mistake_is_one_sentence(words, error, message):
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, ["cost", *words], catch_exceptions=False)


def test_a_geometry_stands_in_for_a_block(geometry):
    from monai_llmboost.boosters import mlp_booster
    from monai_llmboost.llm import frozen_block

    assert frozen_block(geometry).width == mlp_booster(4, geometry, start="published").width == geometry.width
    assert isinstance(geometry, BlockGeometry)
