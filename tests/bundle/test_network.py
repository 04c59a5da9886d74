# SPDX-License-Identifier: Apache-2.0
"""Another network of a bundle is an overlay that --network names, in every job and command."""

import json
import sys

import pytest
import torch
from conftest import BUNDLE
from processes import run_two
from typer.testing import CliRunner

from monai_llmboost.bundle import bundle_path, copy_bundle, job_configs, merged, monai_arguments, split_network
from monai_llmboost.bundle.find import networks_of
from monai_llmboost.bundle.run import check_job_effect
from monai_llmboost.command_line.app import app
from monai_llmboost.engines import SharedStatistics
from monai_llmboost.studies import Plan

FOLDER = bundle_path(BUNDLE)
COMPILED = "$torch.compile(@network_def.to(@device))"
TINY = {"network": "resnet", "size": 17, "stem_stride": 2, "hidden_size": 8}
bundle_warnings = pytest.mark.filterwarnings(
    "ignore:parsing config_file:UserWarning", "ignore::FutureWarning:monai", "ignore::DeprecationWarning:monai"
)


def names(configs):
    return [str(file).rpartition("configs/")[2] for file in configs]


def plan_of(**changes):
    return Plan(**{"bundle": BUNDLE, "arms": ("none", "mlp"), "datasets": ("phantom",), "seeds": 1, **changes})


@pytest.mark.parametrize("job", ["train", "evaluate", "inference"])
def test_the_overlay_comes_before_the_arms_in_every_job(job):
    first, *rest = names(job_configs(FOLDER, job))
    assert names(job_configs(FOLDER, job, "mlp", "resnet")) == [first, "networks/resnet.json", "arms/mlp.json", *rest]
    arguments = monai_arguments(BUNDLE, job, "mlp", **TINY)
    assert names(arguments["config_file"]) == [first, "networks/resnet.json", "arms/mlp.json", *rest]
    assert "network" not in arguments, "the bundle's own key stays as it is"


def test_an_expression_is_the_bundles_key():
    for value in (COMPILED, "@network_def", "%network_def", {"_target_": "torch.nn.Identity"}, None):
        assert split_network(FOLDER, {"network": value, "size": 9}) == (None, {"network": value, "size": 9})
    assert monai_arguments(BUNDLE, "train", network=COMPILED)["network"] == COMPILED
    assert split_network(FOLDER, {"network": "resnet", "size": 9}) == ("resnet", {"size": 9})


WRONG = [
    "resnett", "ResNet", "resnet.json", "networks/resnet", "../arms/none", "vit3d", "torch.compile(x)", " resnet", "",
    3, ["resnet"],
]  # fmt: skip


@pytest.mark.parametrize("value", WRONG)
def test_a_network_that_the_bundle_does_not_have(value):
    with pytest.raises(ValueError, match=r"unknown network .*; choose from resnet, leave it out .*or give an expre"):
        monai_arguments(BUNDLE, "train", network=value)
    with pytest.raises(ValueError, match="unknown network"):
        plan_of(network=value)


def test_a_network_of_ones_own_is_found(tmp_path):
    copy_bundle(BUNDLE, tmp_path / "mine")
    networks = tmp_path / "mine" / "configs" / "networks"
    (networks / "wide.json").write_text(json.dumps({"hidden_size": 256}))
    assert networks_of(tmp_path / "mine") == ["resnet", "wide"]
    assert merged(job_configs(tmp_path / "mine", "train", network="wide"))["hidden_size"] == 256
    for file in networks.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="unknown network 'resnet'; the bundle has no other network in configs/netw"):
        monai_arguments(tmp_path / "mine", "train", network="resnet")


@pytest.mark.parametrize("key", ["num_heads", "patch_size", "stem_channels", "mlp_dim", "num_layers"])
def test_options_of_the_other_network_are_refused(key):
    with pytest.raises(ValueError, match=f"--{key} has no effect: nothing in train with .* the network resnet uses it"):
        check_job_effect(BUNDLE, "train", [None], {**TINY, key: 2})
    check_job_effect(
        BUNDLE, "train", [None], {**TINY, "stem_stride": 1, "num_blocks": 2, "network_def#dropout_rate": 0}
    )
    with pytest.raises(ValueError, match="has no option --num_blocks here; it is an option of --network resnet"):
        monai_arguments(BUNDLE, "train", num_blocks=2)


