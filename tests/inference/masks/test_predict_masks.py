# SPDX-License-Identifier: Apache-2.0
"""Masks of whole runs: one phantom in many forms, what is refused, kills, names, probabilities."""

import csv
import json
import os
import shutil
import signal
import sys
import time

import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT
from dicom_files import write_series
from processes import start_python
from scipy import ndimage

from monai_llmboost.bundle import BundleJob, copy_bundle, job_configs
from monai_llmboost.inference.run import run_predict

pytestmark = [
    # What MONAI, Ignite and torch report on every normal run (MONAI 1.6.1, torch 2.15).
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
# Values of the structures of the phantom in masks, and intensities from which they are.
STRUCTURES = {"shell": (4, 300), "core": (2, 500)}
DEVICE = {"device": "$torch.device('cpu')"}


def set_thresholds(network):
    """Make a 1x1x1 convolution give the class of each intensity, 0 to 1 for 0 to 1000."""
    conv = next(module for module in network.modules() if isinstance(module, torch.nn.Conv3d))
    with torch.no_grad():
        conv.weight[:] = torch.tensor([0.0, 40.0, 80.0]).view(3, 1, 1, 1, 1)
        conv.bias[:] = torch.tensor([0.0, -12.0, -32.0])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A copy of the bundle whose network is one convolution that knows the phantom."""
    folder = tmp_path_factory.mktemp("segmentation") / "mine"
    copy_bundle("scans_segmentation", folder)
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["plain_network"] = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1}
    config |= {"booster": None, "at": None, "intensity": "window", "intensity_range": [0.0, 1000.0]}
    config |= {"class_names": ["background", *STRUCTURES], "label_values": [v for v, _ in STRUCTURES.values()]}
    config |= {"image_shape": [1, 24, 24, 24], **DEVICE}
    path.write_text(json.dumps(config))
    network = BundleJob.read(job_configs(folder, "inference"), {}).network_definition
    set_thresholds(network)
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def phantom(affine, shape):
    """Return a smooth ellipsoid at a place in mm, brightest in its middle, and its label map."""
    places = np.tensordot(affine[:3, :3], np.indices(shape), 1) + affine[:3, 3, None, None, None]
    away = np.sqrt(((places / np.array([20.0, 18.0, 19.0])[:, None, None, None]) ** 2).sum(0))
    values = 1000 / (1 + away**2)
    labels = np.zeros(shape, np.uint8)
    for value, least in STRUCTURES.values():
        labels[values > least] = value
    return np.rint(values).astype(np.int16), labels


def centred(axes, shape):
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def turn(degrees, *axes):
    angle = np.deg2rad(degrees)
    matrix = np.eye(3)
    matrix[np.ix_(axes, axes)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


SHAPE = (62, 58, 50)
ORIGINAL = centred(np.diag([1.25, 1.25, 1.5]), SHAPE)


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The phantom in many forms: affine, label map and file of each."""
    folder = tmp_path_factory.mktemp("forms")
    volume, labels = phantom(ORIGINAL, SHAPE)
    flip = np.diag([-1.0, 1, -1, 1])
    flip[[0, 2], 3] = SHAPE[0] - 1, SHAPE[2] - 1
    swap = np.eye(4)[:, [2, 0, 1, 3]]
    shift = np.eye(4)
    shift[:3, 3] = 3, 2, 4
    made = {
        "original": (ORIGINAL, volume, labels),
        "flipped": (ORIGINAL @ flip, volume[::-1, :, ::-1], labels[::-1, :, ::-1]),
        "permuted": (ORIGINAL @ swap, volume.transpose(2, 0, 1), labels.transpose(2, 0, 1)),
        "cropped": (ORIGINAL @ shift, volume[3:-2, 2:-3, 4:-1], labels[3:-2, 2:-3, 4:-1]),
    }
    for name, axes, shape in (
        ("oblique", turn(25, 0, 1) @ turn(-15, 1, 2) @ np.diag([1.25, 1.25, 1.5]), (70, 66, 58)),
        ("anisotropic", np.diag([0.8, 0.8, 2.5]), (96, 92, 28)),
    ):
        affine = centred(axes, shape)
        made[name] = (affine, *phantom(affine, shape))
    for name, (affine, voxels, _) in made.items():
        image = nibabel.Nifti1Image(voxels, affine)
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="mni")
        nibabel.save(image, folder / f"{name}.nii.gz")
    write_series(folder / "dicom", made["oblique"][1], made["oblique"][0])
    made["dicom"] = made["oblique"]
    return folder, {name: (affine, labels) for name, (affine, _, labels) in made.items()}


@pytest.fixture(scope="module")
def predicted(bundle, forms, tmp_path_factory):
    output = tmp_path_factory.mktemp("predicted") / "out"
    result = run_predict(bundle, output, None, dataset_dir=[str(forms[0])], report=False, probabilities=True)
    assert result.counts == {"predicted": 7, "refused": 0, "skipped": 0}
    return output, {row.case.removesuffix(".nii.gz"): row for row in result.rows}


