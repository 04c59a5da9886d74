# SPDX-License-Identifier: Apache-2.0
"""Bad learning rates are dropped early: the decisions, resuming, and the weights of the rates that are left."""

import json
import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch
from conftest import BUNDLE, SMALL
from typer.testing import CliRunner

from monai_llmboost.command_line.app import app
from monai_llmboost.engines.curves import read_curves
from monai_llmboost.studies import Plan
from monai_llmboost.studies.halving import DroppedRate, halve, saved_epochs
from monai_llmboost.studies.rates import choose_rates
from monai_llmboost.studies.run_folder import EpochResult, RunFolder, Trained

pytestmark = pytest.mark.filterwarnings("ignore")
RATES = (1e-4, 3e-4, 1e-3, 3e-3)


def plan_of(**changes):
    usual = {"seeds": 1, "lr_grid": RATES, "lr_halving": True, "options": {"epochs": 8}}
    return Plan(**{"bundle": BUNDLE, "arms": ("none", "mlp"), "datasets": ("phantom",), **usual, **changes})


class Records:
    """Runs that end at once, with a value by rate, epoch and seed."""

    def __init__(self, plan, folder, value, diverging=(), failing=()):
        self.plan, self.value, self.diverging, self.failing = plan, value, diverging, failing
        self.folder, self.failed, self.trained = folder, set(), []

    @property
    def folders(self):  # read again each time, as after a resume
        return {run: RunFolder(self.folder / run.name) for run in self.plan.searched("phantom")}

    def state(self):
        return halve(self.plan, "none", "phantom", self.folders, self.failed)

    def train(self, run, until):
        folder = RunFolder(self.folder / run.name)
        self.trained.append((run.learning_rate, run.seed, until))
        folder.path.mkdir(parents=True, exist_ok=True)
        if run.learning_rate in self.failing:
            self.failed.add(run.name)
        elif (run.learning_rate, until) in self.diverging:
            folder.write_diverged("the loss is nan")
        else:
            epoch = until or 8
            end = EpochResult(epoch, self.value(run.learning_rate, epoch, run.seed))
            (folder.write_trained if until is None else lambda it: folder.write_paused(until, it))(Trained(end, end))

    def finish(self, order=lambda waiting: waiting, at_once=None):
        while waiting := order(list(self.state().waiting.items())):
            for run, until in waiting[:at_once]:
                self.train(run, until)
        return self.state()

    def chosen(self):
        return choose_rates(self.plan, self.folders, "phantom", failed=self.failed).get("none")


def by_rate(rate, epoch, seed):
    """The larger rate is better early, 1e-3 at the end."""
    return {1e-4: 0.5, 3e-4: 0.6, 1e-3: 0.7, 3e-3: 0.8}[rate] - (0.2 if rate == 3e-3 and epoch > 2 else 0)


def test_the_worse_half_is_dropped_until_one_is_left(tmp_path):
    records = Records(plan_of(), tmp_path, by_rate)
    found = records.finish()
    assert records.trained == [
        *((rate, 0, 2) for rate in RATES),
        *((rate, 0, 4) for rate in RATES[2:]),
        (1e-3, 0, None),
    ]
    assert list(found.left) == [1e-3]
    dropped = {1e-4: DroppedRate(2, 0.5), 3e-4: DroppedRate(2, 0.6), 3e-3: DroppedRate(4, pytest.approx(0.6))}
    assert found.dropped == dropped
    rate = records.chosen()
    assert (rate.chosen, rate.validation, rate.dropped) == (1e-3, {"0.001": 0.7}, dropped)
    assert rate.as_dict("auc")["dropped"]["0.0003"] == {"epoch": 2, "validation_auc": 0.6}


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("seeds", [1, 2])
def test_neither_order_nor_interruptions_change_the_choice(tmp_path, at_once, seeds):
    plan = plan_of(seeds=2, lr_seeds=seeds)

    def value(rate, epoch, seed):
        return by_rate(rate, epoch, seed) - 0.3 * (seed and rate == 1e-3)

    whole, parts = Records(plan, tmp_path / "whole", value), Records(plan, tmp_path / "parts", value)
    assert whole.finish() == parts.finish(lambda waiting: waiting[::-1], at_once)
    assert sorted(whole.trained, key=str) == sorted(parts.trained, key=str), "nothing is trained twice"
    assert whole.chosen() == parts.chosen()
    assert whole.chosen().chosen == (1e-3 if seeds == 1 else 3e-3), "means over the seeds decide"


