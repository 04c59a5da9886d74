# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training: the best network, early stops, exact resumes, one training in a folder."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_llmboost.engines import TrainedWeights, TrainingCheckpoints, checkpoints


def training(folder, values, epochs, **options):
    """A trainer whose validation gives these values, one per epoch."""
    network = nn.Linear(1, 1)
    validation = Engine(lambda engine, batch: None)

    def step(engine, batch):
        with torch.no_grad():
            network.weight.fill_(engine.state.epoch)
        validation.state.metrics["auc"] = values[engine.state.epoch - 1]

    trainer = Engine(step)
    TrainingCheckpoints(folder, {"model": network}, validation, "auc", **options).attach(trainer)
    return network, trainer, lambda: trainer.run([0], max_epochs=epochs)


def weight(folder, name="model.pt"):
    state = torch.load(folder / name, weights_only=True)
    return float(state.get("model", state)["weight"])


def test_the_best_epoch_by_validation_is_kept(tmp_path):
    training(tmp_path, [0.5, 0.8, 0.8, 0.6], 4)[2]()
    assert weight(tmp_path) == 2, "the first of equals"
    assert weight(tmp_path, "last.pt") == 4


@pytest.mark.parametrize(("patience", "epochs"), [(0, 6), (1, 3), (2, 4)])
def test_early_stop(tmp_path, patience, epochs):
    _, trainer, run = training(tmp_path, [0.5, 0.8, 0.7, 0.6, 0.6, 0.6], 6, patience=patience)
    run()
    assert trainer.state.epoch == epochs


def test_resume_remembers_the_best_and_the_waiting(tmp_path):
    values = [0.5, 0.8, 0.7, 0.6, 0.6, 0.9]
    training(tmp_path, values, 3, patience=3)[2]()
    _, trainer, run = training(tmp_path, values, 6, patience=3, resume=True)
    run()
    assert trainer.state.epoch == 5, "epochs 3, 4 and 5 were no better than epoch 2"
    assert weight(tmp_path) == 2
    _, trainer, run = training(tmp_path, values, 6, patience=3, resume=True)
    run()
    assert trainer.state.epoch == 5, "a run that had stopped stays stopped"


def test_what_cannot_be_resumed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: .*last\.pt is not there"):
        training(tmp_path, [0.5], 1, resume=True)[2]()
    training(tmp_path, [0.5] * 3, 3)[2]()
    with pytest.raises(ValueError, match="already has 3 epochs, 2 are asked for"):
        training(tmp_path, [0.5] * 3, 2, resume=True)[2]()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"model\.pt, the best network so far of the run to resume, is gone: put it back"),
        (lambda path: torch.save({}, path), r"model\.pt is not the best network of the run in .*last\.pt: put its own"),
    ],
)
def test_a_run_is_resumed_with_its_own_best_network_only(tmp_path, change, message):
    training(tmp_path, [0.8, 0.5], 2)[2]()
    change(tmp_path / "model.pt")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        training(tmp_path, [0.8, 0.5, 0.6], 3, resume=True)[2]()
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_run_without_a_best_network_yet_takes_no_others(tmp_path):
    with pytest.raises(ValueError, match="was no number in any validation"):
        training(tmp_path, [-np.inf] * 3, 1)[2]()
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(
        ValueError, match=r"model\.pt is of another run, since .*last\.pt has no best network yet: move it"
    ):
        training(tmp_path, [-np.inf, 0.5], 2, resume=True)[2]()
    (tmp_path / "model.pt").unlink()
    training(tmp_path, [-np.inf, 0.5], 2, resume=True)[2]()
    assert weight(tmp_path) == 2


