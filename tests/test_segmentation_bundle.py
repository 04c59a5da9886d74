# SPDX-License-Identifier: Apache-2.0
"""Scans with label maps as their users train on them: inspect, train, interrupt and resume, evaluate, predict."""

import csv
import json
import signal
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import interrupted_after
from dicom_files import OBLIQUE
from monai.bundle import verify_net_in_out
from typer.testing import CliRunner

from monai_llmboost.bundle import BundleJob, bundle_path, copy_bundle, job_configs, root_cause
from monai_llmboost.bundle.content import read_config
from monai_llmboost.command_line.app import app
from monai_llmboost.engines import TrainingCheckpoints

pytestmark = [
    # What MONAI, Ignite and torch report on every normal run (MONAI 1.6.1, torch 2.15).
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
SCANS = "scans_segmentation"
QUICK = ["--epochs", 2, "--filters", 4, "--image_shape", "[1, 16, 16, 16]", "--device", "$torch.device('cpu')"]
# The values in the label maps are not the numbers of the classes.
NAMES = {"0": "background", "2": "ball", "5": "stick #1"}


def command(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def write_case(folder, index):
    """Write a ball and a stick in noise, with their label map, on an oblique grid; return their names."""
    random = np.random.default_rng(index)
    shape = random.integers(18, 22, 3)
    places = np.indices(shape) - random.uniform(7, 10, 3)[:, None, None, None]
    labels = np.zeros(shape, np.uint8)
    labels[(places**2).sum(0) < 16] = 2
    labels[2:-2, 3:5, 2:4] = 5
    volume = (labels == 2) * 600 + (labels == 5) * 300 + random.normal(100, 20, shape)
    for kind, array in (("image", volume.astype(np.int16)), ("label", labels)):
        (folder / f"{kind}s").mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, OBLIQUE), folder / f"{kind}s" / f"case {index}.nii.gz")
    return {"image": f"images/case {index}.nii.gz", "label": f"labels/case {index}.nii.gz"}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    cases = [write_case(folder, index) for index in range(10)]
    parts = {"training": cases[:6], "validation": cases[6:8], "test": cases[8:]}
    (folder / "dataset.json").write_text(json.dumps({"labels": NAMES, **parts}))
    return folder


@pytest.fixture(scope="module")
def mine(scans):
    folder = scans / "mine"
    code, output = command("inspect", "--data", scans / "dataset.json", "--bundle", folder)
    assert code == 0, output
    code, output = command("train", "--bundle", folder, *QUICK)
    assert code == 0, output
    return folder


def test_a_trained_folder_knows_structures_and_values(mine):
    record = read_config(mine / "models" / "model.json")
    assert record["label_values"] == [2, 5]
    job = BundleJob.read([*job_configs(mine, "inference"), mine / "models" / "model.json"], {})
    assert job.class_names == ["background", "ball", "stick #1"]
    state = torch.load(mine / "models" / "model.pt", weights_only=True)
    assert "label_values.code" in state


def test_the_dice_of_the_evaluation_is_that_of_the_predicted_masks(scans, mine):
    code, output = command("evaluate", "--bundle", mine)
    assert code == 0, output
    with (mine / "eval" / "predictions.csv").open(newline="") as file:
        evaluated = {Path(row["case"]).name: row for row in csv.DictReader(file)}
    assert set(evaluated) == {"case 8.nii.gz", "case 9.nii.gz"}
    out = scans / "out"
    words = ["--input", scans / "images", "--output", out, "--only", "*[89]*"]
    code, output = command("predict", "--bundle", mine, *words)
    assert code == 0, output
    masks = {path.name: path for path in (out / "masks").rglob("*.nii.gz")}
    assert len(masks) == 2
    for name, row in evaluated.items():
        label = nibabel.load(scans / "labels" / name)
        found = nibabel.load(next(path for file, path in masks.items() if name.removesuffix(".nii.gz") in file))
        assert found.shape == label.shape and np.allclose(found.affine, label.affine, atol=1e-5)
        mask, truth = np.asarray(found.dataobj), np.asarray(label.dataobj)
        assert set(np.unique(mask)) <= {0, 2, 5}
        for value, structure in ((2, "ball"), (5, "stick #1")):
            both = 2 * ((mask == value) & (truth == value)).sum() / ((mask == value).sum() + (truth == value).sum())
            assert float(row[f"dice_{structure}"]) == pytest.approx(both, abs=1e-5)


def test_a_resumed_training_equals_an_uninterrupted_one(mine, tmp_path, monkeypatch):
    last = {}
    for name in ("once", "twice"):
        words = ["train", "--bundle", mine, *QUICK[2:], "--bundle_root", tmp_path / name, "--epochs", 3]
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


