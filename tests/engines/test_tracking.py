# SPDX-License-Identifier: Apache-2.0
"""MLflow runs: one for each start, continued when resumed, FAILED when it failed or was killed."""

import json
import subprocess
import sys

import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler, StatsHandler
from torch import nn

from monai_llmboost.engines import TrainedWeights, TrainingCheckpoints
from monai_llmboost.engines import tracking as tracking_module

mlflow = pytest.importorskip("mlflow", reason="the optional extra `mlflow` is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # mlflow's own use of its database
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs.db"


@pytest.fixture
def runs_of(store, request):
    client = mlflow.MlflowClient(store)

    def runs(experiment=request.node.name):
        found = client.get_experiment_by_name(experiment)
        runs = [] if found is None else client.search_runs([found.experiment_id], order_by=["attributes.start_time"])
        losses = [[m.step for m in client.get_metric_history(r.info.run_id, "loss")] for r in runs]
        aucs = [len(client.get_metric_history(r.info.run_id, "auc")) for r in runs]
        return list(zip([run.info.status for run in runs], losses, aucs))

    return runs


@pytest.fixture
def start(store, tmp_path, request):
    """Train an empty network, a step an epoch, with MONAI's handlers put after ours as `--tracking mlflow` does."""

    def run(epochs, fail_in=None, folder=tmp_path, stats=False, again=0, **options):
        name = {"tracking_uri": store, "experiment_name": request.node.name, "tag_name": "loss"}
        evaluator = Engine(lambda engine, batch: engine.state.metrics.update(auc=0.1 * engine.state.epoch))
        MLFlowHandler(**name, iteration_log=False).attach(evaluator)

        def step(engine, batch):
            if engine.state.epoch == fail_in:
                raise (KeyboardInterrupt if options.get("stop") else ValueError)("broken")
            return {"loss": torch.tensor(1.0)}

        trainer = Engine(step)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: evaluator.run([0]))
        if stats:
            StatsHandler(output_transform=lambda x: None).attach(trainer)
        own = {key: value for key, value in options.items() if key == "resume"}
        keeper = TrainingCheckpoints(folder, {"model": nn.Linear(1, 1)}, evaluator, "auc", **own)
        keeper.attach(trainer)
        read = MLFlowHandler(**name, output_transform=lambda x: x["loss"], close_on_complete=True)
        read.attach(trainer)
        for more in range(again + 1):
            trainer.run([0], max_epochs=epochs + more)
        return keeper

    return run


