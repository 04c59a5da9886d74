# SPDX-License-Identifier: Apache-2.0
"""Studies of segmentations: floors of mean shapes, and a study from its runs to its page."""

import csv
import json

import numpy as np
import pytest
import torch
from segmentation_phantoms import STRUCTURES, write_list

from monai_llmboost.bundle import bundle_path
from monai_llmboost.bundle.study_settings import CLASS_FLOORS, StudySettings
from monai_llmboost.engines.curves import CURVES
from monai_llmboost.engines.evaluation.mask_numbers import MeasuredCase
from monai_llmboost.engines.results import PREDICTIONS_FILE, write_predictions
from monai_llmboost.studies import Plan, run_study
from monai_llmboost.studies.datasets import check_datasets
from monai_llmboost.studies.floors.names import MEAN_SHAPE, REGISTERED_SHAPE, SHAPE_FLOORS
from monai_llmboost.studies.floors.predictors import FLOORS
from monai_llmboost.studies.floors.run import run_floor, why_impossible
from monai_llmboost.studies.floors.shapes import (
    Atlas,
    atlas_shape,
    choose_threshold,
    from_ras,
    make_atlas,
    normalized,
    register,
    to_ras,
)
from monai_llmboost.studies.plan import Run
from monai_llmboost.studies.run_folder import (
    OTHER_WEIGHTS,
    TEST,
    EpochResult,
    Evaluated,
    RunFolder,
    Trained,
    write_json,
)
from monai_llmboost.tasks import Segmentation, StructureMeasures

BUNDLE = "scans_segmentation"
SMALL = {"structures": STRUCTURES, "image_shape": [1, 16, 16, 16], "filters": 4, "epochs": 2}


def plan_of(data, **more):
    return Plan(BUNDLE, ("none", "mlp"), ("list",), seeds=1, options={"data": str(data), **SMALL}, **more)


def test_each_bundle_has_the_floors_of_its_task():
    assert StudySettings.of(bundle_path(BUNDLE)).floors == SHAPE_FLOORS
    assert StudySettings.of(bundle_path("scans_classification")).floors == CLASS_FLOORS == tuple(FLOORS)
    with pytest.raises(ValueError, match="did you mean floor-mean-shape"):
        plan_of("list.csv", floors=("floor-mean-shapes",))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_axes_are_turned_and_turned_back(axes):
    volume = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1.0, 2.0, 3.0])[:, axes]
    along_ras = to_ras(volume, affine)
    assert along_ras.shape == tuple(np.array(volume.shape)[list(np.argsort(axes))])
    assert np.array_equal(from_ras(along_ras, affine), volume)


def test_the_mean_shape_is_scaled_to_the_size_of_the_scan():
    label = np.zeros((8, 8, 8), np.uint8)
    label[:4] = 1
    label[4:6] = 2
    atlas = make_atlas([label, label, np.zeros_like(label)], 2, (8, 8, 8))
    assert atlas.structures[:, 0].unique().tolist() == pytest.approx([0, 2 / 3])
    larger = atlas.predict((16, 8, 24), threshold=0.5)
    assert np.array_equal(larger, label.repeat(2, axis=0).repeat(3, axis=2))
    assert not atlas.predict((8, 8, 8), threshold=0.8).any(), "no structure is so probable"
    assert choose_threshold(atlas, [(label, None)]) == (pytest.approx(0.1), 1.0)
    assert atlas_shape([(8, 90, 10), (9, 100, 11), (10, 110, 12)]) == (9, 64, 11)


def test_a_case_without_structures_does_not_raise_the_threshold():
    """A Dice of 1 for nothing in nothing would favour thresholds at which the floor finds nothing anywhere."""
    label = np.zeros((8, 8, 8), np.uint8)
    label[:4] = 1
    nothing = np.zeros_like(label)
    atlas = make_atlas([label, label, nothing], 1, (8, 8, 8))
    cases = [(label, None), (nothing, None), (nothing, None)]
    assert choose_threshold(atlas, cases) == pytest.approx((0.1, 1 / 3))
    assert choose_threshold(atlas, cases[1:])[1] == 0


def test_a_registration_finds_a_shift():
    def image(start):
        volume = np.zeros((24, 24, 24))
        volume[start : start + 10, 6:18, 7:15] = 2
        volume[start + 2 : start + 5, 8:12, 9:12] = 1
        return volume

    one, other = (normalized(image(start), (24, 24, 24)) for start in (5, 8))
    assert register(one, other).TransformPoint((11.0, 12.0, 13.0)) == pytest.approx((11, 12, 10), abs=0.3)
    moved = Atlas((one > 0.5).float()[None], one).predict((24, 24, 24), 0.5, other)
    wanted = (other > 0.5).numpy()
    assert 2 * (moved * wanted).sum() / (moved.sum() + wanted.sum()) > 0.9
    assert torch.equal(Atlas(one[None]).at(other), one[None]), "without an image of the atlas nothing is registered"


