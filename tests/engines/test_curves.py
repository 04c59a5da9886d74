# SPDX-License-Identifier: Apache-2.0
"""The table of a training's course: its columns and numbers, and that a resumed run goes on in it."""

import csv

import pytest
import torch
from ignite.engine import Engine, Events
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
    def go_on(_):
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
def test_a_resumed_run_goes_on(tmp_path, every, ahead):
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


def test_a_loss_that_is_no_number_is_told(tmp_path):
    path = trained(tmp_path, epochs=1, losses=(float("nan"),))
    (row,) = read_curves(path)
    assert row["train_loss"] != row["train_loss"]


def test_only_rank_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    assert not trained(tmp_path).exists()


@pytest.mark.filterwarnings("ignore")
def test_a_bundles_training_interrupted_and_resumed(run_job, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_llmboost.data.phantoms.PHANTOM_CASES", {"train": 40, "val": 20, "test": 20})
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
