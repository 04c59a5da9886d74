# SPDX-License-Identifier: Apache-2.0
"""Frozen features of labelled scans: train, evaluate, predict, cost and floors by the commands."""

import csv
import json

import pytest
import torch
from dicom_files import write_series
from test_scans_bundle import CLASSES, SCANS, command, make_volume, place, probabilities, write_list, write_nifti

from monai_llmboost.bundle import BundleJob, bundle_path, job_configs
from monai_llmboost.data import LabelledScanDataset
from monai_llmboost.networks import FeatureClassifier
from monai_llmboost.studies import Plan, Run
from monai_llmboost.studies.floors.run import run_floor
from monai_llmboost.studies.run_folder import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore")
FEATURES = ["--network", "features"]
# A small training; the spacing makes the scans small.
QUICK = [
    "--epochs", 2, "--batch_size", 8, "--image_shape", "[1, 16, 16, 16]", "--spacing_mm", "[1.3, 1.4, 1.7]",
    "--device", "$torch.device('cpu')",
]  # fmt: skip
SPLITS = ("train", "train", "train", "train", "val", "val", "test", "test")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Return the list of 32 scans with splits."""
    folder = tmp_path_factory.mktemp("scans")
    for index in range(32):
        write_nifti(folder / f"{index}.nii.gz", index)
    rows = [[f"{n}.nii.gz", CLASSES[n % 2], SPLITS[n // 2 % 8]] for n in range(32)]
    return write_list(folder / "list.csv", rows, ("image", "label", "split"))


@pytest.fixture(scope="module")
def mine(scans):
    """Return the folder of a training on features, without a booster."""
    folder = scans.parent / "mine"
    words = ["run", "train", "--bundle", bundle_path(SCANS), "--bundle_root", folder, "--data", scans]
    code, output = command(*words, *FEATURES, "--arm", "none", *QUICK)
    assert code == 0, output
    return folder


def test_evaluation_and_prediction_need_no_option(scans, mine, tmp_path):
    bundle = ["--bundle", bundle_path(SCANS), "--bundle_root", mine]
    code, output = command("run", "evaluate", *bundle, "--data", scans)
    assert code == 0, output
    assert json.loads((mine / "eval" / "metrics.json").read_text())["cases"] == 8
    with (mine / "eval" / "predictions.csv").open(newline="") as file:
        evaluated = {row["case"]: float(row["p_flat"]) for row in csv.DictReader(file)}
    for index in (12, 13):  # of the test split
        write_nifti(tmp_path / "nifti" / f"{index}.nii.gz", index)
        write_series(
            tmp_path / "dicom" / f"{index}", make_volume(index), place(index), series=f"s{index}", Modality="MR"
        )
    for kind in ("nifti", "dicom"):
        code, output = command("predict", *bundle, "--input", tmp_path / kind, "--output", tmp_path / kind / "out")
        assert code == 0, output
        rows = probabilities(tmp_path / kind / "out")
        assert len(rows) == 2 and not any(refused for _, refused in rows.values())
        for index, (found, _) in zip((12, 13), (rows[name] for name in sorted(rows))):
            assert float(found) == pytest.approx(evaluated[f"{index}.nii.gz"], abs=1e-5), kind
    report = (tmp_path / "nifti" / "out" / "report.html").read_text(encoding="utf-8")
    assert "data:image/png" not in report, "features have no picture"
    words = ["--input", tmp_path / "nifti" / "12.nii.gz", "--output", tmp_path / "maps", "--saliency"]
    code, output = command("predict", *bundle, *words)
    assert code == 2
    assert "FeatureClassifier has no patch tokens" in " ".join(output.split())


def test_other_features_than_those_of_the_training_are_refused(mine, scans):
    bundle = ["--bundle", bundle_path(SCANS), "--bundle_root", mine]
    with pytest.raises(ValueError, match=r"features_seed 1 contradicts .*: its network was trained with 0"):
        command("run", "evaluate", *bundle, "--data", scans, "--features_seed", 1)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_the_cache_holds_features_and_no_volumes(scans, tmp_path, cache):
    options = {"data": str(scans), "image_shape": [1, 16, 16, 16], "cache": cache, "cache_dir": str(tmp_path / "kept")}
    job = BundleJob.read(job_configs(bundle_path(SCANS), "train", "none", "features"), options)
    data = job.training_data
    assert isinstance(data, LabelledScanDataset)
    (first, *_) = job.item("train#dataloader", "the test")
    assert first["image"].shape == (16, 3024, 1, 1, 1)
    kept = data.prepare()
    if cache == "disk":
        files = list((tmp_path / "kept").iterdir())
        assert len(files) == 16 and all(file.stat().st_size < 3024 * 4 + 5000 for file in files)
    else:
        assert all(item["image"].untyped_storage().nbytes() == 3024 * 4 for item in kept._cache)
    assert not job.item("train#augmentation", "the test").transforms, "features are not augmented"


@pytest.mark.parametrize("arm", ["none", "mlp", "random", "pretrained"])
def test_every_arm_can_be_made(arm):
    options = {"class_names": ["a", "b", "c"], "image_shape": [2, 16, 16, 16], "block": "embedded"}
    job = BundleJob.read(job_configs(bundle_path(SCANS), "train", arm, "features"), options)
    made = job.network_definition.eval()
    assert isinstance(made, FeatureClassifier) and job.image_shape == (3024, 1, 1, 1)
    with torch.inference_mode():
        assert made(torch.rand(2, *job.image_shape)).shape == (2, 3)


def test_cost_measures_what_is_trained(tmp_path):
    code, output = command(
        "cost", "--bundle", bundle_path(SCANS), *FEATURES, "--rounds", 1, "--json", tmp_path / "cost.json",
        "--image_shape", "[1, 16, 16, 16]", "--class_names", "['a', 'b']", "--batch_size", 2,
    )  # fmt: skip
    assert code == 0, output
    assert set(json.loads((tmp_path / "cost.json").read_text())["arms"]) >= {"none", "pretrained"}


def test_floors_see_the_features_or_the_volumes(scans, tmp_path):
    options = {"data": str(scans), "image_shape": [1, 16, 16, 16], "spacing_mm": [1.5, 1.5, 1.5]}
    plan = Plan(bundle_path(SCANS), ("none", "mlp"), ("scans",), seeds=1, network="features", options=options)
    for floor in ("floor-numbers", "floor-random-features"):
        folder = RunFolder(tmp_path / floor)
        run_floor(plan, Run("scans", floor, 0), folder)
        assert len(folder.predictions()) == 8
    # The embedding has its own seed, so the floor is the same with each seed of the study.
    again = RunFolder(tmp_path / "again")
    run_floor(plan, Run("scans", "floor-random-features", 1), again)
    assert again.predictions() == RunFolder(tmp_path / "floor-random-features").predictions()