def mask_of(predicted, name):
    output, rows = predicted
    image = nibabel.load(output / rows[name].mask)
    return np.asarray(image.dataobj), image


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize("form", ["original", "flipped", "permuted", "cropped", "oblique", "anisotropic", "dicom"])
def test_the_mask_of_each_form_is_right_on_its_own_grid(predicted, forms, form):
    affine, labels = forms[1][form]
    mask, image = mask_of(predicted, form)
    assert mask.dtype == np.uint8 and mask.shape == labels.shape
    assert np.allclose(image.affine, affine, atol=1e-4)
    row = predicted[1][form]
    for name, (value, _) in STRUCTURES.items():
        assert dice(mask == value, labels == value) >= 0.99, name
        mm3 = (mask == value).sum() * abs(np.linalg.det(affine[:3, :3]))
        assert row.answer["volume_mm3"][name] == pytest.approx(mm3, rel=1e-5)
    if form != "dicom":
        codes = int(image.header["sform_code"]), int(image.header["qform_code"])
        assert codes == (1, 4) and image.header.get_xyzt_units()[0] == "mm"
        assert np.array_equal(image.header["quatern_b"], nibabel.load(forms[0] / row.case).header["quatern_b"])


@pytest.mark.parametrize(
    ("form", "back"),
    [
        ("flipped", lambda mask: mask[::-1, :, ::-1]),
        ("permuted", lambda mask: mask.transpose(1, 2, 0)),
        ("oblique", None),
        ("anisotropic", None),
    ],
)
def test_the_forms_agree_with_the_original(predicted, forms, form, back):
    output, rows = predicted
    original = mask_of(predicted, "original")[0]
    if back is not None:
        assert np.array_equal(back(mask_of(predicted, form)[0]), original)
        return
    into = np.linalg.inv(forms[1][form][0]) @ ORIGINAL
    files = [output / rows[form].answer["probability_files"][name] for name in STRUCTURES]
    every = [np.asarray(nibabel.load(file).dataobj) for file in files]
    moved = [ndimage.affine_transform(values, into, output_shape=SHAPE, order=1) for values in every]
    classes = np.argmax([1 - sum(moved), *moved], axis=0)
    for number, (value, _) in enumerate(STRUCTURES.values(), start=1):
        assert dice(classes == number, original == value) >= 0.99


def test_tables_and_probabilities(predicted):
    output, rows = predicted
    with (output / "predictions.csv").open(newline="") as file:
        cells = {row["case"]: row for row in csv.DictReader(file)}
    row = cells["original.nii.gz"]
    assert row["mask"] == "masks/original.nii.gz" and cells["dicom"]["mask"] == "masks/dicom.nii.gz"
    assert float(row["volume_mm3_core"]) == rows["original"].answer["volume_mm3"]["core"] > 0
    case = json.loads((output / "predictions.json").read_text())["cases"][0]
    assert case["mask"] and "predicted" not in case and "probabilities" not in case
    run = json.loads((output / "run.json").read_text())
    assert run["class_names"] == ["background", "shell", "core"]
    values = {
        name: np.asarray(nibabel.load(output / path).dataobj)
        for name, path in rows["anisotropic"].answer["probability_files"].items()
    }
    mask = mask_of(predicted, "anisotropic")[0]
    clear = abs(values["core"] - values["shell"]) > 0.01
    core = (values["core"] > values["shell"]) & (values["core"] > 1 - values["core"] - values["shell"])
    assert np.array_equal(core[clear], (mask == 2)[clear])


def test_the_keys_that_monai_label_reads_give_the_mask(bundle, forms, predicted):
    job = BundleJob.read(job_configs(bundle, "inference"), {})
    item = {"image": str(forms[0] / "anisotropic.nii.gz")}
    item = job.item("preprocessing", "the test")(item)
    with torch.no_grad():
        item["pred"] = job.item("inferer", "the test")(item["image"][None], trained(job, bundle))[0]
    labels = job.item("postprocessing", "the test")(item)["pred"]
    assert np.array_equal(labels[0].numpy(), mask_of(predicted, "anisotropic")[0])
    assert list(labels.shape[1:]) == list(item["image"].meta["spatial_shape"]), "nothing is left to restore"


def trained(job, bundle):
    network = job.network_definition
    network.load_state_dict(torch.load(bundle / "models" / "model.pt"))
    return network.eval()


def files_of(output):
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*.nii.gz")}