@bundle_warnings
def test_it_is_trained_evaluated_and_predicts(run_job, trained_scans, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 41, "val": 20, "test": 20})
    options = {
        "network": "resnet",
        "size": 17,
        "stem_stride": 2,
        "mlp_dim": None,
        "num_layers": None,
        "num_heads": None,
    }
    run_job("train", epochs=1, **{**options, "batch_size": 20})  # the last batch is of one case
    run_job("evaluate", **options)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["position"] == "head"
    run_job("inference", dataset_dir=str(trained_scans), output_dir=str(tmp_path / "out"), **options)
    assert "shell" in (tmp_path / "out" / "predictions.csv").read_text()
    (tmp_path / "run" / "model.json").unlink()  # a folder of an earlier version
    with pytest.raises(Exception, match=r"the network 'ResNet3D, .*', but .*'ViT3D, .*such as --network resnet for"):
        run_job("evaluate", size=17, patch_size=17)


@pytest.fixture
def trained_scans(tmp_path):
    import nibabel
    import numpy as np

    (tmp_path / "scans").mkdir()
    image = nibabel.Nifti1Image(np.full((17, 17, 17), 100, dtype=np.uint8), np.eye(4))
    nibabel.save(image, tmp_path / "scans" / "a.nii.gz")
    return tmp_path / "scans"


def test_a_study_has_a_network():
    plan = plan_of(network="resnet", preset="strong", options={"hidden_size": 8})
    overlays = ["networks/resnet.json", "arms/mlp.json"]
    preset = ["strong/resnet/training.json"]
    assert names(plan.configs("mlp")) == ["train.json", *overlays, *preset]
    assert names(plan.configs("mlp", "evaluate")) == ["train.json", *overlays, "evaluate.json"]
    assert plan.weights == "last"
    run = next(iter(plan.runs("phantom", {"mlp": None})))
    assert names(plan.arguments(run, "train", FOLDER)["config_file"]) == ["train.json", *overlays, *preset]
    assert plan.as_dict()["network"] == "resnet"
    assert plan_of().as_dict()["network"] is None, "as plans of earlier studies, which have no such key"
    for changes, message in (
        ({"preset": "rllm"}, "the preset rllm is for the bundle's own network, not for resnet: leave out --preset"),
        ({"options": {"network": COMPILED}}, "has --network resnet or a value of the key 'network', not both"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_of(network="resnet", **changes)
    with pytest.raises(ValueError, match=r"network must be the name of another network, not .*: give it in options"):
        plan_of(network=COMPILED)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "train"], ["cost"], ["predict", "-i", ".", "-o", "x"], ["study", "-o", "x"],
    ],
)  # fmt: skip
def test_every_command_knows_the_networks(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*words, "--network", "resnett"])
    assert "unknown network 'resnett'; choose from resnet" in done.output + str(done.exception)
    done = CliRunner().invoke(app, [*words, "--network", "resnet", "--size", "1.5"])
    assert "size must be a whole number" in done.output + str(done.exception)


def test_running_statistics_are_shared(tmp_path):
    network = torch.nn.Sequential(torch.nn.BatchNorm3d(3), torch.nn.LayerNorm(2))
    SharedStatistics(network).average()  # one process: nothing to do
    code = (
        "import os, torch, torch.distributed as dist\n"
        "from monai_llmboost.engines import SharedStatistics\n"
        "dist.init_process_group('gloo')\n"
        "network = torch.nn.Sequential(torch.nn.BatchNorm3d(3), torch.nn.BatchNorm3d(2, track_running_stats=False))\n"
        "network[0].running_mean += dist.get_rank() + torch.arange(3)\n"
        "SharedStatistics(network).average()\n"
        "assert torch.equal(network[0].running_mean, 0.5 + torch.arange(3)), network[0].running_mean\n"
        "assert torch.equal(network[0].running_var, torch.ones(3))\n"
        "dist.destroy_process_group()\n"
    )
    (tmp_path / "a.py").write_text(code)
    for done in run_two([sys.executable, tmp_path / "a.py"]):
        assert done.returncode == 0, done.stderr
