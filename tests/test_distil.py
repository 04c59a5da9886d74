# SPDX-License-Identifier: Apache-2.0
"""The command distil, as its users run it: a boosted teacher, a student without it, resume, wrong input."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, SMALL, interrupted_after
from typer.testing import CliRunner

from monai_llmboost.bundle import copy_bundle, run_bundle
from monai_llmboost.command_line.app import app
from monai_llmboost.engines import TrainingCheckpoints
from monai_llmboost.inference import load_network

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
    pytest.mark.filterwarnings("ignore:(parsing|executing).*config:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
CASES = "monai_llmboost.data.datasets.phantoms.PHANTOM_CASES"
FEW = {"train": 24, "val": 12, "test": 12}
TEACHER = {**{key: value for key, value in SMALL.items() if key != "batch_size"}, "size": 10, "patch_size": 5}
STUDENT = ["--student", "resnet", "--size", 10, "--stem_stride", 1, "--hidden_size", 8, "--batch_size", 12]
METHODS = ("rd", "logit", "feature", "drd")


@pytest.fixture(autouse=True)
def few_cases(monkeypatch):
    monkeypatch.setattr(CASES, FEW)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a boosted network, trained for an epoch."""
    folder = tmp_path_factory.mktemp("teacher") / "the teacher"
    copy_bundle(BUNDLE, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CASES, FEW)
        run_bundle(str(folder), "train", "pretrained", False, epochs=1, batch_size=12, **TEACHER)
    return folder