def test_a_run_of_an_earlier_version_says_at_its_end_that_its_best_network_is_gone(tmp_path):
    training(tmp_path, [0.8, 0.5], 2)[2]()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    del state["model_sha256"]
    torch.save(state, tmp_path / "last.pt")
    training(tmp_path, [0.8, 0.5, 0.6], 3, resume=True)[2]()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["model_sha256"] is None
    (tmp_path / "model.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"in epoch 1, but .*model\.pt is gone: .* or use --weights last"):
        training(tmp_path, [0.8, 0.5, 0.6, 0.7], 4, resume=True)[2]()
    training(tmp_path, [0.8, 0.5, 0.6, 0.7, 0.9], 5, resume=True)[2]()
    assert weight(tmp_path) == 5


@pytest.mark.parametrize("before", ["last.pt", "model.pt"])
def test_a_run_killed_between_its_files_resumes(tmp_path, monkeypatch, before):
    """Either file is the first that is not written after the second epoch."""
    values = [0.5, 0.8, 0.6]
    trainer, run = training(tmp_path, values, 3)[1:]
    place, write = checkpoints.place_next, checkpoints.write_state

    def killed(what):
        if trainer.state.epoch == 2:
            raise KeyboardInterrupt(what)

    def write_or_die(path, state):
        if path.name == before:
            killed(before)
        write(path, state)

    def place_or_die(folder):
        killed("model.pt")
        place(folder)

    monkeypatch.setattr(checkpoints, "write_state", write_or_die)
    monkeypatch.setattr(checkpoints, "place_next", place_or_die)
    with pytest.raises(KeyboardInterrupt, match=before):
        run()
    assert weight(tmp_path) == 1
    monkeypatch.undo()
    training(tmp_path, values, 3, resume=True)[2]()
    assert (weight(tmp_path), weight(tmp_path, "last.pt")) == (2, 3)
    assert not (tmp_path / "model.next.pt").exists()


def test_a_run_is_resumed_with_its_own_options(tmp_path):
    training(tmp_path, [0.5] * 3, 2, options={"rate": 0.1, "epochs": 3})[2]()
    with pytest.raises(
        ValueError, match=r"was begun with rate 0\.1, this one has 0\.2: resume it with its own options"
    ):
        training(tmp_path, [0.5] * 3, 3, resume=True, options={"rate": 0.2, "epochs": 3})[2]()
    _, trainer, _ = training(tmp_path, [0.5] * 3, 3, resume=True, options={"rate": 0.1, "epochs": 3})
    with pytest.raises(ValueError, match="has 1 steps an epoch, this one 2"):
        trainer.run([0, 0], max_epochs=3)


def test_a_run_whose_validations_have_no_number_says_so(tmp_path):
    _, _, run = training(tmp_path, [-np.inf] * 2, 2)
    with pytest.raises(
        ValueError,
        match=r"no number in any validation, so there is no model\.pt: see whether the validation cases have",
    ):
        run()
    assert (tmp_path / "last.pt").is_file()


def test_an_earlier_run_is_kept(tmp_path):
    training(tmp_path, [0.5], 1)[2]()
    training(tmp_path, [0.5, 0.7], 2)[2]()
    assert (weight(tmp_path, "model.1.pt"), weight(tmp_path)) == (1, 2)


def test_files_of_one_run_are_set_aside_by_one_number(tmp_path):
    for run in range(3):
        training(tmp_path, [0.5 + run], 1)[2]()
        if run == 1:
            (tmp_path / "last.1.pt").rename(tmp_path / "model.3.pt")
            (tmp_path / "model.pt").unlink()
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"model.pt", "last.pt", "model.1.pt", "last.2.pt", "model.3.pt", "lock"}


@pytest.mark.parametrize("resume", [False, True])
def test_two_trainings_in_one_folder_are_refused(tmp_path, resume):
    trainer, run = training(tmp_path, [0.5, 0.6], 2)[1:]
    other = training(tmp_path, [0.5, 0.6], 2, resume=resume)[2]

    @trainer.on(Events.EPOCH_COMPLETED(once=2))
    def another_begins():
        before = {file: file.read_bytes() for file in tmp_path.glob("*.pt")}
        with pytest.raises(
            ValueError, match=r"another training writes into .*: wait for its end, or give another --ckpt_dir"
        ):
            other()
        assert {file: file.read_bytes() for file in tmp_path.glob("*.pt")} == before

    run()
    other()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["progress"]["epoch"] == 2


@pytest.mark.parametrize("how", ["failed", "terminated"])
def test_a_training_that_ends_early_releases_its_folder(tmp_path, how):
    trainer, run = training(tmp_path, [0.5, 0.6], 2)[1:]

    @trainer.on(Events.EPOCH_COMPLETED(once=1))
    def end():
        if how == "failed":
            raise ZeroDivisionError
        trainer.terminate(skip_completed=True)

    with pytest.raises(ZeroDivisionError) if how == "failed" else nullcontext() as error:
        run()
    training(tmp_path, [0.5, 0.6], 2, resume=True)[2]()
    assert weight(tmp_path) == 2, error


