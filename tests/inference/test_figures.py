# SPDX-License-Identifier: Apache-2.0
"""Figures of trained weights are reported where files prove that they are of these weights, and nowhere else."""

import csv
import json
import os
import shutil

import pytest
import torch

from monai_llmboost.inference import figures_of, weights_digest
from monai_llmboost.inference.figures import NONE, sentences

METRICS = {
    "dataset": "phantom",
    "split": "test",
    "cases": 240,
    "auc": 0.81234,
    "auc_interval_95": [0.75, 0.86],
    "acc": 0.7,
}


@pytest.fixture
def trained(tmp_path):
    """A folder as training and evaluation leave it: models and eval."""
    (tmp_path / "models").mkdir()
    (tmp_path / "eval").mkdir()
    torch.save({"a": torch.zeros(3)}, tmp_path / "models" / "model.pt")
    torch.save({"model": {}, "best": {"epoch": 2, "value": 0.75}}, tmp_path / "models" / "last.pt")
    digest = weights_digest(tmp_path / "models")
    (tmp_path / "eval" / "metrics.json").write_text(json.dumps({**METRICS, "weights_sha256": digest, "block": "none"}))
    with (tmp_path / "eval" / "learning_curves.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["epoch", "val_auc", "val_acc"], [1, 0.5, 0.5], [2, 0.75, 0.6], [3, 0.7, 0.7]])
    return tmp_path


def figures_in(folder):
    return figures_of(folder / "models" / "model.pt", [folder / "eval"])


def test_figures_of_these_weights(trained):
    figures = figures_in(trained)
    assert figures == {"evaluation": METRICS, "validation": {"epoch": 2, "auc": 0.75, "acc": 0.6}}
    assert sentences(figures) == [
        "Evaluated on 240 labelled cases (phantom, test split): AUC 0.812 [0.750, 0.860], ACC 0.700.",
        "In training, validation gave AUC 0.750, ACC 0.600 (best epoch, 2).",
    ]
    for name in ("metrics.json", "learning_curves.csv"):
        shutil.move(trained / "eval" / name, trained / "models" / name)
    assert figures_in(trained) == figures, "next to the weights"


def test_figures_of_a_segmentation(trained):
    digest = weights_digest(trained / "models")
    numbers = {"cases": 26, "split": "test", "dice": 0.8123, "dice_interval_95": None, "weights_sha256": digest}
    (trained / "eval" / "metrics.json").write_text(json.dumps(numbers))
    with (trained / "eval" / "learning_curves.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["epoch", "val_dice", "val_dice_liver"], [1, 0.5, 0.5], [2, 0.75, 0.75]])
    assert sentences(figures_in(trained)) == [
        "Evaluated on 26 labelled cases (test split): Dice 0.812.",
        "In training, validation gave Dice 0.750 (best epoch, 2).",
    ]


def test_other_weights_have_no_figures(trained):
    torch.save({"a": torch.ones(3)}, trained / "models" / "model.pt")
    later = (trained / "models" / "last.pt").stat().st_mtime_ns + 1
    os.utime(trained / "models" / "model.pt", ns=(later, later))
    assert figures_in(trained) == {}
    assert sentences({}) == [NONE]
    assert figures_of(trained / "nothing.pt", [trained / "eval"]) == {}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"epoch\n2\n", b"epoch,val_auc\nx,y\n", b"epoch,val_auc\n2,0.8\n"]
)
@pytest.mark.parametrize("name", ["eval/metrics.json", "eval/learning_curves.csv", "models/last.pt"])
def test_files_of_something_else_prove_nothing(trained, name, content):
    (trained / name).write_bytes(content)
    kind = "evaluation" if "metrics" in name else "validation"
    assert kind not in figures_in(trained)


def test_metrics_of_an_evaluation_before_it_named_its_weights(trained):
    (trained / "eval" / "metrics.json").write_text(json.dumps(METRICS))
    assert "evaluation" not in figures_in(trained)


def test_weights_of_another_training_that_were_put_back_have_no_validation(trained):
    """Older than ``last.pt``, as its own are, they are separated by their digest."""
    last, weights = trained / "models" / "last.pt", trained / "models" / "model.pt"
    digest = weights_digest(trained / "models")
    torch.save({**torch.load(last, weights_only=True), "model_sha256": digest}, last)
    assert figures_in(trained)["validation"] == {"epoch": 2, "auc": 0.75, "acc": 0.6}
    torch.save({"a": torch.ones(3)}, weights)
    os.utime(weights, ns=(0, 0))
    assert "validation" not in figures_in(trained)


def test_figures_of_a_fold_name_it():
    (sentence,) = sentences({"evaluation": {**METRICS, "split": "val", "folds": 4, "fold": 1}})
    assert sentence.startswith("Evaluated on 240 labelled cases (phantom, val split, fold 1 of 4): AUC")
    (sentence,) = sentences({"evaluation": {**METRICS, "folds": 4, "fold": 1}})
    assert "(phantom, test split)" in sentence, "which is no fold's"
