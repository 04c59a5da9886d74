# SPDX-License-Identifier: Apache-2.0
"""A checkpoint knows how its volumes were prepared, and no evaluation, prediction or resumed run does it otherwise."""

import json
import shutil
import sys

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, EARLIER, SMALL
from processes import run_python
from typer.testing import CliRunner

from monai_llmboost.bundle import copy_bundle, run_bundle
from monai_llmboost.command_line.app import app

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
PERCENTILES = {
    "_target_": "ScaleIntensityRangePercentilesd", "keys": "image", "lower": 1, "upper": 99, "b_min": 0.0, "b_max": 1.0,
}  # fmt: skip
TRAIN, VALIDATE = "train_transforms#scale", "validate_transforms#scale"
INFER = "inference_transforms#scale"
BOTH = {TRAIN: PERCENTILES, VALIDATE: PERCENTILES}
REFUSED = (
    r"model\.pt was trained with another preprocessing, ScaleIntensityRangePercentiles b_max 1, b_min 0, lower 1, "
    r"upper 99 in training and ScaleIntensityRange b_max 1, b_min 0 in this run: give"
)
SIZE = {**SMALL, "size": 8, "patch_size": 4}


@pytest.fixture(autouse=True)
def few_phantoms(monkeypatch):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 20, "val": 10, "test": 10})


@pytest.fixture
def scans(tmp_path):
    (tmp_path / "scans").mkdir()
    for number in range(2):
        voxels = np.random.default_rng(number).integers(0, 256, (9, 8, 7)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "scans" / f"{number}.nii.gz")
    return str(tmp_path / "scans")


@pytest.fixture
def run(run_job):
    return lambda job, **options: run_job(job, "none", **{**SIZE, **options})


def kept(folder, name="model.pt"):
    from monai_llmboost.artifacts.signature import decode

    state = torch.load(folder / name, weights_only=True)
    return decode(state.get("model", state)["preprocessing.code"])


def test_other_steps_than_in_training_are_refused_by_name(run, scans, tmp_path):
    folder = run("train", epochs=1, **BOTH)
    steps = "ScaleIntensityRangePercentiles b_max 1, b_min 0, lower 1, upper 99"
    assert kept(folder) == kept(folder, "last.pt") == steps
    for weights in ("best", "last"):
        with pytest.raises(ValueError, match=REFUSED.replace("model", "(model|last)")):
            run("evaluate", weights=weights)
    run("evaluate", **{VALIDATE: PERCENTILES})
    out = {"dataset_dir": scans, "output_dir": str(tmp_path / "out")}
    for window in ([0, 255], [0, 1000]):
        with pytest.raises(ValueError, match=REFUSED):
            run("inference", dataset_dir=scans, output_dir=str(tmp_path / f"to{window[1]}"), intensity_range=window)
    run("inference", **out, **{INFER: PERCENTILES})
    with pytest.raises(ValueError, match=r"lower 1, upper 99 in training and .* lower 2, upper 99 in this run"):
        run("inference", **{**out, "output_dir": str(tmp_path / "other")}, **{INFER: {**PERCENTILES, "lower": 2}})


def test_the_window_of_raw_values_is_free_and_what_it_maps_to_is_not(run, scans, tmp_path):
    assert kept(run("train", epochs=1)) == "ScaleIntensityRange b_max 1, b_min 0"
    run("inference", dataset_dir=scans, output_dir=str(tmp_path / "a"), intensity_range=[-100, 400])
    with pytest.raises(ValueError, match="b_max 1, b_min 0 in training and ScaleIntensityRange b_max 2, b_min 0 in"):
        run("inference", dataset_dir=scans, output_dir=str(tmp_path / "b"), **{f"{INFER}#b_max": 2.0})
    with pytest.raises(ValueError, match="no NormalizeIntensity in this place in training and NormalizeIntensity in"):
        step = {"_target_": "NormalizeIntensityd", "keys": "image"}
        run("inference", dataset_dir=scans, output_dir=str(tmp_path / "c"), **{"inference_transforms#resize": step})