def test_names_with_other_values_in_another_list_are_refused(scans, mine, tmp_path):
    """Else an evaluation would compare each structure with the other one."""
    content = json.loads((scans / "dataset.json").read_text())
    (scans / "swapped.json").write_text(json.dumps({**content, "labels": {"5": "ball", "2": "stick #1"}}))
    with pytest.raises(ValueError, match=r"'stick #1' is the value 2 in the label maps of .* and 5 in those of"):
        command("evaluate", "--bundle", mine, "--data", scans / "swapped.json", "--output_dir", tmp_path)
    configs = [*job_configs(bundle_path(SCANS), "evaluate"), mine / "models" / "model.json"]
    words = {"data": str(scans / "swapped.json"), "ckpt_dir": str(mine / "models")}
    with pytest.raises((RuntimeError, ValueError)) as caught:
        BundleJob.read(configs, words).item("validate#dataset", "the test")
    assert "'stick #1' is the value 2" in str(root_cause(caught.value))


def test_a_copy_for_other_tools_needs_only_inference_json(scans, mine, tmp_path):
    """MONAI Label and MONAI's commands read inference.json and metadata.json, and know no model.json."""
    folder = tmp_path / "place" / "copy_segmentation"
    code, output = command("bundle", mine, "--to", folder, "--trained")
    assert code == 0 and "MONAI Label names structures by the network's channel, 1 to 2" in output
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", "configs", "docs", "models"]
    assert not list(folder.rglob("plan*.json")), "it has names of cases"
    texts = {path.name: path.read_text() for path in folder.rglob("*.json")}
    assert not [name for name, text in texts.items() if str(scans) in text], "these are places of the training"
    with pytest.raises(ValueError, match="has no labelled scans, and no plan of any: give --data with your list"):
        command("evaluate", "--bundle", folder)
    words = ["--data", scans / "dataset.json", "--output_dir", tmp_path / "eval"]
    code, output = command("evaluate", "--bundle", folder, *words)
    assert code == 0, output
    job = BundleJob.read([folder / "configs" / "inference.json"], {})
    image = str(scans / "images" / "case 9.nii.gz")
    network = job.network_definition.eval()
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    item = job.item("preprocessing", "the test")({"image": image})
    with torch.no_grad():
        item["pred"] = job.item("inferer", "the test")(item["image"][None], network)[0]
    mask = job.item("postprocessing", "the test")(item)["pred"][0]
    code, output = command("predict", "--bundle", mine, "--input", image, "--output", tmp_path / "out", "--no-report")
    assert code == 0, output
    (written,) = (tmp_path / "out" / "masks").rglob("*.nii.gz")
    assert np.array_equal(mask, nibabel.load(written).dataobj)
    formats = read_config(folder / "configs" / "metadata.json")["network_data_format"]
    assert formats["inputs"]["image"]["spatial_shape"] == [16, 16, 16]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "ball", "2": "stick #1"}
    assert formats["post_processed_outputs"]["pred"]["channel_def"] == NAMES
    places = {"meta_file": folder / "configs" / "metadata.json", "config_file": folder / "configs" / "inference.json"}
    verify_net_in_out(net_id="network_def", bundle_root=str(folder), **{key: str(v) for key, v in places.items()})


@pytest.mark.filterwarnings("ignore")  # Ray warns of much
def test_masks_of_actors_on_ray_are_those_of_one_process(mine, scans, tmp_path, monkeypatch):
    """On a cluster that is started for the run and ended after it."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'monai-llmboost[ray]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    files = []
    for engine in (["local"], ["ray", "--actors", 1]):
        out = tmp_path / engine[0]
        words = ["--input", scans / "images", "--only", "case [1-3]*", "--output", out, "--device", "cpu"]
        code, output = command("predict", "--bundle", mine, *words, "--engine", *engine)
        assert code == 0, output
        files.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*.nii.gz")})
        table = json.loads((out / "predictions.json").read_text())["cases"]
        files.append([{**row, "seconds": 0} for row in table])
    signal.signal(signal.SIGTERM, handler)  # in whose place Ray puts its own
    assert len(files[0]) == 3
    assert files[0] == files[2]
    assert files[1] == files[3]
    assert not ray.is_initialized()


def test_training_and_inference_have_the_same_network_and_steps():
    own = {name: read_config(bundle_path(SCANS) / "configs" / f"{name}.json") for name in ("train", "inference")}
    other = read_config(bundle_path("scans_classification") / "configs" / "train.json")
    for key in ("preprocess", "network_def", "plain_network", "booster", "frozen_block", "reader", "load_transforms"):
        assert own["train"][key] == own["inference"][key]
    for key in ("optimizer", "booster", "frozen_block", "reader", "network", "validate_handlers", "run"):
        assert own["train"][key] == other[key]


def test_monai_label_overrides_the_data(scans, tmp_path):
    items = [{key: str(scans / f"{key}s" / f"case {index}.nii.gz") for key in ("image", "label")} for index in range(3)]
    copy_bundle(SCANS, tmp_path / "new")
    values = {"train#dataset#data": items, "class_names": ["background", "ball", "stick"], "label_values": [2, 5]}
    job = BundleJob.read(job_configs(tmp_path / "new", "train"), {**values, "image_shape": [1, 16, 16, 16]})
    batches = list(job.item("train#dataloader", "the test"))
    assert [tuple(batch["label"].shape) for batch in batches] == [(2, 1, 16, 16, 16), (1, 1, 16, 16, 16)]
    assert {value for batch in batches for value in batch["label"].unique().tolist()} == {0, 1, 2}
