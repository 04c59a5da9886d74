# SPDX-License-Identifier: Apache-2.0
"""The table of a training's course: its columns and numbers, and that a resumed run continues it."""

import csv
import sys
from collections import Counter

import pytest
import torch
from ignite.engine import Engine, Events
from tensorboard.summary.writer.event_file_writer import AtomicCounter
from torch import optim

from monai_llmboost.engines import LearningCurves, TrainingCheckpoints
from monai_llmboost.engines.curves import read_curves


def trained(folder, epochs=4, every=1, losses=(1.0, 2.0, 6.0), output=lambda loss: {"loss": loss}, begin=0):
    """Train nothing for some epochs: loss x epoch, validation (AUC 0.1 x epoch) every few epochs, a falling rate."""
    optimizer = optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    trainer = Engine(lambda engine, loss: output(torch.tensor(loss * engine.state.epoch, requires_grad=True)))
    evaluator = Engine(lambda engine, _: None)

    @evaluator.on(Events.EPOCH_COMPLETED)
    def measure(_):
        evaluator.state.metrics = {"val_auc": trainer.state.epoch / 10, "val_acc": 0.5}

    @trainer.on(Events.STARTED)
    def resume(_):
        trainer.state.epoch, trainer.state.iteration = begin, begin * len(losses)

    @trainer.on(Events.EPOCH_STARTED)
    def slow_down(_):
        optimizer.param_groups[0]["lr"] = 0.5**trainer.state.epoch

    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=every), lambda _: evaluator.run([0]))
    LearningCurves(folder, evaluator, optimizer).attach(trainer)
    trainer.run(losses, max_epochs=epochs)
    return folder / "learning_curves.csv"


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_and_numbers(tmp_path):
    path = trained(tmp_path / "new", epochs=2)
    assert path.read_text() == (
        "epoch,train_loss,learning_rate,val_auc,val_acc\n1,3.0,0.5,0.1,0.5\n2,6.0,0.25,0.2,0.5\n"
    )
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_loss_of_a_decollated_batch(tmp_path):
    path = trained(tmp_path, epochs=1, output=lambda loss: [{"loss": loss}, {"loss": loss}])
    assert [row["train_loss"] for row in rows_of(path)] == ["3.0"]


def test_an_epoch_that_was_not_validated_is_empty(tmp_path):
    path = trained(tmp_path, epochs=5, every=2)
    assert [row["val_auc"] for row in rows_of(path)] == ["", "0.2", "", "0.4", ""]
    read = read_curves(path)
    assert [row["epoch"] for row in read] == [1, 2, 3, 4, 5]
    assert read[0] == {"epoch": 1, "train_loss": 3.0, "learning_rate": 0.5}
    assert read[1] == {"epoch": 2, "train_loss": 6.0, "learning_rate": 0.25, "val_auc": 0.2, "val_acc": 0.5}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("ahead", [2, 3])
def test_a_resumed_run_continues_the_table(tmp_path, every, ahead):
    """Also where the table is an epoch ahead of the checkpoint: the run was killed between the two."""
    whole = trained(tmp_path / "whole", every=every).read_text()
    path = trained(tmp_path / "cut", epochs=ahead, every=every)
    trained(tmp_path / "cut", every=every, begin=2)
    assert path.read_text() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name], "nothing was set aside"


def test_a_resumed_run_whose_table_was_lost(tmp_path):
    path = trained(tmp_path, begin=2)
    assert [row["epoch"] for row in rows_of(path)] == ["3", "4"]


def test_an_earlier_table_is_set_aside(tmp_path):
    first = trained(tmp_path, epochs=3).read_text()
    path = trained(tmp_path, epochs=1, losses=(7.0,))
    assert (tmp_path / "learning_curves.1.csv").read_text() == first
    assert [row["train_loss"] for row in rows_of(path)] == ["7.0"]


def test_a_loss_that_is_no_number_is_written(tmp_path):
    path = trained(tmp_path, epochs=1, losses=(float("nan"),))
    (row,) = read_curves(path)
    assert row["train_loss"] != row["train_loss"]


def test_only_rank_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    assert not trained(tmp_path).exists()


