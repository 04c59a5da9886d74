# SPDX-License-Identifier: Apache-2.0
"""Labelled scans as their users train on them: inspect, train, evaluate, predict, from NIfTI and DICOM."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from conftest import interrupted_after
from dicom_files import OBLIQUE, write_series
from typer.testing import CliRunner

from monai_llmboost.bundle import BundleJob, bundle_path, copy_bundle, job_configs
from monai_llmboost.bundle.content import read_config
from monai_llmboost.bundle.options import check_early
from monai_llmboost.command_line.app import app
from monai_llmboost.command_line.scan_plan import list_is_planned
from monai_llmboost.engines import TrainingCheckpoints, training_cases
from monai_llmboost.studies import Plan, study

pytestmark = [
    # What MONAI, Ignite and torch say of themselves on every normal run (MONAI 1.6.1, torch 2.15).
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
SCANS, CLASSES = "scans_classification", ("flat", "round")
DAMAGED = "scan-07.nii.gz"
# A small and short training, of the bundle's kind.
QUICK = ["--epochs", 2, "--hidden_size", 16, "--batch_size", 8, "--device", "$torch.device('cpu')"]


def command(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def make_volume(index):
    """Return an ellipsoid in noise, flat or round, as int16 with units of its own."""
    random = np.random.default_rng(index)
    shape = random.integers(20, 26, 3)
    places = (np.indices(shape) - (shape[:, None, None, None] - 1) / 2) * np.array([0.7, 0.9, 1.2])[:, None, None, None]
    radii = np.array([6.0, 6.0, 6.0 if index % 2 else 2.5]) + random.random(3)
    inside = ((places / radii[:, None, None, None]) ** 2).sum(0) < 1
    return (random.integers(400, 900) * inside + random.normal(100, 20, shape)).astype(np.int16)


def place(index):
    affine = OBLIQUE.copy()
    affine[:3, 2] *= 1.2 / 2.5
    affine[:3, 3] += index
    return affine


def write_nifti(path, index):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(make_volume(index), place(index)), path)
    return path


def write_list(path, rows, titles=("image", "label", "group")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([titles, *rows])
    return path


def probabilities(output):
    with (output / "predictions.csv").open(newline="") as file:
        return {row["case"]: (row["p_flat"], row["refused"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Return a folder with 40 scans of 20 patients, one of them damaged, and their list, with odd characters."""
    folder = tmp_path_factory.mktemp("own") / "Übung #1 $x"
    for index in range(40):
        write_nifti(folder / "bilder, alle" / f"scan-{index:02d}.nii.gz", index)
    damaged = folder / "bilder, alle" / DAMAGED
    damaged.write_bytes(damaged.read_bytes()[:3000])
    write_list(
        folder / "list.csv",
        [[f"bilder, alle/scan-{n:02d}.nii.gz", CLASSES[n % 2], f"patient {n // 2}"] for n in range(40)],
    )
    return folder


@pytest.fixture(scope="module")
def mine(scans):
    """Return the folder of a training on these scans."""
    folder = scans / "mine"
    code, output = command("inspect", "--data", scans / "list.csv", "--bundle", folder)
    assert code == 0, output
    code, output = command("train", "--bundle", folder, *QUICK)
    assert code == 0, output
    return folder


def test_one_damaged_scan_costs_one_case(scans, mine):
    plan = read_config(mine / "configs" / "plan.json")
    assert len(plan["leave_out"]) == 1
    page = (mine / "eval" / "inspection" / "inspection.html").read_text(encoding="utf-8")
    assert DAMAGED in page
    job = BundleJob.read(job_configs(mine, "train"), {})
    labelled = job.item("labelled", "the test")
    assert len(labelled.cases) == 39
    groups = {split: {item["patient"] for item in labelled.items(split)} for split in ("train", "val", "test")}
    assert not groups["train"] & groups["val"] and not (groups["train"] | groups["val"]) & groups["test"]


