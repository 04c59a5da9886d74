# SPDX-License-Identifier: Apache-2.0
"""The command cost with a teacher: next to a bundle's arms, to a trained student, as an ensemble; wrong input."""

import json
import shutil

import pytest
from conftest import BUNDLE, SMALL
from typer.testing import CliRunner

from monai_llmboost.bundle import copy_bundle, run_bundle
from monai_llmboost.command_line.app import app
from monai_llmboost.engines.trained_folder import OpenedFolder
from monai_llmboost.studies import Plan, cost_of_arms
from monai_llmboost.studies.cost.arms import cost_rows
from monai_llmboost.studies.cost.measure import numbers_of_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
    pytest.mark.filterwarnings("ignore:(parsing|executing).*config:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
FEW = {"train": 24, "val": 12, "test": 12}
SIZE = {"size": 10, "batch_size": 12}
TEACHER = {**SMALL, **SIZE, "patch_size": 5, "epochs": 1}
STUDENT = {"stem_stride": 1, "hidden_size": 8}
WORDS = [word for name, value in {"network": "resnet", **SIZE, **STUDENT}.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module", autouse=True)
def few_cases():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", FEW)
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a boosted network."""
    folder = tmp_path_factory.mktemp("teacher") / "the teacher"
    copy_bundle(BUNDLE, folder)
    run_bundle(str(folder), "train", "pretrained", False, **TEACHER)
    return folder


@pytest.fixture(scope="module")
def student(teacher):
    """The folder of a network that learned from it."""
    folder = teacher.parent / "the student"
    copy_bundle(BUNDLE, folder)
    given = {**SIZE, **STUDENT, "epochs": 1, "teacher": str(teacher)}
    run_bundle(str(folder), "train", "rd", False, ["distil"], network="resnet", **given)
    return folder


@pytest.fixture
def cost(tmp_path):
    """A function that returns what the command prints, and what it writes."""

    def run(*words):
        file = tmp_path / "cost.json"
        words = ["cost", "--rounds", 1, "--json", file, *words]
        done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False, env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        return done.output, json.loads(file.read_text())

    return run


def test_a_trained_student_next_to_its_teacher(cost, teacher, student):
    output, result = cost("--bundle", student, "--teacher", teacher)
    assert list(result["arms"]) == ["teacher", "student"]
    assert (result["img_size"], result["batch_size"]) == (10, 32), "the options of the training, except of its batches"
    for name, folder in (("teacher", teacher), ("student", student)):
        counts = numbers_of_weights(OpenedFolder.open(folder, "cpu").network)
        assert {key: result["arms"][name][key] for key in counts} == counts
    heavy, light = result["arms"].values()
    assert light["frozen"] == 0 < heavy["frozen"] and light["read_out"] == "-" != heavy["read_out"]
    assert heavy["forward_ratio"] == heavy["step_ratio"] == 1
    assert 0 < light["forward_flops"] < heavy["forward_flops"] and light["step_flops"] < heavy["step_flops"]
    rows = cost_rows(result["arms"])
    for row, size in (
        ("weights, ratio", lambda cost: cost["trained"] + cost["frozen"]),
        ("forward GFLOP, ratio", lambda cost: cost["forward_flops"]),
        ("step GFLOP, ratio", lambda cost: cost["step_flops"]),
    ):
        assert rows[row]["teacher"] == "1.00"
        assert float(rows[row]["student"]) == pytest.approx(size(light) / size(heavy), rel=0.06)
        assert row in output and rows[row]["student"] in output


def test_the_folder_of_the_weights_is_enough(cost, teacher, student):
    _, result = cost("--bundle", student / "models", "--teacher", teacher / "models", "--batch_size", 3)
    assert result["batch_size"] == 3
    _, whole = cost("--bundle", student, "--teacher", teacher, "--batch_size", 3)
    for kind in ("trained", "frozen", "forward_flops"):
        assert [arm[kind] for arm in result["arms"].values()] == [arm[kind] for arm in whole["arms"].values()]


def test_an_ensemble_is_the_sum(cost, teacher):
    _, one = cost(*WORDS, "--teacher", teacher)
    _, two = cost(*WORDS, "--teacher", teacher, "--teacher", teacher / "models")
    assert list(one["arms"]) == list(two["arms"]) == ["teacher", "none", "mlp", "pretrained"]
    for kind in ("trained", "frozen", "forward_flops", "step_flops", "weight_bytes"):
        assert two["arms"]["teacher"][kind] == 2 * one["arms"]["teacher"][kind]
    assert two["arms"]["teacher"]["read_out"] == one["arms"]["teacher"]["read_out"]


def test_arms_cost_the_same_next_to_a_teacher(cost, teacher):
    _, alone = cost(*WORDS)
    _, result = cost(*WORDS, "--teacher", teacher)
    assert list(result["arms"]) == ["teacher", *alone["arms"]]
    for arm, own in alone["arms"].items():
        for kind in ("trained", "frozen", "forward_flops", "step_flops", "checkpoint_bytes", "read_out"):
            assert result["arms"][arm][kind] == own[kind]
    assert "weights, ratio" not in cost_rows(alone["arms"])


def test_without_a_teacher_the_arms_of_a_trained_folder_are_measured(cost, student):
    _, result = cost("--bundle", student, *WORDS)
    assert list(result["arms"]) == ["none", "mlp", "pretrained"]


def test_a_study_measures_its_teacher(teacher):
    given = {**SIZE, **STUDENT, "teacher": [str(teacher)]}
    plan = Plan(BUNDLE, ("scratch", "rd"), ("phantom",), network="resnet", overlays=("distil",), options=given)
    arms = {arm: plan.configs(arm) for arm in plan.arms}
    result = cost_of_arms(arms, plan.options_for("phantom"), 1, {arm: plan.own_options(arm) for arm in arms})
    assert list(result["arms"]) == ["teacher", "scratch", "rd"]
    assert result["arms"]["teacher"]["frozen"] > 0 == result["arms"]["rd"]["frozen"]


def test_an_arm_of_the_name_is_refused(teacher):
    plan = Plan(BUNDLE, ("none", "mlp"), ("phantom",))
    with pytest.raises(ValueError, match="the bundle has an arm of the name 'teacher': rename it"):
        cost_of_arms({"teacher": plan.configs("none")}, {"teacher": str(teacher)})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher", "nowhere"], "there is no teacher at nowhere: give --teacher the folder of a training"),
        (["--teacher", "empty"], "there is no bundle 'empty'"),
        (["--teacher", "untrained"], "models/model.pt is not there: train first"),
        (["--teacher", "TEACHER", "--size", 12], "does not take the volumes of the student, [1, 12, 12, 12]"),
        (
            ["--teacher", "TEACHER", "--dataset", "organmnist3d"],
            "returns logits of shape [2] of a volume, and the student [11]",
        ),
        (["--bundle", "STUDENT", "--teacher", "TEACHER", "--hidden_size", 9], "--hidden_size 9 contradicts"),
        (["--bundle", "STUDENT", "--teacher", "TEACHER", "--hiden_size", 9], "did you mean --hidden_size?"),
        (["--bundle", "STUDENT", "--teacher", "TEACHER", "--mlp_dim", 9], "--mlp_dim has no effect"),
        (["--bundle", "STUDENT", "--teacher", "TEACHER", "--donor", "x"], "--donor is for a network before its"),
        (["--bundle", "STUDENT", "--teacher", "TEACHER", "--ckpt_dir", "x"], "there is no trained network in x: give"),
        (["--bundle", "STUDENT", "--teacher", "TEACHER", "--batch_size", 0], "batch_size must be a whole number"),
        (["--bundle", "STUDENT", "--teacher", "TEACHER", "--network", "resnext"], "unknown network 'resnext'"),
    ],
)
def test_wrong_input(teacher, student, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    copy_bundle(BUNDLE, tmp_path / "untrained")
    words = [{"TEACHER": teacher, "STUDENT": student}.get(word, word) for word in words]
    given = [] if "--bundle" in words else WORDS
    result = CliRunner().invoke(app, [*map(str, ["cost", "--rounds", 1, *given, *words])])
    text = f"{result.exception} {result.output}"
    assert result.exit_code != 0
    assert message in " ".join(text.split()), text


def test_a_damaged_teacher(cost, teacher, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(teacher, damaged)
    (damaged / "models" / "model.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"model\.json does not belong to .*model\.pt"):
        cost(*WORDS, "--teacher", damaged)