@pytest.mark.filterwarnings("ignore")
def test_a_bundles_training_interrupted_and_resumed(run_job, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 40, "val": 20, "test": 20})
    options = {"epochs": 3, "size": 8, "batch_size": 20, "val_interval": 2}
    whole = run_job("train", "none", **options, output_dir=str(tmp_path / "whole"), ckpt_dir=str(tmp_path / "whole"))
    keep = TrainingCheckpoints.epoch_completed

    def killed(self, engine):
        if engine.state.epoch == 2:
            raise KeyboardInterrupt
        keep(self, engine)

    monkeypatch.setattr(TrainingCheckpoints, "epoch_completed", killed)
    with pytest.raises(KeyboardInterrupt):
        run_job("train", "none", **options)
    monkeypatch.setattr(TrainingCheckpoints, "epoch_completed", keep)
    cut = tmp_path / "run" / "learning_curves.csv"
    assert [row["epoch"] for row in read_curves(cut)] == [1, 2], "ahead of the checkpoint of epoch 1"
    run_job("train", "none", **options, resume=True)
    assert cut.read_text() == (whole / "learning_curves.csv").read_text()
    rates = [row["learning_rate"] for row in read_curves(cut)]
    assert rates == pytest.approx([1e-4, 1e-3, 5e-4]), "warmup, then a cosine"
    assert not (tmp_path / "run" / "learning_curves.1.csv").exists()


def test_a_rate_of_nothing_is_refused(tmp_path):
    evaluator = Engine(lambda engine, _: None)
    for rate in (0.0, float("inf")):
        with pytest.raises(
            ValueError, match=rf"learning rate must be above 0 and finite, not {rate:g}: give --learning_rate"
        ):
            LearningCurves(tmp_path, evaluator, optim.SGD([torch.zeros(1)], lr=rate))
    parts = [{"params": [torch.zeros(1)], "lr": 0.0}, {"params": [torch.zeros(1)], "lr": 0.1}]
    LearningCurves(tmp_path, evaluator, optim.SGD(parts))


def scalars_of(folder, one_file=False):
    """All steps of each curve: as TensorBoard shows the folder, or as they stand in its files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    if not one_file:
        events = EventAccumulator(str(folder)).Reload()
        return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    steps = {}
    for file in sorted(folder.glob("events.*"), key=lambda file: file.stat().st_mtime_ns):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
    return steps


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("when", ["before the checkpoint", "after it", "in an epoch"])
def test_tensorboard_has_each_step_once_after_a_resume(run_job, tmp_path, monkeypatch, when):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 40, "val": 20, "test": 20})
    # TensorBoard reads files in the order of their names: seconds, process, and a number in it.
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid", AtomicCounter(0))
    options = {"epochs": 4, "size": 8, "batch_size": 20}
    with monkeypatch.context() as patched:
        keep = TrainingCheckpoints.epoch_completed

        def killed(self, engine):
            if engine.state.epoch == 3 and when == "before the checkpoint":
                raise KeyboardInterrupt
            keep(self, engine)
            if engine.state.epoch == 2 and when == "after it":
                raise KeyboardInterrupt

        def step(self, engine):
            if engine.state.epoch == 3 and when == "in an epoch":
                raise KeyboardInterrupt

        patched.setattr(TrainingCheckpoints, "epoch_completed", killed)
        patched.setattr(LearningCurves, "_iteration_completed", step)
        with pytest.raises(KeyboardInterrupt):
            run_job("train", "none", **options)
    folder = run_job("train", "none", **options, resume=True)
    expected = [1, 2, 3, 4] if when != "after it" else [1, 3, 4]
    for one_file in (True, False):
        curves = scalars_of(folder, one_file)
        assert set(curves) == {"train_loss", "learning_rate", "val_auc", "val_acc"}
        assert all(steps == expected for steps in curves.values()), curves
    run_job("train", "none", **options)
    assert all(steps == [1, 2, 3, 4] for steps in scalars_of(folder).values()), "a new run stands alone"


@pytest.mark.filterwarnings("ignore")
def test_no_step_waits_for_the_device(run_job, monkeypatch):
    """As many values are asked for in an epoch of many steps as in one of few."""
    asked = []
    item = torch.Tensor.item

    def watched(self):
        caller = sys._getframe(1).f_globals["__name__"]
        asked.extend([caller] if not caller.startswith("torch.optim") else [])  # of its counters, on the CPU
        return item(self)

    monkeypatch.setattr(torch.Tensor, "item", watched)
    counts = []
    for cases in (40, 160):
        monkeypatch.setattr(
            "monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": cases, "val": 20, "test": 20}
        )
        asked.clear()
        run_job("train", "none", epochs=1, size=8, batch_size=20)
        counts.append(Counter(asked))
    assert counts[0] == counts[1]