def test_a_validation_that_differs_is_refused_before_anything_is_renamed(run):
    folder = run("train", epochs=1)
    before = (folder / "model.pt").read_bytes()
    for change in ({TRAIN: PERCENTILES}, {VALIDATE: PERCENTILES}, {f"{VALIDATE}#b_max": 2.0}):
        with pytest.raises(ValueError, match="training and validation prepare volumes differently, Scale"):
            run("train", epochs=1, **change)
    assert (folder / "model.pt").read_bytes() == before
    assert not (folder / "model.1.pt").exists()


@pytest.mark.parametrize("change", [BOTH, {"train_transforms#augment#prob": 0.25}], ids=["steps", "random"])
def test_a_run_is_resumed_with_its_own_steps(run, change):
    run("train", epochs=2)
    with pytest.raises(ValueError, match=r"was begun with (preprocessing|augmentation) '.*', this one has '.*: resume"):
        run("train", epochs=2, resume=True, **change)
    run("train", epochs=2, resume=True)


def test_averaged_weights_know_it_too(run, tmp_path):
    bundle = tmp_path / "mine"
    copy_bundle(BUNDLE, bundle)
    from monai.bundle import run as monai_run

    from monai_llmboost.bundle import monai_arguments

    arguments = monai_arguments(
        bundle, "train", "none", False, ["strong/training.json"], **{**SIZE, "epochs": 1, **BOTH}
    )
    monai_run(**arguments)
    assert kept(bundle / "models").startswith("ScaleIntensityRangePercentiles")
    with pytest.raises(ValueError, match=REFUSED):
        run_bundle(bundle, "evaluate", "none", False, **SIZE)


def old(bundle):
    """Make the configs those of an earlier version: without the new keys, classes and names."""
    shutil.copytree(EARLIER, bundle / "configs", dirs_exist_ok=True)
    places = {"train": ["train", "handlers"], "evaluate": ["validate#handlers"], "inference": ["handlers"]}
    for name, handlers in places.items():
        file = bundle / "configs" / f"{name}.json"
        content = json.loads(file.read_text())
        found = content
        for key in handlers:
            found = found[key]
        for handler in found:
            if isinstance(handler, dict):
                handler.pop("preprocessing", None)
                handler["_target_"] = handler["_target_"].replace("TrainedCheckpointLoader", "TrainedWeights")
        if name == "train":
            content["lr_scheduler"]["_target_"] = "monai.optimizers.WarmupCosineSchedule"
            content["warmup_epochs"] = "$max(1, @epochs // 10)"
        file.write_text(json.dumps(content))


def test_copies_of_earlier_bundles_go_on_unchecked(tmp_path, scans):
    bundle = tmp_path / "mine"
    copy_bundle(BUNDLE, bundle)
    old(bundle)
    steps = {"train#preprocessing#transforms": [{"_target_": "CastToTyped", "keys": "image"}, PERCENTILES]}
    run_bundle(bundle, "train", "none", False, **SIZE, epochs=1, **steps)
    assert kept(bundle / "models") == ""
    run_bundle(bundle, "evaluate", "none", False, **SIZE)
    run_bundle(bundle, "inference", "none", False, **SIZE, dataset_dir=scans)


def test_predict_and_plain_monai_refuse_too(run, scans, tmp_path):
    bundle = tmp_path / "mine"
    copy_bundle(BUNDLE, bundle)
    shutil.copytree(run("train", epochs=1, **BOTH), bundle / "models")
    words = [word for key, value in SIZE.items() if key != "batch_size" for word in (f"--{key}", str(value))]
    predicted = CliRunner().invoke(
        app, ["predict", "--bundle", str(bundle), "--arm", "none", "-i", scans, "-o", str(tmp_path / "out"), *words]
    )
    assert predicted.exit_code == 2
    assert "was trained with another preprocessing, ScaleIntensityRangePercentiles" in predicted.output
    files = [str(bundle / "configs" / name) for name in ("inference.json", "arms/none.json")]
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--bundle_root", str(bundle), *words]
    places = ["--config_file", str(files), "--dataset_dir", scans, "--output_dir", str(tmp_path / "out2")]
    done = run_python([*command, *places])
    assert done.returncode == 1
    assert "was trained with another preprocessing, ScaleIntensityRangePercentiles" in done.stderr
    assert not (tmp_path / "out2" / "predictions.csv").exists()
