# SPDX-License-Identifier: Apache-2.0
"""Whole studies by the command, small: their files, failed runs, exact resuming, other bundles."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import BUNDLE, SMALL
from filelock import FileLock
from typer.testing import CliRunner

from monai_llmboost.bundle import copy_bundle
from monai_llmboost.command_line.app import app
from monai_llmboost.engines.curves import read_curves
from monai_llmboost.inference import load_network
from monai_llmboost.studies import Plan, compare_arms, cost_of_arms
from monai_llmboost.studies.plan_file import keep_plan

pytestmark = pytest.mark.filterwarnings("ignore")
NETWORK = [f"--{key}={value}" for key, value in {**SMALL, "size": 8}.items()]
GRID = ["--arms", "none,pretrained", "--seeds", "2", "--lr-grid", "1e-3,3e-3", "--epochs", "2", "--jobs", "2"]


def command(*words):
    return CliRunner().invoke(app, ["study", *map(str, words)])


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def bare(results):
    """Results without what the load of the machine or the command line changes."""
    datasets = {name: {**data, "cost": None} for name, data in results["datasets"].items()}
    return {**results, "command": None, "datasets": datasets}


def predictions_of(folder, names, place="test"):
    """Probabilities (runs, cases, classes) and labels (cases,) from the files."""
    tables = []
    for name in names:
        with (folder / "runs" / name / place / "predictions.csv").open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    classes = [column[2:] for column in tables[0][0] if column.startswith("p_")]
    labels = np.array([classes.index(row["label"]) for row in tables[0]])
    return np.array([[[float(row[f"p_{c}"]) for c in classes] for row in rows] for rows in tables]), labels


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The bundle without the intervals of each run alone, which a study does not read and which take seconds."""
    folder = tmp_path_factory.mktemp("bundle") / "quick"
    copy_bundle(BUNDLE, folder)
    file = folder / "configs" / "evaluate.json"
    config = json.loads(file.read_text())
    del config["evaluate_handlers"]["metrics"]
    file.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def words(bundle):
    return ["--bundle", bundle, "--floors", "none", *NETWORK]