def test_thin_scans_are_registered_and_scans_without_contrast_are_not():
    """ITK smooths along 4 or more voxels, and knows no similarity to a constant image."""
    shape = atlas_shape([(24, 24, 2)] * 3)
    assert shape == (24, 24, 4)
    labels = [np.zeros((24, 24, 2), np.uint8) for _ in range(2)]
    for label, start in zip(labels, (5, 8)):
        label[start : start + 10, 6:18] = 1
    one, other = (normalized(label, shape) for label in labels)
    atlas = make_atlas(labels[:1], 1, shape, [one])
    moved = atlas.predict((24, 24, 2), 0.5, other)
    assert 2 * (moved * labels[1]).sum() / (moved.sum() + labels[1].sum()) > 0.9
    assert np.array_equal(atlas.predict((24, 24, 2), 0.5, torch.zeros(shape)), labels[0])


def test_a_floor_of_shapes_is_evaluated_as_the_networks_are(tmp_path):
    plan = plan_of(write_list(tmp_path, absent=(1,)), floors=SHAPE_FLOORS)
    found = {}
    for floor in SHAPE_FLOORS:
        run = Run("list", floor, 0)
        assert why_impossible(plan, run) == ""
        folder = RunFolder(tmp_path / floor)
        run_floor(plan, run, folder)
        assert folder.trained.best.validation > 0.5
        assert folder.evaluated.diagnostics is None
        rows = folder.predictions()
        assert [row["case"] for row in rows] == [f"case{number}" for number in range(6, 10)]
        found[floor] = Segmentation(["background", *STRUCTURES.values()]).read_scores(rows)
        assert float(rows[0]["label_volume_mm3_left"]) == pytest.approx(6 * 8 * 8 * 1.5)
        assert rows[1]["hd95_mm_right"] == "", "the scan has no such structure"
    assert found[MEAN_SHAPE][[0, 2, 3]].min() > 0.4
    assert found[REGISTERED_SHAPE][[0, 2, 3]].mean() > found[MEAN_SHAPE][[0, 2, 3]].mean(), "boxes are moved"
    reason = "Floors are left out: they classify, and the task of the bundle is segmentation."
    assert why_impossible(plan, Run("list", "floor-pca", 0)) == reason


def finished_run(folder, dice, seed):
    """Write the files of a run that is finished, with the given Dice of each test case and structure."""
    random = np.random.default_rng(seed)
    task = Segmentation(["background", *STRUCTURES.values()])
    cases = []
    for number in range(6, 10):
        values = [float(np.clip(random.normal(dice, 0.02), 0, 1)) for _ in range(2)]
        values[1] = np.nan if number == 7 else values[1]
        cases.append(MeasuredCase(f"case{number}", [StructureMeasures(value, 1.0, 0.5, 9.0, 9.0) for value in values]))
    for place in (TEST, OTHER_WEIGHTS):
        write_predictions(folder.path / place / PREDICTIONS_FILE, [case.row(task) for case in cases])
    (folder.path / CURVES).write_text("epoch,train_loss,val_dice\n1,0.9,0.6\n2,0.8,0.7\n")
    folder.write_trained(Trained(EpochResult(2, 0.7), EpochResult(2, 0.7)))
    folder.write_evaluated(Evaluated(None))


def test_a_study_compares_the_dice_of_cases(tmp_path, capsys):
    plan = Plan(BUNDLE, ("none", "mlp"), ("list",), seeds=2, floors=(),
                options={"data": str(write_list(tmp_path / "data")), **SMALL})  # fmt: skip
    output = tmp_path / "study"
    for run in plan.runs("list", {"none": None, "mlp": None}):
        finished_run(RunFolder(output / "runs" / run.name), {"none": 0.7, "mlp": 0.8}[run.arm], seed=run.seed)
    costs = {"arms": {}, "device": "none", "amp": None, "batch_size": 2, "img_size": 16, "rounds": 1}
    write_json(output / "cost.json", costs)
    assert run_study(plan, output) == 0
    results = json.loads((output / "results.json").read_text())
    data = results["datasets"]["list"]
    assert list(results["metrics"]) == ["dice", "dice_left", "dice_right"]
    assert results["study"]["chosen_by"] == "epoch of the best validation Dice"
    assert data["cases"] == {"train": 4, "val": 2, "test": 4, "test_patients": 2}
    assert data["arms"]["none"]["validation_dice"]["mean"] == pytest.approx(0.7)
    first = data["comparisons"][0]
    assert (first["metric"], first["arm"], first["reference"]) == ("dice", "mlp", "none")
    rows = {}
    for arm in plan.arms:
        with (output / "runs" / "list" / arm / "seed0" / TEST / PREDICTIONS_FILE).open(newline="") as file:
            rows[arm] = [[float(row[f"dice_{name}"] or "nan") for name in STRUCTURES.values()]
                         for row in csv.DictReader(file)]  # fmt: skip
    assert first["runs"][0] == pytest.approx(np.nanmean(np.subtract(rows["mlp"], rows["none"]), axis=1).mean())
    assert "mlp against none: Dice +0.1" in capsys.readouterr().out
    page = (output / "report.html").read_text()
    assert "difference in Dice of right" in page
    assert "Twice the common volume" in page
    assert "AUC" not in page
    assert "classes:" not in page


def test_a_study_needs_two_test_cases(tmp_path):
    with pytest.raises(ValueError, match="list has a single test case: give 2 or more"):
        check_datasets(plan_of(write_list(tmp_path, test=1)))