def command(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def distil(folder, *words, epochs=2):
    if not folder.exists():
        copy_bundle(BUNDLE, folder)
    code, output = command("distil", "--bundle", folder, *STUDENT, "--epochs", epochs, *words)
    assert code == 0, output
    return torch.load(folder / "models" / "model.pt", weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", METHODS)
def test_a_student_is_used_without_its_teacher(teacher, method, tmp_path):
    gone = tmp_path / "gone"
    shutil.copytree(teacher, gone)
    weights = distil(tmp_path / "mine", "--teacher", gone, "--method", method)
    shutil.rmtree(gone)
    for file in (tmp_path / "mine" / "models").glob("teacher-*"):
        file.unlink()
    assert not any("booster" in name or "block" in name for name in weights)
    record = json.loads((tmp_path / "mine" / "models" / "model.json").read_text())
    assert record["_trained_"]["block"] is None
    code, output = command("evaluate", "--bundle", tmp_path / "mine")
    assert code == 0, output
    assert json.loads((tmp_path / "mine" / "eval" / "metrics.json").read_text())["cases"] == FEW["test"]
    network = load_network(tmp_path / "mine")
    assert network.network(torch.rand(2, 1, 10, 10, 10)).shape == (2, 2)
    scans = tmp_path / "scans"
    scans.mkdir()
    voxels = np.random.default_rng(0).integers(0, 256, (9, 8, 10), dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), scans / "scan.nii.gz")
    words = ("--bundle", tmp_path / "mine", "--input", scans, "--output", tmp_path / "out", "--no-report")
    code, output = command("predict", *words)
    assert code == 0, output
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["refused"] == ""


def test_the_method_and_the_teacher_count(teacher, tmp_path):
    """A student starts with the same weights with any teacher, and ends with others."""
    alone = tmp_path / "alone"
    copy_bundle(BUNDLE, alone)
    given = dict(zip(("size", "stem_stride", "hidden_size", "batch_size"), (10, 1, 8, 12)))
    run_bundle(str(alone), "train", "none", False, epochs=2, network="resnet", **given)
    scratch = tmp_path / "scratch"
    copy_bundle(BUNDLE, scratch)
    run_bundle(str(scratch), "train", "scratch", False, ["distil"], epochs=2, network="resnet", **given)
    states = [torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (alone, scratch)]
    assert same(*states)
    states = [states[0], *(distil(tmp_path / method, "--teacher", teacher, "--method", method) for method in METHODS)]
    states.append(distil(tmp_path / "seen", "--teacher", teacher, "--method", "logit", "--teacher_sees", "augmented"))
    states.append(distil(tmp_path / "two", "--teacher", teacher, "--teacher", teacher / "models", "--method", "logit"))
    weights = [state["head.weight"] for state in states]
    for number, one in enumerate(weights[:-1]):
        assert not any(torch.equal(one, other) for other in weights[number + 1 : -1])
    torch.testing.assert_close(weights[-1], weights[METHODS.index("logit") + 1])  # a teacher twice is that teacher


def test_the_features_of_an_ensemble(teacher, tmp_path):
    """They are concatenated, or averaged: for a teacher twice, as wide a head and the same weights as for one."""
    twice = ("--teacher", teacher, "--teacher", teacher / "models", "--method", "feature")
    one = distil(tmp_path / "one", *twice[:2], *twice[4:], epochs=1)
    mean = distil(tmp_path / "mean", *twice, "--ensemble", "mean", epochs=1)
    wide = distil(tmp_path / "wide", *twice, epochs=1)
    assert same(wide, distil(tmp_path / "said", *twice, "--ensemble", "concatenate", epochs=1))
    assert same(one, mean) and not same(one, wide)
    with pytest.raises(ValueError, match="was begun with ensemble 'mean', this one has 'concatenate'"):
        distil(tmp_path / "mean", *twice, "--resume", "True", epochs=1)


@pytest.mark.parametrize("method", ["rd", "logit", "drd"])
def test_an_interrupted_distillation_ends_in_the_same_weights(teacher, method, tmp_path, monkeypatch):
    words = ("--teacher", teacher, "--method", method)
    whole = distil(tmp_path / "whole", *words, epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingCheckpoints, "epoch_completed", interrupted_after(2))
        copy_bundle(BUNDLE, tmp_path / "cut")
        code, output = command("distil", "--bundle", tmp_path / "cut", *STUDENT, "--epochs", 3, *words)
    assert code == 130
    assert f"distil --bundle {tmp_path / 'cut'}" in output.replace("'", "") and "--resume True" in output
    assert same(whole, distil(tmp_path / "cut", *words, "--resume", "True", epochs=3))


def test_another_teacher_does_not_resume(teacher, tmp_path):
    distil(tmp_path / "mine", "--teacher", teacher, epochs=1)
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    run_bundle(str(other), "train", "pretrained", False, epochs=1, batch_size=6, **TEACHER)
    with pytest.raises(ValueError, match=r"was begun with teacher '\w{16}', this one has"):
        distil(tmp_path / "mine", "--teacher", other, "--resume", "True", epochs=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher", "nowhere"], "there is no teacher at nowhere: give --teacher the folder of a training"),
        (["--teacher", "empty"], "empty"),
        (["--teacher", "TEACHER", "--method", "best"], "unknown arm 'best'; choose from booster, drd, feature, logit"),
        (["--teacher", "TEACHER", "--size", 12], "does not take the volumes of the student"),
        (["--teacher", "TEACHER", "--distil_weight", 0], "distil_weight must be a number above 0, not 0"),
        (["--teacher", "TEACHER", "--method", "logit", "--temperature", -1], "temperature must be a number above 0"),
        (["--teacher", "TEACHER", "--method", "rd", "--temperature", 2], "--temperature has no effect: nothing in"),
        (["--teacher", "TEACHER", "--method", "rd", "--batch_size", 3], "3 samples are too few for the unbiased CKA"),
        (["--teacher", "TEACHER", "--teacher_sees", "all"], "unknown teacher_sees 'all'; choose from plain, augmented"),
        (["--teacher", "TEACHER", "--ensemble", "mean"], "--ensemble is for several teachers: leave it out, or give"),
        (["--teacher", "TEACHER", "--teacher", "TEACHER", "--ensemble", "sum"], "unknown ensemble 'sum'; choose from"),
        (
            ["--teacher", "TEACHER", "--teacher", "TEACHER", "--ensemble", "mean", "--method", "logit"],
            "--ensemble has no effect: nothing in train with the arm logit and the network resnet uses it",
        ),
        (["--teacher", "TEACHER", "--folds", 3], "give the --folds, --fold and --seed of the training"),
        (["--teacher", "TEACHER", "--student", "resnext"], "unknown network 'resnext'; choose from resnet"),
    ],
)
def test_wrong_input(teacher, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    copy_bundle(BUNDLE, tmp_path / "mine")
    words = [teacher if word == "TEACHER" else word for word in words]
    result = CliRunner().invoke(app, [*map(str, ["distil", "--bundle", "mine", *STUDENT, "--epochs", 1, *words])])
    text = f"{result.exception} {result.output}"
    assert result.exit_code != 0
    assert message in " ".join(text.split()), text
    assert not (tmp_path / "mine" / "models" / "model.pt").exists()


def test_a_bundle_of_an_earlier_version(teacher, tmp_path):
    copy_bundle(BUNDLE, tmp_path / "old")
    file = tmp_path / "old" / "configs" / "train.json"
    config = json.loads(file.read_text())
    del config["train"]["unaugmented"]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"old has no train#unaugmented, .*: take a copy of a bundle of this version"):
        command("distil", "--bundle", tmp_path / "old", "--teacher", teacher)


