# SPDX-License-Identifier: Apache-2.0
"""Distillation of a segmentation: a boosted U-Net teaches a smaller one on patches."""

import json
import shutil

import nibabel
import pytest
import torch
from conftest import interrupted_after
from segmentation_phantoms import write_list
from typer.testing import CliRunner

from monai_llmboost.command_line.app import app
from monai_llmboost.engines import TrainingCheckpoints

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
    pytest.mark.filterwarnings("ignore:(parsing|executing).*config:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
COMMON = ("--image_shape", "[1, 16, 16, 16]", "--device", "$torch.device('cpu')", "--structures", "{1: left, 4: right}")


def command(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_list(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def teacher(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "the teacher"
    words = ("--bundle", folder, "--data", scans, "--epochs", 1, "--filters", 4, *COMMON)
    code, output = command("train", *words, "--arm", "pretrained")
    assert code == 0, output
    return folder


def distil(folder, scans, teacher, *words, epochs=2, code=0):
    given = ("--bundle", folder, "--data", scans, "--teacher", teacher, "--epochs", epochs, "--filters", 2, *COMMON)
    found, output = command("distil", *given, *words)
    assert found == code, output
    return torch.load(folder / "models" / "model.pt", weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_each_method_trains_another_student(scans, teacher, tmp_path):
    weights = [
        distil(tmp_path / method, scans, teacher, "--method", method)["output_block.conv.conv.weight"]
        for method in ("drd", "rd", "logit", "feature")
    ]
    for number, one in enumerate(weights):
        assert not any(torch.equal(one, other) for other in weights[:number])


def test_a_student_is_used_without_its_teacher(scans, teacher, tmp_path):
    gone = tmp_path / "gone"
    shutil.copytree(teacher, gone)
    weights = distil(tmp_path / "mine", scans, gone, "--method", "drd")
    shutil.rmtree(gone)
    assert not any("booster" in name or "frozen" in name for name in weights)
    code, output = command("evaluate", "--bundle", tmp_path / "mine", "--device", "$torch.device('cpu')")
    assert code == 0, output
    assert json.loads((tmp_path / "mine" / "eval" / "metrics.json").read_text())["cases"] == 4
    words = ("--input", scans.parent / "scan0.nii.gz", "--output", tmp_path / "out", "--no-report")
    code, output = command("predict", "--bundle", tmp_path / "mine", *words)
    assert code == 0, output
    (mask,) = (tmp_path / "out" / "masks").glob("*.nii.gz")
    assert nibabel.load(mask).shape == nibabel.load(scans.parent / "scan0.nii.gz").shape


def test_an_interrupted_distillation_ends_in_the_same_weights(scans, teacher, tmp_path, monkeypatch):
    words = (scans, teacher, "--method", "drd")
    whole = distil(tmp_path / "whole", *words, epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingCheckpoints, "epoch_completed", interrupted_after(2))
        distil(tmp_path / "cut", *words, epochs=3, code=130)
    assert same(whole, distil(tmp_path / "cut", *words, "--resume", "True", epochs=3))


def test_wrong_input(scans, teacher, tmp_path):
    copy = ("--bundle", tmp_path / "mine", "--data", scans, "--epochs", 1, "--filters", 2, "--teacher", teacher)
    named = ("--structures", "{1: right, 4: left}")
    for words, message in (
        ((*COMMON, "--teacher_sees", "plain"), "which a training on patches has not: choose teacher_sees augmented"),
        (
            (*COMMON[:4], *named),
            "tells background, left, right apart, and the student background, right, left in another",
        ),
        (
            (*COMMON, "--method", "drd", "--student_stages", "input_block,downsamples.0,bottlneck"),
            "DynUNet has no stage 'bottlneck': did you mean",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            command("distil", *copy, *words)
        shutil.rmtree(tmp_path / "mine")