def killed(monkeypatch, start, **options):
    """A start that ends without a word; its process is gone."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with monkeypatch.context() as patched:
        patched.setattr(tracking_module, "_process", lambda: f"{tracking_module.platform.node()} {ended.pid} 1")
        patched.setattr(TrainingCheckpoints, "completed", lambda self, engine: engine.no_such)
        patched.setattr("mlflow.MlflowClient.set_terminated", lambda *_: None)
        with pytest.raises(AttributeError):
            start(**options)


@pytest.mark.parametrize("stats", [True, False], ids=["stats", "alone"])
def test_a_failed_start_is_failed_and_the_next_one_is_its_own(start, runs_of, stats):
    with pytest.raises(ValueError, match="broken"):
        start(3, fail_in=2, stats=stats)
    assert runs_of() == [("FAILED", [1], 1)]
    start(2, stats=stats)
    assert runs_of() == [("FAILED", [1], 1), ("FINISHED", [1, 2], 2)]


def test_an_interrupted_start_is_failed_too(start, runs_of):
    with pytest.raises(KeyboardInterrupt):
        start(3, fail_in=2, stop=True)
    assert [status for status, *_ in runs_of()] == ["FAILED"]


def test_a_killed_start_is_failed_by_the_next(start, runs_of, monkeypatch):
    killed(monkeypatch, start, epochs=1)
    assert runs_of() == [("RUNNING", [1], 1)]
    start(2)
    assert runs_of() == [("FAILED", [1], 1), ("FINISHED", [1, 2], 2)]


def test_a_killed_start_is_resumed_in_its_run(start, runs_of, monkeypatch):
    killed(monkeypatch, start, epochs=1)
    start(3, resume=True)
    assert runs_of() == [("FINISHED", [1, 2, 3], 3)]


def test_a_failed_start_is_resumed_in_its_run(start, runs_of):
    with pytest.raises(ValueError, match="broken"):
        start(3, fail_in=2)
    start(3, resume=True)
    assert runs_of() == [("FINISHED", [1, 2, 3], 3)]


def test_runs_of_other_folders_and_processes_are_left_alone(start, runs_of, monkeypatch, tmp_path):
    killed(monkeypatch, start, epochs=1)
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    begun = tracking_module._begun(alive.pid)
    with monkeypatch.context() as patched:
        patched.setattr(tracking_module, "_process", lambda: f"{tracking_module.platform.node()} {alive.pid} {begun}")
        patched.setattr("mlflow.MlflowClient.set_terminated", lambda *_: None)
        start(1, folder=tmp_path / "other")
    start(1, folder=tmp_path / "third")
    start(1, folder=tmp_path / "other")
    assert [status for status, *_ in runs_of()] == ["RUNNING", "RUNNING", "FINISHED", "FINISHED"]
    alive.communicate(b"\n")
    start(1, folder=tmp_path / "other")
    assert [status for status, *_ in runs_of()] == ["RUNNING", "FAILED", "FINISHED", "FINISHED", "FINISHED"]


def test_rounds_of_one_process_are_one_run(start, runs_of):
    start(1, again=3)
    assert runs_of() == [("FINISHED", [1, 2, 3, 4], 4)]


def test_a_record_that_was_lost_or_names_no_run(start, runs_of, tmp_path):
    start(1)
    (tmp_path / "mlflow.json").write_text("[")
    start(2, resume=True)
    record = json.loads((tmp_path / "mlflow.json").read_text())
    assert set(record[0]) == {"store", "experiment", "name", "run"}
    record[0]["run"] = "0" * 32
    (tmp_path / "mlflow.json").write_text(json.dumps(record))
    start(3, resume=True)
    assert [status for status, *_ in runs_of()] == ["FINISHED"] * 3


def test_a_password_stays_out_of_the_record():
    assert tracking_module._store("postgresql://me:secret@host/db") != "postgresql://me:secret@host/db"
    assert "secret" not in tracking_module._store("postgresql://me:secret@host/db")


@pytest.mark.parametrize("fails", [True, False])
def test_evaluations_have_their_own_runs(start, store, tmp_path, request, fails, runs_of):
    start(1)
    for _ in range(2):
        evaluator = Engine(lambda engine, batch: engine.state.metrics.update(auc=0.5))
        TrainedWeights(tmp_path, nn.Linear(1, 1)).attach(evaluator)
        # As MONAI puts it into an evaluation: it never ends its run.
        MLFlowHandler(store, experiment_name=request.node.name, iteration_log=False).attach(evaluator)
        if fails:
            evaluator.add_event_handler(Events.COMPLETED, lambda: open("/nowhere"))  # noqa: PTH123, SIM115
            with pytest.raises(OSError, match="nowhere"):
                evaluator.run([0])
        else:
            evaluator.run([0])
    assert [run[0] for run in runs_of()] == ["FINISHED", *(["FAILED"] * 2 if fails else ["FINISHED"] * 2)]
    assert [run[2] for run in runs_of()] == [1, 1, 1]


def test_without_tracking_nothing_is_kept(tmp_path):
    evaluator = Engine(lambda engine, batch: engine.state.metrics.update(auc=0.5))
    trainer = Engine(lambda engine, batch: evaluator.run([0]))
    TrainingCheckpoints(tmp_path, {"model": nn.Linear(1, 1)}, evaluator, "auc").attach(trainer)
    trainer.run([0])
    assert {file.name for file in tmp_path.iterdir()} == {"model.pt", "last.pt", "lock"}