STAGES = ("--method", "drd", "--teacher_stages", "drop,layers.0", "--student_stages")


def test_stages_by_name(teacher, tmp_path):
    """A resume needs the same ones."""
    words = ("--teacher", teacher, *STAGES[:4], "--student_stages", "features.layer1,features.layer2")
    one = distil(tmp_path / "one", *words, epochs=1)
    assert not same(one, distil(tmp_path / "deepest", "--teacher", teacher, "--method", "drd", epochs=1))
    for changed in (("features.layer1,features.layer3",), ("features.layer1,features.layer2", "--hybrid_weight", 2)):
        with pytest.raises(ValueError, match=r"was begun with (student_stages|hybrid_weight) .*, this one has"):
            distil(tmp_path / "one", *words[:-1], *changed, "--resume", "True", epochs=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [*STAGES, "features.layer1"],
            "the student has 1 stages, features.layer1, and the teacher 2, drop, layers.0",
        ),
        (
            [*STAGES, "features.layer1,features.layr2"],
            "ResNet3D has no stage 'features.layr2': did you mean 'features.layer2'",
        ),
        (
            [*STAGES, "features.layer1,features.layer1"],
            "the stages features.layer1, features.layer1 of ResNet3D: name each",
        ),
        (["--method", "drd", "--teacher_stages", "layer1"], "ViT3D has no stage 'layer1': did you mean 'layers'"),
        (["--teacher_stages", "layers.0"], "--teacher_stages has no effect: nothing in train with the arm logit"),
        (["--method", "drd", "--hybrid_weight", -1], "hybrid_weight must be a number from 0, not -1"),
    ],
)
def test_wrong_stages(teacher, words, message, tmp_path):
    copy_bundle(BUNDLE, tmp_path / "mine")
    try:
        code, output = command("distil", "--bundle", tmp_path / "mine", *STUDENT, "--teacher", teacher, *words)
    except (ValueError, OSError) as error:
        code, output = 2, str(error)
    assert code == 2
    assert message in output


def test_a_teacher_of_other_classes(teacher, tmp_path):
    changed = tmp_path / "teacher"
    shutil.copytree(teacher, changed)
    file = changed / "models" / "model.json"
    record = json.loads(file.read_text())
    state = torch.load(changed / "models" / "model.pt", weights_only=True)
    from monai_llmboost.networks.class_names import ClassNames

    names = record["class_names"]
    for own, advice in ((names[::-1], "in another order"), (["one", "two"], "train the teacher for the classes")):
        state["class_names.code"] = ClassNames(2, own).state_dict()["code"]
        torch.save(state, changed / "models" / "model.pt")
        file.unlink(missing_ok=True)
        copy_bundle(BUNDLE, tmp_path / own[0])
        with pytest.raises(ValueError, match=advice):
            run_bundle(
                str(tmp_path / own[0]), "train", "rd", False, ["distil"], network="resnet", size=10, stem_stride=1,
                hidden_size=8, teacher=str(with_record(changed, record)),
            )  # fmt: skip


def with_record(folder, record):
    """Write the record of a folder again, for the weights that are there."""
    from monai_llmboost.artifacts.digests import file_digest

    record["_trained_"]["weights_sha256"] = file_digest(folder / "models" / "model.pt")
    (folder / "models" / "model.json").write_text(json.dumps(record))
    return folder