@pytest.mark.parametrize("until", [2, 4, None])
def test_another_rate_takes_the_place_of_one_that_diverges(tmp_path, until):
    records = Records(plan_of(), tmp_path, by_rate, diverging=[(1e-3, until)])
    assert list(records.finish().left) == [3e-3]
    assert (records.chosen().chosen, records.chosen().diverged) == (3e-3, [1e-3])


def test_a_failed_rate_is_not_chosen_until_it_is_tried_again(tmp_path):
    records = Records(plan_of(), tmp_path, by_rate, failing=[1e-3])
    records.finish()
    assert records.chosen().chosen == 3e-3
    records.failing, records.failed = (), set()
    records.finish()
    assert records.chosen().chosen == 1e-3


def test_all_rates_diverge(tmp_path):
    records = Records(plan_of(), tmp_path, by_rate, diverging=[(rate, 2) for rate in RATES])
    assert list(records.finish().left) == []
    assert records.chosen() is None


def test_a_run_that_stopped_by_its_patience_is_compared_by_its_end(tmp_path):
    records = Records(plan_of(), tmp_path, by_rate)
    run = next(run for run in records.folders if run.arm == "none" and run.learning_rate == 1e-3)
    folder = RunFolder(tmp_path / run.name)
    folder.path.mkdir(parents=True)
    folder.write_trained(Trained(EpochResult(1, 0.7), EpochResult(1, 0.7)))
    assert list(records.finish().left) == [1e-3]
    assert 1e-3 not in {rate for rate, *_ in records.trained}


@pytest.mark.parametrize(
    ("rates", "epochs", "interval", "after", "saved"),
    [
        (2, 2, 1, [1], (1, 4)),
        (3, 30, 1, [7, 15], (90 - 7 * 3 - 8 * 2 - 15, 90)),
        (4, 12, 3, [3, 6], (48 - 3 * 4 - 3 * 2 - 6, 48)),
        (8, 40, 1, [5, 10, 20], (320 - 5 * 8 - 5 * 4 - 10 * 2 - 20, 320)),
    ],
)
def test_when_rates_are_dropped_and_what_this_saves(rates, epochs, interval, after, saved):
    grid = tuple(1e-4 * 2**power for power in range(rates))
    plan = plan_of(lr_grid=grid, options={"epochs": epochs, "val_interval": interval})
    assert plan.halvings == after
    assert saved_epochs(plan) == tuple(2 * each for each in saved), "two arms"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr_grid": ()}, "--lr-halving has no effect: there are no learning rates to choose from"),
        ({"lr_grid": (1e-3,)}, "--lr-halving has no effect"),
        ({"lr_grid": tuple(1e-4 * n for n in range(1, 10))}, "at most 8 learning rates, not 9"),
        ({"options": {"epochs": 3}}, "3 epochs with val_interval 1 and 0 epochs of warmup are too few"),
        ({"options": {"epochs": 12, "val_interval": 4}}, "after epochs 0, 4: give more --epochs"),
        ({"options": {"epochs": 8, "warmup_epochs": 2}}, "2 epochs of warmup are too few"),
        ({"options": {"epochs": "$4 + 4"}}, "needs epochs and val_interval as whole numbers"),
    ],
)
def test_a_halving_without_effect_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        plan_of(**changed)


