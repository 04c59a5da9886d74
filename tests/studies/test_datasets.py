# SPDX-License-Identifier: Apache-2.0
"""Before the runs of a study begin: its data are there, fetched once, and enough."""

import hashlib
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import medmnist.info
import numpy as np
import pytest
from conftest import BUNDLE

from monai_llmboost.data import LabelledVolumes
from monai_llmboost.data.datasets.named import SETS
from monai_llmboost.data.datasets.phantoms import phantom_arrays
from monai_llmboost.studies import NOTHING_DONE, Plan, run_study
from monai_llmboost.studies.collect import read_test
from monai_llmboost.studies.datasets import check_datasets
from monai_llmboost.studies.plan import Run
from monai_llmboost.studies.rates import ChosenRate, choose_rates
from monai_llmboost.studies.run_folder import EpochResult, RunFolder, Trained
from monai_llmboost.tasks import Classification

CASES = {"train": 4, "val": 4, "test": 4}


class Zenodo(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def zenodo(tmp_path, monkeypatch):
    """A stand-in on loopback that serves a small "official" file to medmnist's own download."""
    folder = tmp_path / "zenodo"
    folder.mkdir()
    arrays = {}
    for split, cases in CASES.items():
        arrays[f"{split}_images"] = np.zeros((cases, 28, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.arange(cases, dtype=np.uint8)[:, None] % 2
    np.savez_compressed(folder / "adrenalmnist3d.npz", **arrays)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Zenodo, directory=str(folder)))
    server.asked = []
    entry = {**medmnist.info.INFO["adrenalmnist3d"], "n_samples": CASES}
    entry["MD5"] = hashlib.md5((folder / "adrenalmnist3d.npz").read_bytes()).hexdigest()
    entry["url"] = f"http://127.0.0.1:{server.server_port}/adrenalmnist3d.npz"
    monkeypatch.setitem(medmnist.info.INFO, "adrenalmnist3d", entry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def plan_of(datasets=("adrenalmnist3d",), **options):
    return Plan(BUNDLE, ("none", "mlp"), datasets, seeds=1, options=options)


def test_a_download_is_done_once_before_the_first_run_begins(zenodo, tmp_path, monkeypatch):
    begun = []

    def no_machine(jobs, parallel):
        begun.extend(zenodo.asked)
        for job in jobs:
            assert len(LabelledVolumes("adrenalmnist3d", "train", root=tmp_path / "data", download=True)) == 4
            yield {job.name: "not trained here"}

    monkeypatch.setattr("monai_llmboost.studies.study.run_locally", no_machine)
    plan = plan_of(download=True, dataset_dir=str(tmp_path / "data"))
    assert run_study(plan, tmp_path / "study", jobs=2) == NOTHING_DONE
    assert begun, "it was fetched from the stand-in"
    assert zenodo.asked == begun


def test_a_download_that_fails_is_reported_by_its_own_message(zenodo, tmp_path, monkeypatch):
    monkeypatch.setitem(medmnist.info.INFO["adrenalmnist3d"], "url", "http://127.0.0.1:1/adrenalmnist3d.npz")
    with pytest.raises(ConnectionError, match=r"cannot download adrenalmnist3d\.npz: check the network, or put"):
        check_datasets(plan_of(download=True, dataset_dir=str(tmp_path / "data")))


def test_nothing_is_fetched_unasked(zenodo, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adrenalmnist3d\.npz is not in .*add `--download True`"):
        check_datasets(plan_of(dataset_dir=str(tmp_path / "data")))
    assert zenodo.asked == []


@pytest.mark.parametrize(("cases", "rare"), [(1, "1 of shell, 0 of ring"), (3, "1 of ring"), (4, None)])
def test_each_class_needs_two_test_cases(monkeypatch, cases, rare):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 4, "val": 4, "test": cases})
    plan = plan_of(("phantom",), size=8)
    if rare is None:
        check_datasets(plan)
        return
    with pytest.raises(ValueError, match=f"each class of phantom needs 2 test cases or more, not {rare}: give more"):
        check_datasets(plan)


def test_one_patient_is_refused_before_the_first_run(monkeypatch):
    def load(patients, split, size, *_):
        images, labels = phantom_arrays(split, size)
        return images, labels, np.arange(len(labels)) % patients

    plan = plan_of(("phantom",), size=8)
    for patients in (1, 2):
        monkeypatch.setitem(SETS, "phantom", replace(SETS["phantom"], load=partial(load, patients)))
        if patients == 2:
            check_datasets(plan)
            continue
        with pytest.raises(ValueError, match="all test cases of phantom are of one patient: give test cases of other"):
            check_datasets(plan)


def test_a_predicted_case_without_a_patient_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "test").mkdir()
    table = "case,p_a,p_b,predicted,label\nx,0.5,0.5,a,a\ny,0.5,0.5,a,b\n"
    (tmp_path / "test" / "predictions.csv").write_text(table)
    task = Classification(["a", "b"])
    assert read_test({"none": [folder]}, "test", task, {}).patients is None
    assert read_test({"none": [folder]}, "test", task, {"x": "1", "y": "1"}).patients.tolist() == ["1", "1"]
    with pytest.raises(ValueError, match="the data set has no patient for the predicted case 'y': name its cases"):
        read_test({"none": [folder]}, "test", task, {"x": "1", "Y": "2"})


def test_a_rate_by_which_one_seed_diverged_is_never_chosen(tmp_path):
    plan = Plan(BUNDLE, ("none", "mlp"), ("phantom",), seeds=2, lr_grid=(0.001, 0.01, 0.1), lr_seeds=2)
    found = {0.001: [0.7, 0.7], 0.01: [0.6, 0.6], 0.1: [0.9, None]}
    for rate, values in found.items():
        for seed, value in enumerate(values):
            for arm in plan.arms:
                folder = tmp_path / Run("phantom", arm, seed, rate).name
                folder.mkdir(parents=True)
                if value is None or (arm == "mlp" and seed == 1):
                    (folder / "diverged.json").write_text('{"reason": "training has diverged"}')
                else:
                    end = EpochResult(1, value)
                    RunFolder(folder).write_trained(Trained(end, end))
    folders = {run: RunFolder(tmp_path / run.name) for run in plan.searched("phantom")}
    assert choose_rates(plan, folders, "phantom") == {
        "none": ChosenRate(0.001, {"0.001": 0.7, "0.01": 0.6}, [0.1], True)
    }, "mlp, of which each rate has a seed that diverged, has failed"
