# SPDX-License-Identifier: Apache-2.0
"""The command distil with a booster in training only: the plain student, resume, wrong input, label maps."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, interrupted_after
from segmentation_phantoms import write_list
from test_distil import STUDENT, command, distil, few_cases, same  # noqa: F401  (a fixture)
from test_distil import pytestmark as marks

from monai_llmboost.bundle import copy_bundle, run_bundle
from monai_llmboost.bundle.content import read_config
from monai_llmboost.engines import TrainingCheckpoints
from monai_llmboost.inference import load_network
from monai_llmboost.llm.paths import EMBEDDED
from monai_llmboost.studies import Plan

pytestmark = marks
METHOD = ("--method", "booster")
# As the command gives them to the bundle.
GIVEN = {"network": "resnet", "size": 10, "stem_stride": 1, "hidden_size": 8, "batch_size": 12, "epochs": 2}


@pytest.fixture
def block(tmp_path):
    return shutil.copy(EMBEDDED, tmp_path / "block.safetensors")


def test_the_student_is_a_plain_network(block, tmp_path):
    mine = tmp_path / "mine"
    weights = distil(mine, *METHOD, "--block", block, "--position", "last")
    block.unlink()
    alone = tmp_path / "alone"
    copy_bundle(BUNDLE, alone)
    run_bundle(str(alone), "train", "none", False, position="last", **GIVEN)
    plain = torch.load(alone / "models" / "model.pt", weights_only=True)
    assert weights.keys() == plain.keys()
    assert not same(weights, plain)
    record, own = (read_config(folder / "models" / "model.json") for folder in (mine, alone))
    assert record["_trained_"]["block"] is None
    assert "block" not in record
    assert {key: record[key] for key in record if key != "_trained_"} == {
        key: own[key] for key in own if key != "_trained_"
    }
    last = torch.load(mine / "models" / "last.pt", weights_only=True)
    assert last["head"]["booster.decode.weight"].any()
    # Its weights are those of the bundle's plain arm.
    shutil.copy(mine / "models" / "model.pt", alone / "models" / "model.pt")
    (alone / "models" / "model.json").unlink()
    run_bundle(str(alone), "evaluate", "none", False, position="last", **GIVEN)
    there = (alone / "eval" / "metrics.json").read_text()

    code, output = command("evaluate", "--bundle", mine)
    assert code == 0, output
    assert json.loads((mine / "eval" / "metrics.json").read_text())["auc"] == json.loads(there)["auc"]
    assert load_network(mine).network(torch.rand(2, 1, 10, 10, 10)).shape == (2, 2)
    scans = tmp_path / "scans"
    scans.mkdir()
    voxels = np.random.default_rng(0).integers(0, 256, (9, 8, 10), dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), scans / "scan.nii.gz")
    code, output = command("predict", "--bundle", mine, "--input", scans, "--output", tmp_path / "out", "--no-report")
    assert code == 0, output
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["refused"] == ""
    code, output = command("bundle", mine, "--trained", "--to", tmp_path / "shipped")
    assert code == 0, output
    assert read_config(tmp_path / "shipped" / "configs" / "inference.json")["booster"] is None
    assert same(load_network(tmp_path / "shipped").network.state_dict(), load_network(mine).network.state_dict())
    code, output = command("cost", "--bundle", mine, "--overlay", "distil", "--network", *STUDENT[1:], "--rounds", 1)
    assert code == 0, output


def test_what_the_booster_changes_is_its_own_change(tmp_path):
    """A student starts with the same weights as alone, and without a change of the booster learns the same."""
    still = (*METHOD, "--booster_dropout", 0, "--booster_lr_factor", 1e-30)
    assert same(distil(tmp_path / "still", *still), distil(tmp_path / "alone", "--method", "scratch"))
    kinds = [("--booster_dropout", 0), ("--booster_decay", "false"), ()]
    for number, kind in enumerate(kinds):
        distil(tmp_path / f"{number}", *METHOD, *kind)
    folders = [tmp_path / name for name in ("alone", "0", "1", "2")]
    ends = [torch.load(folder / "models" / "last.pt", weights_only=True)["model"]["head.weight"] for folder in folders]
    for number, one in enumerate(ends[:-1]):
        assert not any(torch.equal(one, other) for other in ends[number + 1 :])


def test_an_interrupted_training_ends_in_the_same_weights(block, tmp_path, monkeypatch):
    words = (*METHOD, "--block", block, "--booster_lr_factor", 1)
    whole = distil(tmp_path / "whole", *words, epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingCheckpoints, "epoch_completed", interrupted_after(2))
        copy_bundle(BUNDLE, tmp_path / "cut")
        code, _ = command("distil", "--bundle", tmp_path / "cut", *STUDENT, "--epochs", 3, *words)
    assert code == 130
    resume = ("--resume", "True")
    for changed, message in (
        (("--booster_dropout", 0.25), "was begun with booster_dropout 0.5, this one has 0.25"),
        (("--booster_decay", "false"), "was begun with booster_decay True, this one has False"),
        (("--block", "random"), r"was begun with booster_block '33d40899ebd40370', this one has '\w{16}'"),
        (("--at", "last"), "was begun with at None, this one has 'last'"),
    ):
        with pytest.raises(ValueError, match=message):
            distil(tmp_path / "cut", *words, *changed, *resume, epochs=3)
    block.rename(block.with_name("moved.safetensors"))
    moved = (*METHOD, "--block", block.with_name("moved.safetensors"), "--booster_lr_factor", 1)
    assert same(whole, distil(tmp_path / "cut", *moved, *resume, epochs=3))
    heads = [torch.load(tmp_path / name / "models" / "last.pt", weights_only=True)["head"] for name in ("whole", "cut")]
    assert same(*heads)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--booster_dropout", 1], "booster_dropout must be a number from 0 and below 1, not 1"),
        (["--booster_dropout", "often"], "booster_dropout must be a number, not 'often'"),
        (["--booster_decay", 2], "booster_decay"),
        (["--booster_dropout", 0, "--booster_decay", "false"], "a booster for good, and be used without"),
        (["--block", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--at", "top"], "unknown position of a ResNet3D 'top'"),
        (["--booster_in_training#start", "published"], "the booster changes tokens before it is trained"),
        (["--start", "published"], "--start has no effect"),
        (["--teacher", "elsewhere"], "the method booster has no teacher: leave out --teacher"),
        (["--distil_weight", 2], "--distil_weight has no effect"),
        (["--temperature", 2], "temperature"),
        (["--method", "scratch", "--teacher", "elsewhere"], "the method scratch has no teacher: leave out --teacher"),
        (["--method", "scratch", "--booster_dropout", 0.25], "--booster_dropout has no effect"),
        (["--method", "rd", "--booster_dropout", 0.5], "the method rd has a teacher: give --teacher the folder of"),
        (["--method", "rd", "--teacher", "x", "--booster_dropout", 0.25], "--booster_dropout has no effect"),
        (["--method", "logit"], "the method logit has a teacher: give --teacher"),
    ],
)
def test_wrong_input(words, message, tmp_path):
    mine = tmp_path / "mine"
    copy_bundle(BUNDLE, mine)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        command("distil", "--bundle", mine, *STUDENT, "--epochs", 1, *METHOD, *words)
    assert message in " ".join(str(raised.value).split())
    assert not (mine / "models" / "model.pt").exists()


def test_an_arm_of_a_study(block):
    named = {"options": {"teacher": "the teacher", "booster_dropout": 0.25}, "overlays": ("distil",)}
    arms = ("scratch", "logit", "booster", "booster@block")
    plan = Plan(BUNDLE, arms, ("phantom",), seeds=1, network="resnet", blocks={"block": str(block)}, **named)
    plan.check_effect()
    with pytest.raises(ValueError, match="--booster_dropout"):
        Plan(BUNDLE, arms[:2], ("phantom",), seeds=1, **named).check_effect()


def test_label_maps(block, tmp_path):
    mine = tmp_path / "mine"
    file = write_list(tmp_path / "scans")
    words = ("--filters", 4, "--image_shape", "[1, 16, 16, 16]", "--epochs", 2, "--device", "$torch.device('cpu')")
    code, output = command("distil", "--data", file, "--bundle", mine, *METHOD, "--block", block, *words)
    assert code == 0, output
    block.unlink()
    weights = torch.load(mine / "models" / "model.pt", weights_only=True)
    assert not any("booster" in name or "block." in name.replace("_block.", "") for name in weights)
    assert read_config(mine / "models" / "model.json")["_trained_"]["block"] is None
    assert torch.load(mine / "models" / "last.pt", weights_only=True)["head"]["booster.decode.weight"].any()
    code, output = command("evaluate", "--bundle", mine)
    assert code == 0, output