def test_a_bad_case_stops_no_other(bundle, tmp_path):
    volume, _ = phantom(ORIGINAL, SHAPE)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "sub").mkdir()
    good = nibabel.Nifti1Image(volume, ORIGINAL)
    nibabel.save(good, folder / "a.nii.gz")
    write_series(folder / "a", volume[:20, :20, :20], ORIGINAL)  # the same mask name
    nibabel.save(nibabel.Nifti1Image(np.stack([volume] * 2, 3), ORIGINAL), folder / "b-4d.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.where(volume == volume.max(), np.nan, volume), ORIGINAL), folder / "c.nii")
    (folder / "d.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:2000])
    nibabel.save(good, folder / "sub" / "z.nii")
    result = run_predict(bundle, tmp_path / "out", None, dataset_dir=[str(folder)], report=False)
    rows = {row.case: row for row in result.rows}
    assert result.status == 1
    assert {case for case, row in rows.items() if row.refused} == {"b-4d.nii.gz", "c.nii", "d.nii.gz"}
    assert not any(row.mask for row in result.rows if row.refused)
    masks = {case: row.mask for case, row in rows.items() if row.mask}
    assert len(set(masks.values())) == 3 and masks["sub/z.nii"] == "masks/sub/z.nii.gz"
    whole = np.asarray(nibabel.load(tmp_path / "out" / masks["a.nii.gz"]).dataobj)
    assert whole.shape == SHAPE and np.array_equal(nibabel.load(tmp_path / "out" / masks["sub/z.nii"]).dataobj, whole)
    assert nibabel.load(tmp_path / "out" / masks["a"]).shape == (20, 20, 20)
    # Again: nothing is predicted but the case whose mask is gone.
    before = files_of(tmp_path / "out")
    (tmp_path / "out" / masks["a"]).unlink()
    again = run_predict(bundle, tmp_path / "out", None, dataset_dir=[str(folder)], report=False)
    assert files_of(tmp_path / "out") == before
    assert {row.case for row in again.rows if row.run == 2} >= {"a"}
    assert not {row.case for row in again.rows if row.run == 2} & {"a.nii.gz", "sub/z.nii"}


def test_names_are_hidden_and_one_volume_is_chosen(bundle, tmp_path):
    volume, _ = phantom(ORIGINAL, SHAPE)
    folder = tmp_path / "in"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(np.stack([volume, 0 * volume], 3), ORIGINAL), folder / "Doe.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.stack([0 * volume, volume], 3), ORIGINAL), folder / "Roe.nii.gz")
    options = {"dataset_dir": [str(folder)], "report": False, "salt": "pepper", "volume": 1}
    result = run_predict(bundle, tmp_path / "out", None, only=["Roe*"], **options)
    (row,) = result.rows
    assert row.mask == f"masks/{row.case}.nii.gz" and row.answer["volume_mm3"]["core"] > 0
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any("oe" in path.relative_to(tmp_path).as_posix() for path in written)
    assert not any(b"Roe" in path.read_bytes() for path in written)


def test_an_output_that_is_not_finite_is_refused(bundle, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    weights = torch.load(broken / "models" / "model.pt")
    weights[next(name for name in weights if name.endswith("bias"))][1] = torch.nan
    torch.save(weights, broken / "models" / "model.pt")
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(phantom(ORIGINAL, SHAPE)[0], ORIGINAL), tmp_path / "in" / "a.nii.gz")
    result = run_predict(broken, tmp_path / "out", None, dataset_dir=[str(tmp_path / "in")], report=False)
    assert result.rows[0].refused_kind == "not-finite" and "output is not finite" in result.rows[0].refused
    assert not (tmp_path / "out" / "masks").exists()


def test_killed_runs_are_resumed_to_the_same_files(bundle, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(12):
        affine = centred(turn(9 * number, 0, 1) * 0.8, SHAPE)
        nibabel.save(nibabel.Nifti1Image(phantom(affine, SHAPE)[0], affine), folder / f"{number:02d}.nii.gz")
    whole = run_predict(bundle, tmp_path / "whole", None, dataset_dir=[str(folder)], report=False)
    words = ["--bundle", str(bundle), "--input", str(folder), "--output", str(tmp_path / "out"), "--no-report"]
    journal = tmp_path / "out" / "journal" / "rank-0.jsonl"
    # Another number of threads rounds other sums: a voxel between two structures may change.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    for least in (2, 7):  # lines of the journal, the first of which is the key
        command = [sys.executable, "-W", "ignore", "-m", "monai_llmboost", "predict", *words]
        process = start_python(command, tmp_path, cwd=ROOT, env=environment)
        while process.is_alive() and (not journal.exists() or journal.read_bytes().count(b"\n") < least):
            time.sleep(0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was still at work"
    assert 1 <= journal.read_bytes().count(b"\n") - 1 < 12
    resumed = run_predict(bundle, tmp_path / "out", None, dataset_dir=[str(folder)], report=False)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert [row.answer for row in resumed.rows] == [row.answer for row in whole.rows]