WORDS = ["--arms", "none,pretrained", "--seeds", "1", "--epochs", "4", "--jobs", "2", "--floors", "none"]
WORDS += ["--lr-grid", "1e-3,3e-3,1e-2", "--batch_size", "120", "--bundle", str(BUNDLE), "--lr-halving"]
WORDS += [f"--{key}={value}" for key, value in {**SMALL, "size": 8}.items()]


def study(output, *words):
    sys.argv = ["monai-llmboost", "study"]
    return CliRunner().invoke(app, ["study", "--output", str(output), *WORDS, *words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monai_llmboost.studies.jobs.INTERVAL", 0.1)
        patch.setattr(sys, "argv", sys.argv)
        folder = tmp_path_factory.mktemp("halving")
        done = study(folder)
    assert done.exit_code == 0, done.output
    return folder, done.output


def rates_of(folder):
    return json.loads((folder / "results.json").read_text())["datasets"]["phantom"]["learning_rates"]


def test_the_study_reports_what_it_dropped(finished):
    folder, output = finished
    assert "dropped after epochs 1 and 2 of 4, which saves at most 10 of the 24 epochs of their choice" in output
    page = (folder / "report.html").read_text()
    for arm, rate in rates_of(folder).items():
        assert len(rate["dropped"]) == 2
        for each, end in rate["dropped"].items():
            run = folder / "runs" / "phantom" / arm / f"lr{each}" / "seed0"
            curves = read_curves(run / "learning_curves.csv")
            assert len(curves) == end["epoch"] and not (run / "trained.json").exists()
            assert end["validation_auc"] == max(row["val_auc"] for row in curves)
            assert f"; {each} dropped after epoch {end['epoch']} with {end['validation_auc']:.3f}" in output
            assert f"{each} dropped after epoch {end['epoch']}: validation AUC {end['validation_auc']:.3f}" in page
            assert not (run / "test").exists(), "the test split is not read"


def test_the_rate_that_is_left_ends_as_if_it_was_never_paused(finished, tmp_path, monkeypatch):
    folder, _ = finished
    monkeypatch.setattr(sys, "argv", sys.argv)
    for arm, rate in rates_of(folder).items():
        words = [word for word in WORDS if word != "--lr-halving"]
        words[words.index("--lr-grid") + 1] = f"{rate['chosen']:g}"
        words[words.index("--arms") + 1] = f"{arm},mlp"
        done = CliRunner().invoke(app, ["study", "--output", str(tmp_path / arm), *words])
        assert done.exit_code == 0, done.output
        name = f"runs/phantom/{arm}/lr{rate['chosen']:g}/seed0"
        for file in ("last.pt", "model.pt"):
            paused, whole = (torch.load(place / name / file) for place in (folder, tmp_path / arm))
            paused, whole = (flat(each) for each in (paused, whole))
            assert paused.keys() == whole.keys() and len(whole) > 10
            assert all(torch.equal(paused[key], whole[key]) for key in whole)


def flat(state, name=""):
    """The tensors of a checkpoint by their names."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    parts = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {key: value for part, each in parts for key, value in flat(each, f"{name}/{part}").items()}


def killed_study(output):
    os.setsid()
    study(output)


def test_killed_and_resumed_it_makes_the_same_choice(finished, tmp_path):
    folder, _ = finished
    process = multiprocessing.get_context("forkserver").Process(target=killed_study, args=(tmp_path,))
    process.start()
    while not list(tmp_path.rglob("paused-1.json")):
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("paused-*.json")}
    assert study(tmp_path).exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before, "what is done is not done again"
    assert rates_of(tmp_path) == rates_of(folder)


def test_a_study_begun_without_halving_is_not_resumed_with_it(finished):
    folder, _ = finished
    words = [word for word in WORDS if word != "--lr-halving"]
    done = CliRunner().invoke(app, ["study", "--output", str(folder), *words])
    assert done.exit_code == 2
    assert "was begun with lr_halving True, not False" in done.stderr
