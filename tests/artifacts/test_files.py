# SPDX-License-Identifier: Apache-2.0
import csv
import json
import stat
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver
from monai.handlers import from_engine
from torch import nn

from monai_llmboost.artifacts.files import plain_cell, safe_row, written_whole
from monai_llmboost.engines import (
    MedMNISTAUC,
    MetricsFile,
    PredictionTable,
    TrainedWeights,
    TrainingCheckpoints,
    checkpoints,
)
from monai_llmboost.networks.class_names import ClassNames


class Named(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.class_names = ClassNames(2, ["mass", "no, mass"])


def evaluator(items, batched=False):
    """An evaluator whose batches are lists of cases, as MONAI leaves them after decollation, or whole."""

    def step(engine, batch):
        engine.state.batch = [{k: v for k, v in item.items() if k != "pred"} for item in batch]
        return [{"pred": torch.tensor(item["pred"])} for item in batch]

    engine = Engine(whole(step) if batched else step)
    return engine, [items[:2], items[2:]]


def whole(step):
    """The same step, its batches as one dictionary each, as an engine leaves them that does not decollate."""

    def joined(items):
        columns = {key: [item[key] for item in items] for key in items[0]}
        return {key: torch.stack(v) if isinstance(v[0], torch.Tensor) else v for key, v in columns.items()}

    def whole_step(engine, batch):
        output = joined(step(engine, batch))
        engine.state.batch = joined(engine.state.batch)
        if "label" in engine.state.batch:
            output["label"] = engine.state.batch["label"] = torch.tensor(engine.state.batch["label"])
        return {**output, "image": torch.zeros(len(batch), 1)}

    return whole_step


def rows_of(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("batched", [False, True])
def test_prediction_table(tmp_path, batched):
    items = [
        {"case": "b", "pred": [0.25, 0.75], "refused": ""},
        {"case": "a", "pred": [0.5, 0.5], "refused": "too short"},
        {"case": "c", "pred": [float("nan"), 0.5], "refused": ""},
    ]
    engine, batches = evaluator(items, batched)
    PredictionTable(tmp_path, Named()).attach(engine)
    engine.run(batches)
    assert rows_of(tmp_path) == [
        {"case": "a", "p_mass": "", "p_no, mass": "", "predicted": "", "refused": "too short"},
        {"case": "b", "p_mass": "0.25", "p_no, mass": "0.75", "predicted": "no, mass", "refused": ""},
        {"case": "c", "p_mass": "", "p_no, mass": "", "predicted": "", "refused": "the network's output is not finite"},
    ]
    first = (tmp_path / "predictions.csv").read_bytes()
    engine.run(batches)
    assert (tmp_path / "predictions.1.csv").read_bytes() == first, "an earlier table is kept"


@pytest.mark.parametrize("batched", [False, True])
def test_labels_are_named_and_must_be_the_networks(tmp_path, batched):
    engine, batches = evaluator([{"case": "x", "pred": [0.9, 0.1], "label": 1}], batched)
    PredictionTable(tmp_path, Named(), ["mass", "no, mass"]).attach(engine)
    engine.run(batches[:1])
    assert rows_of(tmp_path)[0]["label"] == "no, mass"
    engine, batches = evaluator([])
    PredictionTable(tmp_path, Named(), ["shell", "ring"]).attach(engine)
    with pytest.raises(ValueError, match=r"classes \['shell', 'ring'\], the checkpoint's are \['mass', 'no, mass'\]"):
        engine.run(batches[:1])


def test_metrics_file(tmp_path):
    random = np.random.default_rng(0)
    p = torch.tensor(random.dirichlet([1, 1], 40))
    engine = Engine(lambda engine, index: {"pred": p[index], "label": (torch.arange(40) % 2)[index]})
    MedMNISTAUC(from_engine(["pred", "label"])).attach(engine, "auc")
    MetricsFile(tmp_path, "auc", {"dataset": "phantom"}).attach(engine)
    state = engine.run([torch.arange(25), torch.arange(25, 40)])
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert (written["dataset"], written["cases"]) == ("phantom", 40)
    assert written["auc"] == pytest.approx(state.metrics["auc"])
    for name in ("auc", "acc"):
        low, high = written[f"{name}_interval_95"]
        assert 0 <= low < written[name] < high <= 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with pytest.raises(RuntimeError, match="stopped"), written_whole(path) as file:
        file.write("half")
        raise RuntimeError("stopped")
    assert not list(path.parent.iterdir())
    with written_whole(path) as file:
        file.write("whole")
    assert path.read_text() == "whole"
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


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
    with pytest.raises(ValueError, match="nothing was validated"):
        training(tmp_path, [-np.inf] * 3, 1)[2]()
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt is of another run, for that in .* has none yet: move it away"):
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
    place, save = checkpoints.place_next, DiskSaver.__call__

    def killed(what):
        if trainer.state.epoch == 2:
            raise KeyboardInterrupt(what)

    def save_or_die(self, state, name, metadata=None):
        if name == before:
            killed(name)
        save(self, state, name, metadata)

    def place_or_die(folder):
        killed("model.pt")
        place(folder)

    monkeypatch.setattr(DiskSaver, "__call__", save_or_die)
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


def test_a_run_without_validation_says_so(tmp_path):
    _, _, run = training(tmp_path, [-np.inf] * 2, 2)
    with pytest.raises(ValueError, match=r"nothing was validated, so there is no model\.pt"):
        run()
    assert (tmp_path / "last.pt").is_file()


def test_odd_names_do_not_cost_the_table(tmp_path):
    engine, batches = evaluator([{"case": "bad\udcff.nii.gz", "pred": [0.9, 0.1]}])
    PredictionTable(tmp_path, Named()).attach(engine)
    engine.run(batches[:1])
    assert rows_of(tmp_path)[0]["case"] == "bad\\udcff.nii.gz"


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
        with pytest.raises(ValueError, match="to be free, but another training writes there: give another --ckpt_dir"):
            other()
        assert {file: file.read_bytes() for file in tmp_path.glob("*.pt")} == before

    run()
    other()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["progress"]["epoch"] == 2


@pytest.mark.parametrize("how", ["failed", "terminated"])
def test_a_training_that_ends_early_gives_its_folder_back(tmp_path, how):
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


def test_patience_goes_on_counting_after_a_resume(tmp_path):
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
    message = "expected a validation within 2 epochs, got val_interval 3 after epoch 0"
    if resume:
        state = torch.load(tmp_path / "last.pt", weights_only=True)
        torch.save({**state, "options": {"val_interval": 7, "epochs": 5}}, tmp_path / "last.pt")
        message = "expected a validation within 5 epochs, got val_interval 7 after epoch 2"
    with pytest.raises(ValueError, match=message):
        if resume:
            validated_every(tmp_path, 7, 5, [0.5], resume=True)
        else:
            validated_every(tmp_path, 3, 2, [0.5])
    assert resume or not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "names", [["=1+1", "+x"], ["-cmd", "@SUM(A1)"], ["\tx", "\rx"], ["'=x", "a'=b"], ["-1", "1e5"]]
)
def test_class_and_case_names_start_no_formula(tmp_path, names):
    network = nn.Linear(2, 2)
    network.class_names = ClassNames(2, names)
    items = [{"case": f"{name}.nii", "pred": [0.9, 0.1], "label": label} for label, name in enumerate(names)]
    engine, batches = evaluator(items)
    PredictionTable(tmp_path, network, names).attach(engine)
    engine.run(batches[:1])
    rows = rows_of(tmp_path)
    for cell in (cell for row in rows for cell in [*row, *row.values()]):
        assert cell[0] not in "=+-@\t\r\n" or cell == "-1"
    names = [name.replace("\r", " ") for name in names]
    assert {plain_cell(row["case"]) for row in rows} == {f"{name}.nii" for name in names}
    assert {plain_cell(row["label"]) for row in rows} == set(names)
    assert {plain_cell(row["predicted"]) for row in rows} == {names[0]}


def test_plain_cells_are_what_was_written():
    for text in ("=1", "'=1", "''=1", "a", "'a", "", "'", "-1", "'-1", "''-1", "+x", "-inf", "\uff1d1", " =1", "0.5"):
        (written,) = safe_row({"x": text}).values()
        assert plain_cell(written) == text
        assert not written.startswith(("=1", "+x", "\uff1d"))
    assert safe_row({"x": -1.5, "y": "-1.5", "z": None}) == {"x": -1.5, "y": "-1.5", "z": None}


def test_metrics_do_not_depend_on_the_order_of_cases(tmp_path):
    random = np.random.default_rng(0)
    p = torch.tensor(random.dirichlet([1, 1], 40))
    labels = torch.arange(40) % 2
    files = []
    for named in (True, False):
        for number, order in enumerate((np.arange(40), random.permutation(40))):

            def step(engine, index, named=named):
                engine.state.batch = {"case": [f"case-{i}" for i in index]} if named else {}
                return {"pred": p[index], "label": labels[index]}

            engine = Engine(step)
            MedMNISTAUC(from_engine(["pred", "label"])).attach(engine, "auc")
            MetricsFile(tmp_path / f"{named}{number}", "auc", {}).attach(engine)
            engine.run([order[:25], order[25:]])
            files.append((tmp_path / f"{named}{number}" / "metrics.json").read_text())
    assert files[0] == files[1]
    assert files[2] == files[3]


def test_an_engine_that_is_run_again_begins_a_new_run(tmp_path):
    _, _, run = training(tmp_path, [0.9, 0.8], 2)
    run()
    run()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (state["best"]["epoch"], state["waited"]) == (1, 1)
    assert {file.name for file in tmp_path.iterdir()} == {"model.pt", "last.pt", "model.1.pt", "last.1.pt", "lock"}


def test_a_checkpoint_without_names_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"expected weights by their names in .*model\.pt, got list: train again"):
        TrainedWeights(tmp_path, nn.Linear(1, 1)).load()
