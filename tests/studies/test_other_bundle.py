# SPDX-License-Identifier: Apache-2.0
"""Study and cost of a bundle that knows nothing of this package's data, with its own arms and presets."""

import json

import pytest
from other_bundle import CASES, CLASSES, SHAPE, write_other_bundle
from typer.testing import CliRunner

from monai_llmboost.command_line.app import app
from monai_llmboost.studies import Plan

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return write_other_bundle(tmp_path_factory.mktemp("other") / "rods")


def command(*words):
    return CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "200"})


def test_a_study(other, tmp_path):
    done = command(
        "study", "--bundle", other, "--arms", "plain,boosted", "--seeds", "2", "--output", tmp_path, "--jobs", "2"
    )
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "results.json").read_text())
    data = results["datasets"]["data"]
    assert data["class_names"] == CLASSES
    assert data["cases"] == {**CASES, "test_patients": 8}
    assert results["model_card"] == "For tests of rods"
    assert data["cost"]["img_size"] == [8, 12, 4]
    assert [(each["metric"], each["arm"], each["reference"]) for each in data["comparisons"]] == [
        ("auc", "boosted", "plain"),
        ("acc", "boosted", "plain"),
    ]
    assert data["diagnostics"]["plain"] is None
    assert data["diagnostics"]["boosted"]["cka_block"]["runs"]
    for floor in ("floor-numbers", "floor-pca", "floor-random-features"):  # of three classes and two channels
        assert len(data["arms"][floor]["auc"]["runs"]) == 2
    assert data["arms"]["floor-pca"]["auc"]["mean"] > 0.9
    assert (tmp_path / "runs" / "data" / "boosted" / "seed1" / "test" / "predictions.csv").is_file()
    page = (tmp_path / "report.html").read_text()
    assert " \N{MULTIPLICATION SIGN} ".join(map(str, SHAPE[1:])) in page
    assert "each class is compared with all others" in page
    assert page.count("15 test cases of 8 patients") == 2


def test_cost(other, tmp_path):
    done = command("cost", "--bundle", other, "--rounds", "1", "--json", tmp_path / "cost.json")
    assert done.exit_code == 0, done.output
    assert "8 x 12 x 4 voxels in batches of 6" in done.output
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert (cost["img_size"], list(cost["arms"])) == ([8, 12, 4], ["boosted", "plain"])
    assert cost["arms"]["boosted"]["frozen"] > 0


def test_its_own_preset(other):
    plan = Plan(str(other), ("plain", "boosted"), ("data",), preset="fast")
    assert (plan.weights, plan.value("epochs")) == ("last", 1)
    with pytest.raises(ValueError, match="unknown preset 'strong'; choose from fast"):
        Plan(str(other), ("plain", "boosted"), ("data",), preset="strong")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "rods"], "the bundle has no option --dataset"),
        (["--folds", "2"], "the bundle has no option --folds"),
        (["--label-fraction", "0.1,1"], "has no key 'label_fraction', so it is trained with all labels: leave out"),
        (["--label-fraction", "ten"], "label fractions are numbers with commas, such as 0.1,0.25,1, not 'ten'"),
        (["--arms", "none,mlp"], "unknown arm 'none'; choose from boosted, plain"),
    ],
)
def test_what_the_bundle_lacks_is_named(other, tmp_path, words, message):
    done = command("study", "--bundle", other, "--arms", "plain,boosted", "--output", tmp_path / "new", *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "new").exists()


def test_several_data_sets_need_a_key_for_their_names(other):
    with pytest.raises(ValueError, match="has no key 'dataset', so a study of it has one data set, not a, b: give one"):
        Plan(str(other), ("plain", "boosted"), ("a", "b"))
