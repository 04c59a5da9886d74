# SPDX-License-Identifier: Apache-2.0
"""The table of predictions and the file of metrics of an evaluation."""

import csv
import json

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import Dataset
from monai.handlers import from_engine
from torch import nn
from torch.utils.data import DataLoader

from monai_llmboost.artifacts.files import plain_cell
from monai_llmboost.engines import MedMNISTAUC, MetricsFile, PredictionTable
from monai_llmboost.engines.evaluation import cases as evaluated_cases
from monai_llmboost.networks.class_names import ClassNames
from monai_llmboost.tasks import bootstrap_draws


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
    with pytest.raises(ValueError, match=r"classes \['mass', 'no, mass'\], not for \['shell', 'ring'\]"):
        engine.run(batches[:1])


@pytest.fixture
def all_samples(monkeypatch):
    """Draw as many samples for an interval as a user has; other tests draw fewer."""
    monkeypatch.setattr(evaluated_cases, "bootstrap_draws", bootstrap_draws)


@pytest.mark.usefixtures("all_samples")
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


@pytest.mark.usefixtures("all_samples")
def test_metrics_are_of_patients_if_they_are_known(tmp_path):
    """Twenty patients with 8 equal cases each: the interval is that of twenty cases."""
    random = np.random.default_rng(0)
    p, labels = torch.tensor(random.dirichlet([1, 1], 20)).repeat(8, 1), (torch.arange(20) % 2).repeat(8)
    widths = []
    for known in (True, False):
        items = [{"case": f"{i:03d}", **({"patient": str(i % 20)} if known else {})} for i in range(160)]

        def step(engine, index):
            engine.state.batch = {"case": [f"{i:03d}" for i in index]}
            return {"pred": p[index], "label": labels[index]}

        engine = Engine(step)
        MedMNISTAUC(from_engine(["pred", "label"])).attach(engine, "auc")
        MetricsFile(tmp_path / str(known), "auc", {}).attach(engine)
        engine.run(DataLoader(Dataset(items), batch_size=50, collate_fn=lambda items: [int(i["case"]) for i in items]))
        written = json.loads((tmp_path / str(known) / "metrics.json").read_text())
        assert (written["cases"], written.get("patients")) == (160, 20 if known else None)
        widths.append(np.ptp(written["auc_interval_95"]))
    assert 2 < widths[0] / widths[1] < 4  # root of 8


def test_odd_names_do_not_cost_the_table(tmp_path):
    engine, batches = evaluator([{"case": "bad\udcff.nii.gz", "pred": [0.9, 0.1]}])
    PredictionTable(tmp_path, Named()).attach(engine)
    engine.run(batches[:1])
    assert rows_of(tmp_path)[0]["case"] == "bad\\udcff.nii.gz"


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
