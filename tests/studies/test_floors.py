# SPDX-License-Identifier: Apache-2.0
"""Floors: their predictors, their runs in a study, and the sentences that they add to verdicts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import BUNDLE, SMALL
from monai.data import MetaTensor
from other_bundle import write_other_bundle
from typer.testing import CliRunner

from monai_llmboost.command_line.app import app
from monai_llmboost.studies import Plan, Run, cost_of_arms
from monai_llmboost.studies.floors.features import NUMBERS, single_numbers, untrained_convolutions, volume_numbers
from monai_llmboost.studies.floors.predictors import FLOORS, fit_floor
from monai_llmboost.studies.floors.run import run_floor, why_impossible
from monai_llmboost.studies.floors.shortcuts import auc_of_single_numbers, shortcut_warning
from monai_llmboost.studies.run_folder import RunFolder
from monai_llmboost.studies.statistics.compare import compare_arms, compare_with_floors
from monai_llmboost.studies.statistics.verdict import floor_caveat, with_caveats, without_caveats
from monai_llmboost.tasks import Classification

pytestmark = pytest.mark.filterwarnings("ignore")
METRIC = Classification.metrics["auc"]


@pytest.fixture
def plan():
    return Plan(BUNDLE, ("none", "mlp"), ("phantom",), seeds=1, options={**SMALL, "size": 12})


@pytest.fixture
def few_phantoms(monkeypatch):
    cases = {"train": 100, "val": 40, "test": 60}
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", cases)


@pytest.mark.usefixtures("few_phantoms")
@pytest.mark.parametrize("floor", ["floor-pca", "floor-random-features"])
def test_the_same_seed_gives_the_same_bytes(plan, floor, tmp_path):
    folders = [RunFolder(tmp_path / name) for name in ("one", "two")]
    for folder in folders:
        run_floor(plan, Run("phantom", floor, 3), folder)
    names = ("test/predictions.csv", "trained.json", "evaluated.json")
    assert len({tuple((folder.path / name).read_bytes() for name in names) for folder in folders}) == 1
    rows = folders[0].predictions()
    assert list(rows[0]) == ["case", "p_shell", "p_ring", "predicted", "label"]
    assert len(rows) == 60
    scores = np.array([float(row["p_ring"]) for row in rows])
    ring = np.array([row["label"] == "ring" for row in rows])
    auc = np.mean(scores[ring, None] > scores[None, ~ring])
    assert auc > 0.65 or floor == "floor-pca", "a turned body has no fixed voxels"
    assert folders[0].trained.best.validation <= 1
    assert folders[0].evaluated.diagnostics is None


@pytest.mark.usefixtures("few_phantoms")
def test_a_fold_has_other_training_cases(plan, tmp_path):
    folds = replace(plan, folds=2)
    predictions = set()
    for run in (Run("phantom", "floor-numbers", 0, None, 0), Run("phantom", "floor-numbers", 0, None, 1)):
        folder = RunFolder(tmp_path / run.name)
        run_floor(folds, run, folder)
        predictions.add((folder.path / "test" / "predictions.csv").read_bytes())
        assert folder.evaluated.diagnostics.keys() == {"volume of the mask", "mean intensity"}
    assert len(predictions) == 2


def cases_of(random, numbers, classes, features):
    """Features whose first column has the class in it."""
    y = random.permutation(np.arange(numbers) % classes)
    x = random.normal(size=(numbers, features)).astype(np.float32)
    x[:, 0] += 3 * y
    return x, y


@pytest.mark.parametrize("name", FLOORS)
@pytest.mark.parametrize("classes", [2, 5])
def test_few_cases_of_any_number_of_classes(name, classes):
    random = np.random.default_rng(0)
    splits = {split: cases_of(random, 4 * classes, classes, 30) for split in ("train", "val", "test")}
    chosen = fit_floor(FLOORS[name], 0, splits, classes, METRIC)
    assert chosen.scores.shape == (4 * classes, classes)
    assert chosen.scores.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert chosen.validation[chosen.name] == max(chosen.validation.values()) > 0.6


@pytest.mark.parametrize("name", FLOORS)
def test_a_class_without_a_training_case_has_no_probability(name):
    random = np.random.default_rng(0)
    splits = {split: cases_of(random, 30, 3, 8) for split in ("train", "val", "test")}
    x, y = splits["train"]
    chosen = fit_floor(FLOORS[name], 0, {**splits, "train": (x[y != 1], y[y != 1])}, 3, METRIC)
    assert (chosen.scores[:, 1] == 0).all()
    with pytest.raises(ValueError, match="the 10 training cases are all of one class, so nothing can be fitted"):
        fit_floor(FLOORS[name], 0, {**splits, "train": (x[y == 1], y[y == 1])}, 3, METRIC)


def test_numbers_of_a_box():
    images = torch.zeros(2, 1, 6, 7, 8)
    images[0, 0, 1:3, 2:5, 4:8] = 9
    first, empty = volume_numbers(images)
    named = dict(zip(NUMBERS, first.tolist()))
    assert [named[f"extent along axis {axis}"] for axis in range(3)] == [2, 3, 4]
    assert (named["volume of the mask"], named["surface"]) == (24, 2 * (6 + 8 + 12))
    assert named["surface / volume^(2/3)"] == pytest.approx(52 / 24 ** (2 / 3))
    assert (named["largest intensity"], named["histogram 15"]) == (9, pytest.approx(24 / 336))
    assert empty[:5].tolist() == [0] * 5


@pytest.mark.parametrize("shape", [(1, 28, 28, 28), (3, 5, 40, 2), (2, 1, 1, 1)])
def test_untrained_convolutions_of_any_shape(shape):
    images = torch.rand(2, *shape)
    features = untrained_convolutions(images, 1)
    assert features.isfinite().all()
    assert torch.equal(features, untrained_convolutions(images, 1))
    assert not torch.equal(features, untrained_convolutions(images, 2))


def test_a_header_that_predicts_the_label_is_found():
    random = np.random.default_rng(0)

    def numbers(cases):
        labels = np.arange(cases) % 2
        affine = torch.eye(4).repeat(cases, 1, 1)
        affine[:, 2, 2] = torch.from_numpy(1 + labels + random.normal(scale=0.1, size=cases))
        meta = {"original_affine": affine, "spatial_shape": torch.full((cases, 3), 9)}
        images = MetaTensor(torch.rand(cases, 1, 4, 4, 4), meta=meta)
        return {name: values.numpy() for name, values in single_numbers(images).items()}, labels

    alone = auc_of_single_numbers(numbers(80), numbers(60))
    assert alone["voxel spacing along axis 2"] == pytest.approx(1)
    assert "voxel spacing along axis 0" not in alone, "it does not vary"
    assert alone["volume of the mask"] < 0.8
    assert shortcut_warning(alone, 0.95) == (
        "Shortcut: the voxel spacing along axis 2 alone reaches AUC 1.000, the best arm 0.950. The task may be a test "
        "of this number."
    )


def test_the_direction_is_learnt_from_the_training_cases():
    random = np.random.default_rng(0)
    labels = np.arange(90) % 3
    training = {"falls": -labels + random.normal(scale=0.1, size=90)}, labels
    test = {"falls": labels + random.normal(scale=0.1, size=90)}, labels
    assert auc_of_single_numbers(training, training)["falls"] > 0.9
    assert auc_of_single_numbers(training, test)["falls"] < 0.5


@pytest.mark.parametrize(
    ("auc", "best", "warned"),
    [(0.91, 0.99, True), (0.91, None, True), (0.85, 0.86, True), (0.85, 0.9, False), (0.79, 0.7, False)],
)
def test_when_a_number_is_a_shortcut(auc, best, warned):
    assert bool(shortcut_warning({"mean intensity": auc}, best)) is warned


def test_volume_alone_predicts_the_real_nodules(real_data):
    with np.load(real_data / "lidc_shapes" / "lidcshape3d_28.npz") as file:
        splits = [
            (single_numbers(torch.from_numpy(file[f"{split}_images"]).unsqueeze(1)), file[f"{split}_labels"].ravel())
            for split in ("train", "test")
        ]
    numbers = [({name: each.numpy() for name, each in found.items()}, labels) for found, labels in splits]
    alone = auc_of_single_numbers(*numbers)
    assert alone["volume of the mask"] == pytest.approx(0.93, abs=0.005)
    assert "the volume of the mask alone reaches AUC 0.9" in shortcut_warning(alone, 0.94)
    assert "a test of size" in shortcut_warning(alone, 0.94)


def test_a_verdict_on_a_base_below_its_floor_says_so_first():
    random = np.random.default_rng(0)
    labels = np.arange(200) % 2

    def runs(strength):
        logits = strength * (labels - 0.5) + random.normal(size=(5, 200))
        return np.stack([1 / (1 + np.exp(logits)), 1 / (1 + np.exp(-logits))], axis=2)

    scores = {"none": runs(1), "mlp": runs(1), "floor-pca": runs(3), "floor-numbers": runs(0.5)}
    floors = compare_with_floors(scores, labels, "none", ["floor-pca", "floor-numbers"])
    assert [(each.metric, each.arm, each.reference) for each in floors] == [
        (metric, "none", floor) for metric in ("auc", "acc") for floor in ("floor-pca", "floor-numbers")
    ]
    alone = compare_arms({name: scores[name] for name in ("none", "mlp")}, labels, ["none"])
    assert alone[0].p_holm == alone[0].p, "floors are no part of the family of the arms"
    caveat = floor_caveat(("none", 0.76), floors[:2], METRIC)
    better = f"floor-pca ({0.76 - floors[0].difference:.3f}; significant)"
    assert caveat == f"The base none (AUC 0.760) does not reach {better}, so this says little."
    assert with_caveats(alone, [caveat])[0].verdict == f"{caveat} {alone[0].verdict}"
    assert with_caveats(alone, [])[0].verdict == alone[0].verdict
    for caveats in ([], [caveat], [caveat, "Another sentence."]):
        assert without_caveats(with_caveats(alone, caveats)[0].verdict, caveats) == alone[0].verdict
    assert floor_caveat(("none", 0.76), floors[1:2], METRIC) == "", "it reaches this floor"
    for difference, reached in ((-0.0001, True), (-0.004, True), (-0.006, False)):
        close = [replace(floors[0], difference=difference)]
        assert (floor_caveat(("none", 0.999), close, METRIC) == "") == reached
    assert floor_caveat(("none", 0.76), [], METRIC) == ""


def test_a_bundle_whose_evaluation_cannot_read_its_training_cases(tmp_path):
    bundle = write_other_bundle(tmp_path / "rods")
    plan = Plan(str(bundle), ("plain", "boosted"), ("data",))
    run = Run("data", "floor-pca", 0)
    assert why_impossible(plan, run) == ""
    file = bundle / "configs" / "evaluate.json"
    config = json.loads(file.read_text())
    config["validate#dataset"]["cases"] = 15
    file.write_text(json.dumps(config))
    assert why_impossible(plan, run) == (
        "Floors are left out: with the split train the bundle's evaluation has 15 of the 30 training cases."
    )
    config["validate#dataset"]["cases"] = "$dict(test=15)[@split]"
    file.write_text(json.dumps(config))
    assert "cannot open its training or validation cases" in why_impossible(plan, run)


def test_unknown_floors():
    with pytest.raises(ValueError, match="unknown floor 'floor-pcas'; choose from floor-numbers, floor-pca"):
        Plan(BUNDLE, ("none", "mlp"), ("phantom",), floors=("floor-pcas",))
    with pytest.raises(ValueError, match="a study needs 1 or more different arms and floors"):
        Plan(BUNDLE, ("none", "mlp"), ("phantom",), floors=("floor-pca", "floor-pca"))


def test_floors_are_added_to_a_finished_study(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "monai_llmboost.studies.study.cost_of_arms", lambda arms, options, _, own: cost_of_arms(arms, options, 1, own)
    )
    options = [f"--{key}={value}" for key, value in {**SMALL, "size": 8, "epochs": 1}.items()]

    def study(floors):
        words = ["--output", tmp_path, "--arms", "none,mlp", "--seeds", "1", "--jobs", "2", "--floors", floors]
        done = CliRunner().invoke(app, ["study", *map(str, words), *options])
        assert done.exit_code == 0, done.output
        return json.loads((tmp_path / "results.json").read_text())["datasets"]["phantom"], done.output

    without, _ = study("none")
    assert list(without["arms"]) == ["none", "mlp"]
    plan = json.loads((tmp_path / "study.json").read_text())
    assert plan.pop("floors") == []
    (tmp_path / "study.json").write_text(json.dumps(plan))  # as it was before there were floors
    trained = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("model.pt")}
    found, output = study("floor-numbers,floor-pca")
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("model.pt")} == trained
    assert list(found["arms"]) == ["none", "mlp", "floor-numbers", "floor-pca"]
    verdicts = {each["metric"]: each["verdict"] for each in found["comparisons"]}
    own = {each["metric"]: each["verdict"] for each in without["comparisons"]}
    beginning = "".join(f"{caveat} " for caveat in found["caveats"])
    assert verdicts == {metric: beginning + verdict for metric, verdict in own.items()}
    assert {(each["arm"], each["reference"]) for each in found["floors"]["comparisons"]} == {
        ("none", "floor-numbers"), ("none", "floor-pca"),
    }  # fmt: skip
    assert found["roc"].keys() == {"none", "mlp", "floor-numbers", "floor-pca"}
    assert found["curves"].keys() == found["diagnostics"].keys() == {"none", "mlp"}
    assert "  floor: none against floor-pca: AUC" in output
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Floors</h2>" in page and "none against floor-pca" in page
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*")}
    assert study("floor-numbers,floor-pca")[0] == found
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*")} == done