def validated_every(folder, interval, epochs, values, **options):
    """A trainer whose evaluator runs every few epochs, as MONAI's ValidationHandler lets it."""
    evaluator = Engine(lambda engine, batch: None)
    trainer = Engine(lambda engine, batch: None)

    @trainer.on(Events.EPOCH_COMPLETED(every=interval))
    def validate(engine):
        evaluator.state.metrics["auc"] = values[engine.state.epoch // interval - 1]
        evaluator.run([0])

    @evaluator.on(Events.COMPLETED)
    def keep(engine):
        engine.state.metrics["auc"] = values[trainer.state.epoch // interval - 1]

    options = {"options": {"val_interval": interval, "epochs": epochs}, **options}
    TrainingCheckpoints(folder, {"model": nn.Linear(1, 1)}, evaluator, "auc", **options).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    return trainer.state.epoch, torch.load(folder / "last.pt", weights_only=True)["best"]["epoch"]


@pytest.mark.parametrize(
    ("interval", "patience", "epochs", "ended", "best"),
    [(5, 3, 10, 10, 5), (5, 1, 20, 10, 5), (2, 2, 20, 6, 2), (1, 3, 20, 4, 1), (5, 2, 17, 15, 5), (3, 0, 11, 11, 3)],
)
def test_patience_counts_validations(tmp_path, interval, patience, epochs, ended, best):
    assert validated_every(tmp_path, interval, epochs, [0.8, *[0.7] * 20], patience=patience) == (ended, best)


def test_patience_is_counted_across_a_resume(tmp_path):
    values = [0.8, *[0.7] * 20]
    options = {"patience": 3, "options": {"val_interval": 2, "epochs": 20}}
    validated_every(tmp_path, 2, 5, values, **options)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["waited"] == 1
    del state["waited"], state["steps"], state["kinds"], state["averaged"]  # as an earlier version wrote it
    torch.save(state, tmp_path / "last.pt")
    assert validated_every(tmp_path, 2, 20, values, resume=True, **options) == (8, 2)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_would_never_validate_is_refused_before_its_first_step(tmp_path, resume):
    if resume:
        validated_every(tmp_path, 3, 2, [0.5] * 9, options={"val_interval": 3, "epochs": 5})
    message = "no epoch of 2 would be validated with val_interval 3 after epoch 0"
    if resume:
        state = torch.load(tmp_path / "last.pt", weights_only=True)
        torch.save({**state, "options": {"val_interval": 7, "epochs": 5}}, tmp_path / "last.pt")
        message = "no epoch of 5 would be validated with val_interval 7 after epoch 2"
    with pytest.raises(ValueError, match=message):
        if resume:
            validated_every(tmp_path, 7, 5, [0.5], resume=True)
        else:
            validated_every(tmp_path, 3, 2, [0.5])
    assert resume or not list(tmp_path.iterdir())


def test_an_engine_that_is_run_again_begins_a_new_run(tmp_path):
    _, _, run = training(tmp_path, [0.9, 0.8], 2)
    run()
    run()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (state["best"]["epoch"], state["waited"]) == (1, 1)
    assert {file.name for file in tmp_path.iterdir()} == {"model.pt", "last.pt", "model.1.pt", "last.1.pt", "lock"}


def test_a_checkpoint_without_names_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt holds no weights by their names, but list: train again"):
        TrainedWeights(tmp_path, nn.Linear(1, 1)).load()


def test_the_evaluators_own_comparison_chooses(tmp_path):
    """As for an error, which is better where it is smaller."""
    network, validation = nn.Linear(1, 1), Engine(lambda engine, batch: None)
    validation.metric_cmp_fn = lambda value, best: value < best
    trainer = Engine(lambda engine, batch: validation.state.metrics.update(mae=[3.0, 1.0, 2.0][engine.state.epoch - 1]))
    TrainingCheckpoints(tmp_path, {"model": network}, validation, "mae").attach(trainer)
    trainer.run([0], max_epochs=3)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["best"] == {"value": 1.0, "epoch": 2}
