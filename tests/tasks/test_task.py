# SPDX-License-Identifier: Apache-2.0
"""What every task must offer, on classifications and on two small tasks that stand for those to come."""

import csv
import io
from typing import ClassVar

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from monai_llmboost.artifacts.files import safe_row
from monai_llmboost.engines import MetricsFile, PredictionTable
from monai_llmboost.networks import ViT3D
from monai_llmboost.tasks import Classification, TaskMetric, bootstrap_interval


def error(scores, labels):
    return np.abs(scores[..., 0] - labels)


class Age:
    """A regression: one number for each case."""

    name = "age"
    metrics: ClassVar = {
        "mae": TaskMetric(
            "MAE",
            "val_mae",
            lambda scores, labels: float(error(scores, labels).mean()),
            per_case=error,
            bounds=(0.0, np.inf),
            larger_is_better=False,
        )
    }

    def activate(self, logits):
        return logits.float()

    def columns(self):
        return ["age"]

    def row(self, output):
        return {"age": f"{float(output[0]):.9g}"}

    def record(self, output):
        return {"age": float(output[0])}

    def label(self, value):
        return f"{float(value):.9g}"

    def read_scores(self, rows):
        return np.array([[float(row["age"])] for row in rows])

    def read_labels(self, rows):
        return np.array([float(row["label"]) for row in rows])

    def groups(self, labels):
        return np.zeros(len(labels), int)

    def check_labels(self, loader, which):
        pass


CASES = {
    "two classes": (Classification(["benign", "=malignant"]), 2),
    "three classes": (Classification(["-1", "a\nb", "c"]), 3),
    "regression": (Age(), 1),
}


@pytest.fixture(params=CASES)
def given(request):
    """A task, outputs of 40 cases and their labels."""
    task, width = CASES[request.param]
    torch.manual_seed(0)
    outputs = task.activate(torch.randn(40, width, dtype=torch.float64))
    labels = np.arange(40) % width if width > 1 else np.linspace(-1, 1, 40)
    return task, outputs, labels


def test_a_table_gives_scores_and_labels_back(given):
    task, outputs, labels = given
    assert outputs.dtype == torch.float32
    rows = [{**task.row(output), "label": task.label(label)} for output, label in zip(outputs, labels)]
    assert all(list(row)[:-1] == task.columns() for row in rows)
    assert task.row(outputs[0].tolist()) == task.row(outputs[0])
    file = io.StringIO()
    writer = csv.DictWriter(file, [*task.columns(), "label"])
    writer.writeheader()
    writer.writerows(map(safe_row, rows))
    read = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert np.allclose(task.read_scores(read), outputs, atol=1e-8)
    assert np.allclose(task.read_labels(read), labels)


def test_the_mean_over_cases_or_curves_is_the_metric(given):
    from sklearn.metrics import roc_auc_score

    task, outputs, labels = given
    scores = outputs.numpy().astype(float)
    for metric in task.metrics.values():
        if metric.per_case is not None:
            value = metric.per_case(np.stack([scores, scores]), labels).mean(axis=-1)
        else:
            value = np.mean([roc_auc_score(positive, one) for one, positive in metric.curves(scores, labels)])
        assert metric.compute(scores, labels) == pytest.approx(value, abs=1e-12)
        low, high = bootstrap_interval(metric.compute, scores, labels, 100, groups=task.groups(labels))
        assert metric.bounds[0] <= low < metric.compute(scores, labels) < high <= metric.bounds[1]


def test_handlers_ask_the_task(tmp_path):
    outputs, labels = torch.linspace(20, 80, 9).reshape(9, 1), torch.linspace(21, 78, 9)

    def step(engine, batch):
        engine.state.metric_details = {"val_mae": (outputs, labels)}
        return {"pred": outputs}

    engine = Engine(step)
    PredictionTable(tmp_path, nn.Identity(), task=Age()).attach(engine)
    MetricsFile(tmp_path, "val_mae", {}, Age()).attach(engine)
    engine.run([{"case": [f"case {i}" for i in range(9)], "label": labels}])
    assert (tmp_path / "predictions.csv").read_text().splitlines()[:2] == ["case,age,label", "case 0,20,21"]
    assert '"mae": ' in (tmp_path / "metrics.json").read_text()
    assert '"mae_interval_95": ' in (tmp_path / "metrics.json").read_text()


def test_a_networks_classes_are_its_task():
    network = ViT3D(1, 3, 8, 4, 8, 8, 1, 2, class_names=["a", "b", "c"])
    assert Classification.of(network).columns() == ["p_a", "p_b", "p_c", "predicted"]
    with pytest.raises(ValueError, match="the network Linear keeps no class names: make it with class_names"):
        Classification.of(nn.Linear(2, 2))


def test_equal_probabilities_are_the_first_class():
    assert Classification(["a", "b"]).record([0.5, 0.5]) == {"probabilities": [0.5, 0.5], "predicted": "a"}


def test_a_metric_without_its_variance():
    with pytest.raises(ValueError, match="AUC needs either per_case or curves"):
        TaskMetric("AUC", "val_auc", lambda scores, labels: 0.5)


def test_a_name_of_a_validation_metric_is_that_of_the_bundle():
    assert {name: metric.key for name, metric in Classification.metrics.items()} == {"auc": "val_auc", "acc": "val_acc"}