def test_a_study_prepares_each_scan_once_for_all_its_processes(mine, tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr(study.shutil, "rmtree", lambda folder, **_: prepared.extend(Path(folder).glob("*.pt")))
    words = [
        "--bundle",
        mine,
        "--output",
        tmp_path / "study",
        "--arms",
        "none,mlp",
        "--seeds",
        1,
        "--floors",
        "floor-pca",
    ]
    code, output = command("study", *words, *QUICK)
    assert code == 0, output
    assert len(prepared) == 39  # of 40, of which one is damaged; for training, validation, test and floors
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert "cache" not in results["study"]["options"]
    assert Plan(str(mine), ("none", "mlp"), ("list",), options={"cache": "disk"}).with_shared_scans(
        tmp_path
    ).options == {"cache": "disk"}


def test_a_light_student_learns_from_the_boosted_network(scans, mine, tmp_path):
    student = tmp_path / "student"
    words = ["--data", scans / "list.csv", "--teacher", mine, *QUICK[:2], "--hidden_size", 8, *QUICK[4:]]
    code, output = command("distil", "--bundle", student, *words)
    assert code == 0, output
    record = read_config(student / "models" / "model.json")
    assert record["booster"] is None and record["_trained_"]["block"] is None
    weights = torch.load(student / "models" / "model.pt", weights_only=True)
    assert not any("block" in name or "booster" in name for name in weights)
    code, output = command("evaluate", "--bundle", student)
    assert code == 0, output
    assert (student / "eval" / "evaluation.html").is_file()


def test_a_teacher_of_another_plan_is_refused(scans, mine, tmp_path):
    words = ["--data", scans / "list.csv", "--teacher", mine, "--intensity", "unchanged", *QUICK]
    with pytest.raises(ValueError, match="was trained with another preprocessing"):
        command("distil", "--bundle", tmp_path / "student", *words)


def test_an_evaluation_needs_no_option_and_writes_the_page(mine):
    code, output = command("evaluate", "--bundle", mine)
    assert code == 0, output
    numbers = json.loads((mine / "eval" / "metrics.json").read_text())
    assert numbers["split"] == "test" and numbers["cases"] in (7, 8)
    assert {
        "auc",
        "balanced_accuracy",
        "sensitivity",
        "specificity",
        "threshold",
        "calibration_error",
    } <= numbers.keys()
    assert "balanced accuracy" in output
    assert (mine / "eval" / "evaluation.html").is_file()


def test_nifti_and_dicom_have_equal_probabilities(scans, mine, tmp_path):
    for index in (3, 10, 21):
        write_nifti(tmp_path / "nifti" / f"case-{index}.nii.gz", index)
        write_series(
            tmp_path / "dicom" / f"case-{index}", make_volume(index), place(index), series=f"s{index}", Modality="MR"
        )
    found = []
    for kind in ("nifti", "dicom"):
        code, output = command(
            "predict", "--bundle", mine, "--input", tmp_path / kind, "--output", tmp_path / f"out-{kind}"
        )
        assert code == 0, output
        rows = probabilities(tmp_path / f"out-{kind}")
        found.append({Path(case).name.partition(".")[0]: float(value) for case, (value, _) in rows.items()})
    assert set(found[0]) == set(found[1]) == {"case-3", "case-10", "case-21"}
    for case, value in found[0].items():
        assert found[1][case] == pytest.approx(value, abs=1e-5)
    assert len(set(found[0].values())) == 3


def test_a_prediction_of_a_list_equals_that_of_the_evaluation(scans, mine, tmp_path):
    command("evaluate", "--bundle", mine)
    with (mine / "eval" / "predictions.csv").open(newline="") as file:
        evaluated = {row["case"]: float(row["p_flat"]) for row in csv.DictReader(file)}
    code, _ = command("predict", "--bundle", mine, "--data", scans / "list.csv", "--output", tmp_path / "out")
    assert code == 1  # the damaged scan
    rows = probabilities(tmp_path / "out")
    assert len(rows) == 40
    assert [Path(case).name for case, (_, refused) in rows.items() if refused] == [DAMAGED]
    for case, value in evaluated.items():
        assert float(rows[case][0]) == pytest.approx(value, abs=1e-6)


def test_a_scan_far_from_the_plan_is_predicted_with_a_warning(mine, tmp_path):
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(make_volume(1), affine), tmp_path / "in" / "a.nii.gz")
    code, _ = command("predict", "--bundle", mine, "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert code == 0
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert "spacing 5 x 5 x 5 mm: in training from" in row["warnings"]


def test_a_changed_list_does_not_turn_training_cases_into_test_cases(scans, mine, tmp_path):
    rows = list(csv.reader((scans / "list.csv").read_text(encoding="utf-8").splitlines()))
    other = scans / "other"
    other.mkdir(exist_ok=True)
    kept = [[f"../{image}", label, group] for image, label, group in rows[1:-2]]
    write_list(other / "list.csv", kept)
    with pytest.raises(
        ValueError, match=r"changed since the training .* give the list and the options of the training"
    ):
        command(
            "evaluate", "--bundle", mine, "--data", other / "list.csv", "--leave_out", "[]", "--output_dir", tmp_path
        )


def test_a_list_that_changed_since_its_inspection_is_reported(mine, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(mine, copy, ignore=shutil.ignore_patterns("models", "eval"))
    plan = read_config(copy / "configs" / "plan.json")
    about = {**plan["_plan_"], "list": "another digest"}
    assert list_is_planned(copy)
    (copy / "configs" / "plan.json").write_text(json.dumps({**plan, "_plan_": about}))
    assert not list_is_planned(copy)
    code, output = command("train", "--bundle", copy, *QUICK[2:], "--epochs", 1)
    assert code == 0 and "the list changed since its inspection: give --data" in output


def test_a_patient_in_two_splits_is_refused_without_an_inspection(scans):
    rows = [
        [f"../bilder, alle/scan-{n:02d}.nii.gz", CLASSES[n % 2], f"p{n // 2}", ("train", "val")[n % 2]]
        for n in range(6)
    ]
    (scans / "leak").mkdir()
    write_list(scans / "leak" / "list.csv", rows, ("image", "label", "group", "split"))
    job = BundleJob.read(job_configs(bundle_path(SCANS), "train"), {"data": str(scans / "leak" / "list.csv")})
    with pytest.raises(ValueError, match="the group p0 is in train and val: keep all its cases in one"):
        _ = job.class_names


def test_an_evaluation_on_another_list_is_reported(monkeypatch):
    said = []
    monkeypatch.setattr(training_cases.logger, "warning", said.append)
    cases = SimpleNamespace(division="b.csv, cases 12, fold 0", split="test", has_official_test=False, advice="")
    training_cases.check_cases("a.csv, cases 34, fold 0", cases, Path("model.pt"))
    assert said == ["these cases are of another list than those of the training: check that none is in both"]


def test_a_resumed_training_equals_an_uninterrupted_one(mine, tmp_path, monkeypatch):
    last = {}
    for name in ("once", "twice"):
        words = ["train", "--bundle", mine, *QUICK[2:], "--bundle_root", tmp_path / name, "--epochs", 3]
        words += ["--balance", "sampling"]
        if name == "twice":
            with monkeypatch.context() as patch:
                patch.setattr(TrainingCheckpoints, "epoch_completed", interrupted_after(1))
                code, output = command(*words)
            assert code == 130
            assert "--resume True" in output
            words += ["--resume", True]
        code, output = command(*words)
        assert code == 0, output
        last[name] = torch.load(tmp_path / name / "models" / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(last["once"][key], last["twice"][key]) for key in last["once"])


def test_train_inspects_by_itself_and_only_once(scans, tmp_path):
    words = ["train", "--data", scans / "list.csv", "--bundle", tmp_path / "new", *QUICK, "--spacing-mm", "[2, 2, 2]"]
    code, output = command(*words)
    assert code == 0, output
    assert "Plan" in output
    plan = read_config(tmp_path / "new" / "configs" / "plan.json")
    assert plan["spacing_mm"] == [2, 2, 2]
    code, output = command(*words)
    assert code == 0 and "Plan" not in output
    record = read_config(tmp_path / "new" / "models" / "model.json")
    assert record["spacing_mm"] == [2, 2, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch", 3], "the bundle has no option --epoch: did you mean --epochs"),
        (["--epochs", 0], "epochs must be a whole number from 1, not 0"),
        (["--amp", "True"], "the bundle has no option --amp: it is --precision"),
    ],
)
def test_wrong_options_are_refused_before_the_inspection(scans, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        command("train", "--bundle", tmp_path / "new", "--data", scans / "list.csv", *words)
    assert not (tmp_path / "new").exists()


def test_other_files_among_the_configs_do_not_matter(tmp_path):
    copy_bundle("scans_classification", tmp_path / "mine")
    folder = tmp_path / "mine" / "configs"
    (folder / "notes.json").write_text("[1, 2]")
    (folder / "gone.json").symlink_to(tmp_path / "nothing")
    check_early(folder, {"epochs": 3, "network_def#dropout": 0.1})
    with pytest.raises(ValueError, match="the bundle has no option --epoch"):
        check_early(folder, {"epoch": 3})


def test_train_stops_at_mistakes_in_the_list(scans, tmp_path):
    write_list(tmp_path / "list.csv", [["nowhere.nii.gz", "a"], ["lost.nii.gz", "b"]], ("image", "label"))
    code, output = command("train", "--data", tmp_path / "list.csv", "--bundle", tmp_path / "new")
    assert code == 1
    assert "no such file or folder: nowhere.nii.gz" in " ".join(output.split())
    assert not (tmp_path / "new" / "configs" / "plan.json").exists()


def test_the_positive_class_is_the_last_one_or_the_given_one(scans):
    words = {"data": str(scans / "list.csv"), "leave_out": []}
    job = BundleJob.read(job_configs(bundle_path(SCANS), "train"), words)
    assert job.class_names == ["flat", "round"]
    job = BundleJob.read(job_configs(bundle_path(SCANS), "train"), {**words, "positive_class": "flat"})
    assert job.class_names == ["round", "flat"]
    assert {item["label"] for item in job.item("labelled", "the test").items("val")} == {0, 1}
    job = BundleJob.read(job_configs(bundle_path(SCANS), "train"), {**words, "positive_class": "Flat"})
    with pytest.raises(ValueError, match=r"positive_class 'Flat' is no class of .* it has flat, round"):
        _ = job.class_names


def test_labels_of_an_evaluation_are_numbered_by_the_classes_of_the_network(scans, mine, tmp_path):
    """MONAI's own command knows only model.json, and another list may have its classes in another order."""
    root = tmp_path / "root"
    words = ["train", "--bundle", mine, *QUICK[2:], "--epochs", 1, "--bundle_root", root, "--positive_class", "flat"]
    code, output = command(*words)
    assert code == 0, output
    (root / "data").mkdir()
    configs = [*job_configs(mine, "evaluate"), root / "models" / "model.json"]
    job = BundleJob.read(configs, {"bundle_root": str(root)})
    assert job.class_names == ["round", "flat"]
    names = {item["case"]: job.class_names[item["label"]] for item in job.validation_data.data}
    cases = {case.name: case.label for case in job.item("labelled", "the test").cases if case.split == "test"}
    assert names == cases
    with pytest.raises(ValueError, match=r"has the class 'flat', which is none of the network's \(round, oval\)"):
        job.item("labelled", "the test").items("test", class_names=["round", "oval"])


def test_mistakes_in_plan_and_options_are_found_before_slow_imports(mine, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(mine, copy, ignore=shutil.ignore_patterns("models", "eval"))
    plan = read_config(copy / "configs" / "plan.json")
    with pytest.raises(ValueError, match=r"image_shape must be a list of 4 numbers, not \[36, 36\]"):
        command("train", "--bundle", copy, "--image_shape", "[36, 36]")
    with pytest.raises(ValueError, match="unknown orientation 'SAR'; choose from RAS"):
        command("train", "--bundle", copy, "--orientation", "SAR")
    (copy / "configs" / "plan.json").write_text(json.dumps({**plan, "batchsize": 4}))
    with pytest.raises(ValueError, match=r"has .batchsize., which is no option: did you mean --batch_size\?"):
        command("train", "--bundle", copy)
    (copy / "configs" / "plan.json").write_text(json.dumps({**plan, "spacing_mm": "1 mm"}))
    with pytest.raises(ValueError, match="spacing_mm must be a list of 3 numbers, not '1 mm'"):
        command("train", "--bundle", copy)
    (copy / "configs" / "plan.json").unlink()
    with pytest.raises(ValueError, match="has no labelled scans, and no plan of any: give --data with your list"):
        command("train", "--bundle", copy)


def test_several_channels_are_resampled_to_one_grid(scans, tmp_path):
    rows = []
    for index in range(24):
        write_nifti(tmp_path / f"t1-{index}.nii.gz", index)
        volume, affine = make_volume(index), place(index)
        nibabel.save(
            nibabel.Nifti1Image(volume[::2], affine @ np.diag([2, 1, 1, 1])), tmp_path / f"flair-{index}.nii.gz"
        )
        rows.append([f"t1-{index}.nii.gz", f"flair-{index}.nii.gz", CLASSES[index % 2]])
    write_list(tmp_path / "list.csv", rows, ("T1", "FLAIR", "label"))
    data = ["--data", tmp_path / "list.csv", "--image-column", "T1,FLAIR"]
    code, output = command("train", *data, "--bundle", tmp_path / "new", *QUICK)
    assert code == 0, output
    assert read_config(tmp_path / "new" / "models" / "model.json")["image_shape"][0] == 2
    write_list(tmp_path / "new.csv", [*[row[:2] for row in rows[:2]], [rows[2][0], ""]], ("T1", "FLAIR"))
    code, output = command(
        "predict", "--bundle", tmp_path / "new", "--data", tmp_path / "new.csv", "--output", tmp_path / "out"
    )
    assert code == 1, output
    found = probabilities(tmp_path / "out")
    assert [refused for _, refused in found.values()].count("") == 2
    assert "the channel FLAIR is missing" in found["t1-2.nii.gz"][1] or "channel" in found["t1-2.nii.gz"][1]
    code, output = command("predict", "--bundle", tmp_path / "new", "--input", tmp_path, "--output", tmp_path / "out2")
    assert code == 2
    assert "give a CSV list with a column for each channel" in " ".join(output.split())


@pytest.mark.parametrize("network", ["resnet", "densenet", "segresnet-encoder", "swinunetr-encoder", "vit3d"])
@pytest.mark.parametrize("arm", ["none", "pretrained"])
def test_every_network_can_be_made_with_and_without_a_booster(network, arm):
    job = BundleJob.read(
        job_configs(bundle_path(SCANS), "train", arm, network),
        {"class_names": ["a", "b", "c"], "image_shape": [1, 64, 64, 64], "block": "embedded"},
    )
    made = job.network_definition.eval()
    with torch.inference_mode():
        assert made(torch.zeros(1, 1, 64, 64, 64)).shape == (1, 3)


def test_the_bundle_shares_its_configuration_with_the_other():
    configs = {name: bundle_path(name) / "configs" for name in (SCANS, "medmnist3d_rllm_classification")}
    own, other = (
        {file: read_config(folder / f"{file}.json") for file in ("train", "inference")} for folder in configs.values()
    )
    for key in ("optimizer", "lr_scheduler", "output_transforms", "validate_handlers", "network", "run"):
        assert own["train"][key] == other["train"][key]
    for key in ("trainer", "inferer", "handlers"):
        assert own["train"]["train"][key] == other["train"]["train"][key]
    for key in ("evaluator", "key_metric", "additional_metrics", "postprocessing", "handlers"):
        assert own["train"]["validate"][key] == other["train"]["validate"][key]
    for key in ("journal", "batches", "dataloader", "evaluator", "predictions", "inference_handlers", "postprocessing"):
        assert own["inference"][key] == other["inference"][key]
    for key in ("preprocess", "network_def", "plain_network", "booster", "frozen_block", "reader"):
        assert own["train"][key] == own["inference"][key]


def test_a_copy_has_files_instead_of_links(tmp_path):
    copy_bundle(SCANS, tmp_path / "copy")
    assert not [path for path in (tmp_path / "copy").rglob("*") if path.is_symlink()]
    assert (tmp_path / "copy" / "configs" / "arms" / "none.json").is_file()


def test_monai_and_federated_learning_override_the_data(tmp_path):
    items = [{"image": str(write_nifti(tmp_path / f"{n}.nii.gz", n)), "label": n % 2, "case": str(n)} for n in range(4)]
    copy_bundle(SCANS, tmp_path / "new")
    job = BundleJob.read(
        job_configs(tmp_path / "new", "train"),
        {
            "train#dataset#data": items,
            "class_names": ["a", "b"],
            "image_shape": [1, 24, 24, 24],
        },
    )
    (batch,) = job.item("train#dataloader", "the test")
    assert batch["image"].shape == (4, 1, 24, 24, 24)