@pytest.fixture(scope="module", autouse=True)
def short_timing():
    """The cost is measured in this process; its rounds are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "monai_llmboost.studies.study.cost_of_arms",
            lambda arms, options, rounds, own: cost_of_arms(arms, options, 1, own),
        )
        patch.setattr("monai_llmboost.studies.jobs.INTERVAL", 0.1)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, words):
    """A study that ran undisturbed, and its output."""
    folder = tmp_path_factory.mktemp("ünd isturbed @$1") / "study"
    done = command("--output", folder, *GRID, *words)
    assert done.exit_code == 0, done.output
    return folder, done.output


def test_it_leaves_everything_next_to_its_plan(finished, bundle):
    folder, output = finished
    assert {file.name for file in folder.iterdir()} == {
        "cost.json",
        "lock",
        "report.html",
        "results.json",
        "runs",
        "study.json",
    }
    plan = json.loads((folder / "study.json").read_text())
    assert plan.pop("digests").keys() == {"configs", "files"}
    assert plan["options"] == {**SMALL, "size": 8, "epochs": 2}
    assert (plan["arms"], plan["lr_grid"], plan["seeds"]) == (["none", "pretrained"], [1e-3, 3e-3], 2)
    results = results_of(folder)
    assert results["study"] == {**plan, "chosen_by": "epoch of the best validation AUC"}
    assert set(results) == {"study", "metrics", "software", "device", "command", "model_card", "datasets"}
    assert results["metrics"] == {name: {"label": name.upper(), "larger_is_better": True} for name in ("auc", "acc")}
    assert results["datasets"]["phantom"].keys() == {
        *("cases", "class_names", "learning_rates", "arms", "comparisons", "curves", "roc", "cost", "diagnostics"),
        *("floors", "caveats"),
    }
    for comparison in results["datasets"]["phantom"]["comparisons"]:
        assert comparison["metric"] != "auc" or comparison["verdict"] in output
    assert "pretrained against none: AUC" in (folder / "report.html").read_text()
    assert json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail), "no NaN"
    for arm in plan["arms"]:
        run = next((folder / "runs" / "phantom" / arm).glob("*/seed1"))
        assert load_network(run).record["arm"] == arm, "each run describes itself"


def test_the_results_of_each_arm(finished):
    folder, _ = finished
    data = results_of(folder)["datasets"]["phantom"]
    assert data["cases"] == {"train": 480, "val": 120, "test": 240}
    for arm, summary in data["arms"].items():
        rate = data["learning_rates"][arm]["chosen"]
        runs = [folder / "runs" / "phantom" / arm / f"lr{rate:g}" / f"seed{seed}" for seed in (0, 1)]
        ends = [json.loads((run / "trained.json").read_text()) for run in runs]
        assert summary["epochs"] == [end["best"]["epoch"] for end in ends]
        assert summary["validation_auc"]["runs"] == [end["best"]["validation"] for end in ends]
        curves = [read_curves(run / "learning_curves.csv") for run in runs]
        assert data["curves"][arm] == {
            "epoch": [1, 2],
            "train_loss": [[row["train_loss"] for row in run] for run in curves],
            "validation_auc": [[row["val_auc"] for row in run] for run in curves],
        }
        assert [max(row["val_auc"] for row in run) for run in curves] == summary["validation_auc"]["runs"]
        assert summary["failed"] == []
        assert summary["beside"]["what"] == "last epoch"
        roc = data["roc"][arm]
        areas = [np.trapezoid(curve, roc["false_positive_rate"]) for curve in roc["true_positive_rate"]]
        assert areas == pytest.approx(summary["auc"]["runs"], abs=0.01)
    assert data["diagnostics"]["none"] is None
    assert len(data["diagnostics"]["pretrained"]["cka_block"]["runs"]) == 2
    assert list(data["cost"]["arms"]) == ["none", "pretrained"]


def test_its_statistics_are_those_of_the_stored_predictions(finished):
    folder, _ = finished
    data = results_of(folder)["datasets"]["phantom"]
    found = {"test": {}, "other_weights": {}}
    for place, arms in found.items():
        for arm in ("none", "pretrained"):
            rate = data["learning_rates"][arm]["chosen"]
            names = [f"phantom/{arm}/lr{rate:g}/seed{seed}" for seed in (0, 1)]
            arms[arm], labels = predictions_of(folder, names, place)
    assert found["test"]["none"].shape == (2, 240, 2)
    for given, each in zip(data["comparisons"], compare_arms(found["test"], labels, ["none"]), strict=True):
        assert given == {**each.as_dict(), "verdict": given["verdict"]}
        assert each.verdict in given["verdict"]
        assert "The block of pretrained was practically not in use: its booster adds" in given["verdict"]
    for arm in ("none", "pretrained"):
        area = [np.mean([(p > q) + (p == q) / 2 for p in run[labels == 1, 1] for q in run[labels == 0, 1]])
                for run in found["test"][arm]]  # fmt: skip
        assert data["arms"][arm]["auc"]["runs"] == pytest.approx(area)


def test_validation_chooses_the_learning_rate(finished):
    folder, output = finished
    rates = results_of(folder)["datasets"]["phantom"]["learning_rates"]
    for arm, rate in rates.items():
        found = {}
        for name in ("0.001", "0.003"):
            end = json.loads((folder / "runs" / "phantom" / arm / f"lr{name}" / "seed0" / "trained.json").read_text())
            found[name] = end["best"]["validation"]
        best = float(max(found, key=found.get))
        assert rate == {"chosen": best, "validation_auc": found, "diverged": [], "at_edge": True}
        assert f"phantom, {arm}: learning rate {rate['chosen']:g}" in output


def test_the_test_split_is_read_when_all_training_is_done_and_of_the_chosen_rate_alone(finished):
    folder, _ = finished
    trained = list(folder.rglob("trained.json"))
    predicted = list(folder.rglob("predictions.csv"))
    assert len(trained) == 2 * 2 + 2, "the seed that chose is not trained again"
    assert max(file.stat().st_mtime_ns for file in trained) < min(file.stat().st_mtime_ns for file in predicted)
    rates = results_of(folder)["datasets"]["phantom"]["learning_rates"]
    assert {file.relative_to(folder / "runs").parent.as_posix() for file in predicted} == {
        f"phantom/{arm}/lr{rate['chosen']:g}/seed{seed}/{place}"
        for arm, rate in rates.items() for seed in (0, 1) for place in ("test", "other_weights")
    }  # fmt: skip


def test_a_finished_study_is_not_run_again(finished, words):
    folder, _ = finished
    before = {file: file.stat().st_mtime_ns for file in (folder / "runs").rglob("*")}
    page = (folder / "report.html").read_bytes()
    done = command("--output", folder, *GRID, *words)
    assert done.exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in (folder / "runs").rglob("*")} == before
    assert (folder / "report.html").read_bytes() == page


def test_its_page_is_drawn_again(finished):
    folder, _ = finished
    page = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    done = command("--report", folder)
    assert (done.exit_code, done.output) == (0, f"drawn again: {folder / 'report.html'}\n")
    assert (folder / "report.html").read_bytes() == page
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.name != "report.html"} == before


def test_another_plan_is_refused_in_its_folder(finished, words):
    folder, _ = finished
    for changed, message in {
        "--seeds=1": "was begun with seeds 2, which may become more, but not 1: give --seeds 2 or more",
        "--arms=none,mlp": "was begun with arms none, pretrained, so pretrained cannot be left out: name them too",
        "--arms=pretrained,none": "was begun with arms in the order none, pretrained, not pretrained, none: keep",
        "--references=none": "was begun with references none, mlp, random, so mlp, random cannot be left out",
        "--lr-grid=1e-3,3e-3,1e-2": "was begun with lr_grid [0.001, 0.003], not [0.001, 0.003, 0.01]: resume it",
        "--lr-seeds=2": "was begun with lr_seeds 1, not 2",
        "--folds=2": "was begun with folds 0, not 2",
        "--preset=rllm": "was begun with preset None, not 'rllm'",
        "--epochs=3": "was begun with options",
    }.items():
        done = command("--output", folder, *GRID, *words, changed)
        assert done.exit_code == 2
        assert message in done.stderr and "give another --output" in done.stderr
    assert results_of(folder)["study"]["seeds"] == 2


def test_a_grown_study_equals_one_that_began_with_everything(tmp_path, words):
    """Another arm in the middle, and few labels: nothing is trained twice, and all costs are measured again."""
    small = ["--epochs", 1, "--jobs", 2, "--batch_size", 120, "--seeds", 1, *words]
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    assert command("--output", grown, "--arms", "none,pretrained", *small).exit_code == 0
    begun = {file: file.stat().st_mtime_ns for file in (grown / "runs").rglob("*") if file.is_file()}
    assert list(json.loads((grown / "cost.json").read_text())["arms"]) == ["none", "pretrained"]
    for folder in (grown, whole):
        done = command("--output", folder, "--arms", "none,mlp,pretrained", "--label-fraction", "0.1,1", *small)
        assert done.exit_code == 0, done.output
    assert {file: file.stat().st_mtime_ns for file in begun} == begun
    results = results_of(grown)
    assert bare(results) == bare(results_of(whole))
    assert list(json.loads((grown / "cost.json").read_text())["arms"]) == ["none", "mlp", "pretrained"]
    assert (grown / "study.json").read_text() == (whole / "study.json").read_text()
    few = results["datasets"]["phantom, 10 % of labels"]
    assert [results["datasets"]["phantom"]["cases"], few["cases"]] == [
        {"train": cases, "val": 120, "test": 240} for cases in (480, 48)
    ]
    assert few["arms"]["none"]["auc"] != results["datasets"]["phantom"]["arms"]["none"]["auc"]
    assert "<h2>Label curves</h2>" in (grown / "report.html").read_text()


def test_more_seeds_make_the_study_that_began_with_them(finished, tmp_path, words):
    """A folder without the second seed is that of a study with one."""
    folder = tmp_path / "study"
    shutil.copytree(finished[0], folder)
    plan = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps({**plan, "seeds": 1}))
    for run in folder.rglob("seed1"):
        shutil.rmtree(run)
    assert command("--output", folder, *GRID, *words).exit_code == 0
    assert bare(results_of(folder)) == bare(results_of(finished[0]))


def test_what_a_study_may_grow_by(tmp_path, bundle):
    """Nothing is trained here."""
    file, costs = tmp_path / "study.json", tmp_path / "cost.json"

    def keep(arms, datasets, seeds=1, references=("none", "mlp", "random")):
        costs.write_text("{}")
        keep_plan(Plan(str(bundle), arms, datasets, seeds, references=references), file, costs)
        return costs.exists()

    assert keep(("none", "pretrained"), ("phantom",))
    assert keep(("none", "pretrained"), ("phantom", "adrenalmnist3d"), 2), "the costs are those of the first set"
    assert not keep(("none", "pretrained"), ("vesselmnist3d", "phantom", "adrenalmnist3d"), 2)
    assert not keep(("none", "pretrained", "lora"), ("vesselmnist3d", "phantom", "adrenalmnist3d"), 3)
    last = (("none", "pretrained", "lora"), ("vesselmnist3d", "phantom", "adrenalmnist3d"), 3)
    assert keep(*last, references=("none", "mlp", "random", "lora"))
    kept = json.loads(file.read_text())
    assert (kept["seeds"], kept["references"]) == (3, ["none", "mlp", "random", "lora"])
    with pytest.raises(ValueError, match=r"begun with datasets .*, so vesselmnist3d cannot be left out: name them too"):
        keep(last[0], ("phantom", "adrenalmnist3d"), 3)
    del kept["references"]  # a key that a version may not have had
    file.write_text(json.dumps(kept))
    assert keep(*last)
    config = json.loads((bundle / "configs" / "train.json").read_text())
    own = tmp_path / "own"
    shutil.copytree(bundle, own)
    (own / "configs" / "train.json").write_text(json.dumps({**config, "weight_decay": 0.5}))
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({**kept, "bundle": str(own)}))
    with pytest.raises(ValueError, match="was begun with another 'weight_decay' in the configs of its bundle"):
        keep_plan(Plan(str(own), ("none", "mlp", "pretrained", "lora"), last[1], 3), file)


def test_a_study_of_other_contents_is_refused_by_their_names(tmp_path, bundle):
    """Nothing is trained here: the folder of a study holds its plan alone."""
    own, block = tmp_path / "own", tmp_path / "blk.safetensors"
    shutil.copytree(bundle, own)
    block.write_bytes(b"one block")
    options = {**SMALL, "size": 8, "block": str(block)}
    plan = Plan(str(own), ("none", "pretrained"), ("phantom",), 2, options=options)
    folder, train = tmp_path / "study", own / "configs" / "train.json"
    folder.mkdir()

    def keep():
        keep_plan(replace(plan), folder / "study.json")  # a plan reads its configs once

    keep()
    kept, config = (folder / "study.json").read_text(), train.read_text()
    keep()
    block.write_bytes(b"another block")
    with pytest.raises(ValueError, match=r"was begun with another content of .*blk\.safetensors: put that file back"):
        keep()
    block.unlink()
    keep()  # what needs it says so
    block.write_bytes(b"one block")
    train.write_text(config.replace('"weight_decay": 0.05', '"weight_decay": 0.5'))
    with pytest.raises(ValueError, match="was begun with another 'weight_decay' in the configs of its bundle"):
        keep()
    train.write_text(json.dumps(json.loads(config)))
    keep()  # other blanks are no other content
    assert (folder / "study.json").read_text() == kept
    earlier = json.loads(kept)
    earlier["contents"] = {**earlier.pop("digests"), "configs": {"of": "another form"}}
    (folder / "study.json").write_text(json.dumps(earlier))
    block.write_bytes(b"another block")
    with pytest.raises(ValueError, match=r"was begun with another content of .*blk\.safetensors"):
        keep()
    block.write_bytes(b"one block")
    keep()
    assert (folder / "study.json").read_text() == kept, "of the first version, and now of this one"
    del earlier["contents"]  # before the first version
    (folder / "study.json").write_text(json.dumps(earlier))
    keep()
    assert (folder / "study.json").read_text() == kept


def test_a_block_that_comes_later_is_kept_from_then_on(tmp_path, bundle):
    block = tmp_path / "blk.safetensors"
    plan = Plan(str(bundle), ("none", "pretrained"), ("phantom",), options={"block": str(block)})
    keep_plan(plan, tmp_path / "study.json")
    block.write_bytes(b"one block")
    keep_plan(plan, tmp_path / "study.json")
    block.write_bytes(b"another block")
    with pytest.raises(ValueError, match="begun with another content of"):
        keep_plan(plan, tmp_path / "study.json")


@pytest.mark.parametrize("more", [["--seeds", "3"], ["--jobs=1"], ["--epochs", "3"], ["--output", "x"]])
def test_a_page_is_drawn_with_no_other_option(tmp_path, more):
    done = command("--report", tmp_path, *more)
    assert done.exit_code == 2
    assert "--report takes no other option" in done.stderr


def test_two_at_once_are_refused(finished, words):
    folder, _ = finished
    with FileLock(folder / "lock"):
        done = command("--output", folder, *GRID, *words)
    assert done.exit_code == 2
    assert "another study runs in" in done.stderr


def study_in_a_group_of_its_own(output, words):
    os.setsid()
    sys.argv = ["monai-llmboost", "study"]
    app(["study", "--output", str(output), *map(str, [*GRID, *words])])


# What is there at the moment when everything is killed, in turn.
MOMENTS = ["runs/phantom/*/lr0.003/seed0/learning_curves.csv", "runs/phantom/*/lr*/seed*/test/predictions.csv"]


def test_killed_and_resumed_it_is_the_same_study(finished, tmp_path, words, monkeypatch):
    for moment in MOMENTS:
        starting = multiprocessing.get_context("forkserver")
        study = starting.Process(target=study_in_a_group_of_its_own, args=(tmp_path, words))
        study.start()
        while not list(tmp_path.glob(moment)):
            assert study.is_alive(), "it ended before it could be killed"
            time.sleep(0.002)
        os.killpg(study.pid, signal.SIGKILL)
        study.join()
        assert not (tmp_path / "results.json").exists()
    assert len(list(tmp_path.rglob("evaluated.json"))) < 4

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("monai_llmboost.studies.study.cost_of_arms", interrupted)
        done = command("--output", tmp_path, *GRID, *words)
    assert done.exit_code == 130
    assert f"the same command resumes in {tmp_path}" in done.stderr
    assert not (tmp_path / "results.json").exists()
    done = command("--output", tmp_path, *GRID, *words)
    assert done.exit_code == 0
    assert bare(results_of(tmp_path)) == bare(results_of(finished[0]))


def as_of_the_first_version(folder):
    """Give the files of a study the names and the form that they had."""
    plan = json.loads((folder / "study.json").read_text())
    plan["contents"] = {**plan.pop("digests"), "configs": {"of": "another form"}}
    (folder / "study.json").write_text(json.dumps(plan))
    for file in folder.rglob("trained.json"):
        ends = json.loads(file.read_text())
        earlier = {name: {"epoch": end["epoch"], "validation_auc": end["validation"]} for name, end in ends.items()}
        file.write_text(json.dumps(earlier))
    for name, earlier in {"evaluated.json": "judged.json", "other_weights": "beside"}.items():
        for path in folder.rglob(name):
            path.rename(path.with_name(earlier))


def test_a_study_of_the_first_version_is_resumed(finished, tmp_path, words):
    folder = tmp_path / "study"
    shutil.copytree(finished[0], folder)
    as_of_the_first_version(folder)
    (lost, *others) = sorted(folder.rglob("judged.json"))
    lost.unlink()
    kept = {file: file.stat().st_mtime_ns for file in [*folder.rglob("model.pt"), *others]}
    done = command("--output", folder, *GRID, *words)
    assert done.exit_code == 0, done.output
    assert {file: file.stat().st_mtime_ns for file in kept} == kept, "only one evaluation was missing"
    assert [file.parent for file in folder.rglob("evaluated.json")] == [lost.parent]
    assert bare(results_of(folder)) == bare(results_of(finished[0]))


def test_a_run_that_fails_costs_its_seed_only_and_is_tried_again(tmp_path, words):
    """At first no seed is there of both arms, then one is, then both."""
    arms = ["--arms", "none,mlp", "--seeds", "2", "--epochs", "1", "--jobs", "3"]
    runs = tmp_path / "runs" / "phantom"
    blocked, damaged = runs / "none" / "seed0", runs / "mlp" / "seed1"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the run's folder should be")
    damaged.mkdir(parents=True)
    (damaged / "last.pt").write_text("no checkpoint")

    done = command("--output", tmp_path, *arms, *words)
    assert done.exit_code == 2
    data = results_of(tmp_path)["datasets"]["phantom"]
    assert data["comparisons"] == []
    assert [data["arms"][arm]["auc"] for arm in ("none", "mlp")] == [None, None]

    (damaged / "last.pt").unlink()
    done = command("--output", tmp_path, *arms, *words)
    assert done.exit_code == 1
    data = results_of(tmp_path)["datasets"]["phantom"]
    (failed,) = data["arms"]["none"]["failed"]
    assert failed["run"] == "phantom/none/seed0"
    assert "File exists" in failed["reason"]
    assert data["arms"]["mlp"]["failed"] == []
    assert f"failed: phantom/none/seed0: {failed['reason']}" in done.output
    assert "phantom/none/seed0" in (tmp_path / "report.html").read_text()
    found = {arm: predictions_of(tmp_path, [f"phantom/{arm}/seed1"])[0] for arm in ("none", "mlp")}
    labels = predictions_of(tmp_path, ["phantom/mlp/seed1"])[1]
    assert data["comparisons"] == [each.as_dict() for each in compare_arms(found, labels, ["none"])], "without seed 0"
    assert len(data["arms"]["mlp"]["auc"]["runs"]) == 1

    blocked.unlink()
    kept = (runs / "mlp" / "seed0" / "model.pt").stat().st_mtime_ns
    done = command("--output", tmp_path, *arms, *words)
    assert done.exit_code == 0
    data = results_of(tmp_path)["datasets"]["phantom"]
    assert [len(arm["auc"]["runs"]) for arm in data["arms"].values()] == [2, 2]
    assert not any(arm["failed"] for arm in data["arms"].values())
    assert (runs / "mlp" / "seed0" / "model.pt").stat().st_mtime_ns == kept, "what was done is not done again"


def test_the_published_preset_with_folds(tmp_path, bundle):
    """Its network, of 64 features a head, reaches the evaluation; a bundle's relative path reaches the processes."""
    sizes = {**SMALL, "size": 8, "patch_size": 4, "epochs": 1}
    options = [f"--{key}={value}" for key, value in sizes.items()]
    words = [
        "--preset",
        "rllm",
        "--folds",
        "2",
        "--seeds",
        "1",
        "--arms",
        "none,random",
        "--jobs",
        "2",
        "--floors",
        "none",
    ]
    here = Path.cwd()
    os.chdir(bundle.parent)
    try:
        done = command("--output", os.path.relpath(tmp_path / "study"), "--bundle", bundle.name, *words, *options)
    finally:
        os.chdir(here)
    assert done.exit_code == 0, done.output
    results = results_of(tmp_path / "study")
    data = results["datasets"]["phantom"]
    assert data["cases"] == {"train": 300, "val": 300, "test": 240}
    assert (results["study"]["preset"], results["study"]["folds"]) == ("rllm", 2)
    for summary in data["arms"].values():
        assert len(summary["auc"]["runs"]) == 1, "one for each seed, the mean over its folds"
        assert summary["epochs"] == [1, 1]
    names = {run.relative_to(tmp_path / "study" / "runs").as_posix() for run in (tmp_path / "study").rglob("seed*")}
    assert names == {f"phantom/{arm}/seed0-fold{fold}" for arm in ("none", "random") for fold in (0, 1)}
    (comparison,) = (each for each in data["comparisons"] if each["metric"] == "auc")
    assert len(comparison["runs"]) == 1
    assert "from one seed" in comparison["verdict"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--arms", "none"], "a study needs 2 or more different arms"),
        (["--arms", "none,best"], "unknown arm 'best'; choose from lora, mlp, none"),
        (["--dataset", "lung"], "unknown dataset 'lung'; choose from phantom"),
        (["--seeds", "0"], "seeds must be a whole number from 1"),
        (["--lr-grid", "1e-3,fast"], "learning rates are numbers with commas, such as 3e-4,1e-3, not 'fast'"),
        (["--lr-grid", "1e-3", "--lr-seeds", "9"], "lr_seeds must be a whole number from 1 to 5, not 9"),
        (["--folds", "1"], "folds must be 0 or from 2"),
        (["--preset", "weak"], "unknown preset 'weak'; choose from rllm, strong"),
        (["--references", "random"], "no reference (random) is an arm of the study"),
        (["--learning_rate", "1e-3"], "the study itself sets learning_rate: give --lr-grid"),
        (["--hidden", "16"], "the bundle has no option --hidden: did you mean --hidden_size"),
        (["--epochs"], "expected options of the bundle as --key value, got '--epochs'"),
        (["surprise"], "expected options of the bundle as --key value, got 'surprise'"),
        (["--bundle", "nothing"], "there is no bundle 'nothing'"),
        (["--jobs", "0"], "jobs must be a whole number from 1, not 0"),
        (["--engine", "slurm"], "unknown engine 'slurm'; choose from local, ray"),
        (["--address", "auto"], "--address is for --engine ray, not for --engine local"),
        (["--report", "x"], "--report takes no other option"),
        (["--lr-seeds", "2"], "--lr-seeds 2 has no effect: there are no learning rates to choose from"),
    ],
)
def test_a_wrong_input_is_one_sentence_and_status_2(tmp_path, wrong, message):
    done = command("--output", tmp_path / "new", "--arms", "none,mlp", *wrong)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("monai-llmboost: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "new").exists()


def test_no_output():
    done = command("--arms", "none,mlp")
    assert done.exit_code == 2
    assert "give --output DIR, or --report DIR" in done.stderr


def test_an_output_that_is_not_of_a_study(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.json").write_text("[1, 2")
    for folder, message in {"file": "exists", "other": "study.json is not the plan of a study"}.items():
        done = command("--output", tmp_path / folder, "--arms", "none,mlp")
        assert done.exit_code == 2
        assert message in done.stderr


def test_nothing_to_draw(tmp_path, finished):
    done = command("--report", tmp_path)
    assert done.exit_code == 2
    assert f"there is no results.json in {tmp_path}" in done.stderr
    for wrong in ("{}", "[]", "{", '{"study": 3}'):
        (tmp_path / "results.json").write_text(wrong)
        done = command("--report", tmp_path)
        assert done.exit_code == 2
        assert "does not have the results of a study" in done.stderr


def test_missing_data_are_reported_before_anything_is_trained(tmp_path, words):
    done = command("--output", tmp_path, "--arms", "none,mlp", "--dataset", "phantom,nodulemnist3d", *words,
                   "--dataset_dir", tmp_path, "--size", "28")  # fmt: skip
    assert done.exit_code == 2
    assert done.stderr.startswith(f"monai-llmboost: nodulemnist3d.npz is not in {tmp_path}: put the official file")
    assert done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_a_class_of_too_few_test_cases_is_reported_before_anything_is_trained(tmp_path, words, monkeypatch):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 40, "val": 20, "test": 3})
    done = command("--output", tmp_path, "--arms", "none,mlp", *words)
    assert done.exit_code == 2
    assert done.stderr == (
        "monai-llmboost: each class of phantom needs 2 test cases or more, not 1 of ring: give more test cases, or "
        "another data set\n"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_a_learning_rate_that_diverges_is_a_result_as_long_as_there_is_another(tmp_path, words):
    grid = ["--arms", "none,mlp,random", "--seeds", "1", "--lr-grid", "1e-3,1e30", "--epochs", "1", "--jobs", "2"]
    runs = tmp_path / "runs" / "phantom"
    (runs / "mlp" / "lr0.001" / "seed0").mkdir(parents=True)
    (runs / "mlp" / "lr0.001" / "seed0" / "diverged.json").write_text('{"reason": "training has diverged, too"}')
    done = command("--output", tmp_path, *grid, *words)
    assert done.exit_code == 1, "one arm has no rate"
    assert "phantom, none: learning rate 0.001, at the edge of the grid: widen it; 1e+30 diverged\n" in done.output
    data = results_of(tmp_path)["datasets"]["phantom"]
    assert set(data["learning_rates"]) == {"none", "random"}
    for arm, rate in data["learning_rates"].items():
        assert (rate["chosen"], rate["diverged"], list(rate["validation_auc"])) == (1e-3, [1e30], ["0.001"])
        assert data["arms"][arm]["failed"] == []
    reasons = {failed["run"]: failed["reason"] for failed in data["arms"]["mlp"]["failed"]}
    assert reasons.pop("phantom/mlp/lr0.001/seed0") == "training has diverged, too"
    assert "training has diverged: lower the learning rate" in reasons.pop("phantom/mlp/lr1e+30/seed0")
    assert not reasons
    assert {each["arm"] for each in data["comparisons"]} == {"random"}
    page = (tmp_path / "report.html").read_text()
    assert page.count("diverged: 1e+30</small>") == 2

    (runs / "mlp" / "lr0.001" / "seed0" / "diverged.json").unlink()
    logs = {file: file.read_bytes() for file in runs.glob("*/lr1e+30/seed0/run.log")}
    assert len(logs) == 3
    done = command("--output", tmp_path, *grid, *words)
    assert done.exit_code == 0, done.output
    data = results_of(tmp_path)["datasets"]["phantom"]
    assert [rate["diverged"] for rate in data["learning_rates"].values()] == [[1e30]] * 3
    assert not any(arm["failed"] for arm in data["arms"].values())
    assert {file: file.read_bytes() for file in logs} == logs, "what diverged is not trained again"
    assert command("--output", tmp_path, *grid, *words).exit_code == 0
