# SPDX-License-Identifier: Apache-2.0
"""The metrics and the page of an evaluation of scans, whose threshold comes from validation cases."""

import json
import logging
import re
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import from_engine
from monai.transforms import Activationsd, Compose
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, recall_score, roc_auc_score
from torch import nn
from torch.utils.data import DistributedSampler

from monai_llmboost.engines import MedMNISTAUC, MetricsFile, ScanMetrics
from monai_llmboost.engines.evaluation import cases as evaluated_cases
from monai_llmboost.engines.evaluation import threshold as evaluation_threshold
from monai_llmboost.networks.class_names import ClassNames
from monai_llmboost.tasks import TrainingDiverged, bootstrap_draws, choose_threshold

TWO = ["benign", "malignant"]


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(evaluated_cases, "bootstrap_draws", partial(bootstrap_draws, resamples=40))


class Tiny(nn.Module):
    """Logits are the first voxels; batch normalization and dropout make training mode differ."""

    def __init__(self, names):
        super().__init__()
        self.class_names = ClassNames(len(names), names)
        self.norm = nn.BatchNorm3d(1)
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * self.drop(self.norm(x)).flatten(1)[:, : self.class_names.num_classes]


def items_of(classes=2, number=40, seed=0, split="test"):
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(number) % classes)
    logits = random.normal(size=(number, 8)) + 1.5 * np.eye(8)[labels]
    return [
        {"image": torch.tensor(z.reshape(1, 2, 2, 2)).float(), "label": int(y), "case": f"{split}/scan {i:02d}.nii"}
        for i, (z, y) in enumerate(zip(logits, labels))
    ]


def loader_of(items, batch_size=16, **options):
    return DataLoader(Dataset(items), batch_size=batch_size, **options)


def evaluate(folder, items, validation=None, names=TWO, network=None, before=(), **about):
    """Evaluate as a bundle does, and return what metrics.json says, and the page."""
    network = network or Tiny(names)
    loader = items if isinstance(items, DataLoader) else loader_of(items)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=network,
        postprocessing=Compose([Activationsd("pred", softmax=True, dim=-1)]),
        key_val_metric={"val_auc": MedMNISTAUC(from_engine(["pred", "label"]))},
        decollate=False,
    )
    for handler in before:
        evaluator.add_event_handler(Events.STARTED, handler)
    ScanMetrics(folder, network, names, "val_auc", {"split": "test", **about}, validation).attach(evaluator)
    MetricsFile(folder / "plain", "val_auc", {"split": "test", **about}).attach(evaluator)
    evaluator.run()
    written = json.loads((folder / "metrics.json").read_text())
    plain = json.loads((folder / "plain" / "metrics.json").read_text())
    assert {key: written[key] for key in plain} == plain, "what MetricsFile writes is there and the same"
    return written, Page(folder / "evaluation.html")


def probabilities_of(items, names=TWO, network=None):
    network = (network or Tiny(names)).eval()
    with torch.no_grad():
        p = network(torch.stack([item["image"] for item in items])).softmax(-1).double().numpy()
    return p, np.array([item["label"] for item in items])


class Page(HTMLParser):
    """The tags of a page, and the cells of its tables by row."""

    def __init__(self, file):
        super().__init__()
        self.text = file.read_text(encoding="utf-8")
        self.tags, self.tables, self.words = [], [], ""
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "style":
            return
        self.words = " ".join([*self.words.split(), *data.split()])
        if data.strip() and self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] = f"{self.tables[-1][-1][-1]} {' '.join(data.split())}".strip()


def test_two_classes(tmp_path):
    items, validation = items_of(), items_of(seed=1, split="val")
    written, page = evaluate(tmp_path, items, loader_of(validation))
    p, labels = probabilities_of(items)
    of_validation = probabilities_of(validation)
    assert written["threshold"] == pytest.approx(choose_threshold(*of_validation), abs=1e-6)
    assert written["positive_class"] == "malignant"
    assert written["validation"]["cases"] == 40
    assert written["validation"]["sensitivity"] == pytest.approx(
        recall_score(of_validation[1], of_validation[0][:, 1] >= written["threshold"])
    )
    predicted = p[:, 1] >= written["threshold"]
    assert written["auc"] == pytest.approx(roc_auc_score(labels, p[:, 1]))
    assert written["sensitivity"] == written["recall"]["malignant"] == pytest.approx(recall_score(labels, predicted))
    assert written["specificity"] == written["recall"]["benign"]
    assert written["specificity"] == pytest.approx(recall_score(labels, predicted, pos_label=0))
    assert written["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert written["confusion_matrix"] == {
        "class_names": TWO, "counts": confusion_matrix(labels, predicted).tolist(),
    }  # fmt: skip
    assert written["majority"] == 0.5
    for name in ("auc", "acc", "balanced_accuracy", "sensitivity", "specificity"):
        low, high = written[f"{name}_interval_95"]
        assert 0 <= low < written[name] < high <= 1
    low, high = written["calibration_error_interval_95"]
    assert 0 < low < high < 1
    assert written["caveats"] == []
    assert "optimistic" not in page.words
    for name in ("auc", "balanced_accuracy", "sensitivity", "specificity", "acc", "calibration_error", "threshold"):
        assert f"{written[name]:.3f}" in page.words
    counts = written["confusion_matrix"]["counts"]
    assert [row[0] for row in page.tables[0][2:]] == TWO
    assert [[int(cell.split()[0]) for cell in row[1:]] for row in page.tables[0][2:]] == counts


def test_the_network_is_in_evaluation_mode_and_has_its_loaded_weights(tmp_path):
    network = Tiny(TWO).train()

    def load_weights():
        network.norm.running_mean.fill_(0.3)
        network.scale.data.fill_(2)

    validation = items_of(seed=1, split="val")
    written, _ = evaluate(tmp_path, items_of(), loader_of(validation), network=network, before=[load_weights])
    assert network.training
    expected = choose_threshold(*probabilities_of(validation, network=network))
    assert written["threshold"] == pytest.approx(expected, abs=1e-6)
    assert expected != pytest.approx(choose_threshold(*probabilities_of(validation)), abs=1e-3), "weights matter"


@pytest.mark.parametrize("how", ["loader", "names", "split"])
def test_the_validation_cases_themselves_are_called_optimistic(tmp_path, how):
    items = items_of(split="val")
    loader = loader_of(items)
    validation = loader if how == "loader" else loader_of(items, batch_size=7)
    unnamed = [{key: value for key, value in item.items() if key != "case"} for item in items]
    evaluated = {"loader": loader, "names": items, "split": unnamed}[how]
    written, page = evaluate(tmp_path, evaluated, validation, split="val" if how == "split" else "mine")
    sentence = "The threshold and the epoch were chosen on these cases, so the numbers are optimistic."
    assert written["caveats"] == [sentence]
    assert sentence in page.words
    assert written["sensitivity"] == pytest.approx(written["validation"]["sensitivity"])


def test_some_cases_are_validation_cases(tmp_path):
    items = items_of()
    validation = items_of(seed=1, split="val")[:37] + items[:3]
    written, _ = evaluate(tmp_path, items, loader_of(validation), weights="last")
    assert written["caveats"] == ["The threshold was chosen on 3 of these cases, so the numbers are optimistic."]


def test_training_cases_say_nothing_about_others(tmp_path):
    written, page = evaluate(tmp_path, items_of(split="train"), split="train")
    assert written["caveats"] == [
        "The network was trained on these cases, so the numbers say nothing about other cases.",
        "No validation cases were given, so the threshold is 0.5.",
    ]
    assert written["validation"] is None
    assert all(sentence in page.words for sentence in written["caveats"])


def test_no_threshold_is_better_than_chance(tmp_path):
    validation = items_of(seed=1, split="val")
    for item in validation:
        item["image"] = torch.zeros(1, 2, 2, 2)
    written, _ = evaluate(tmp_path, items_of(), loader_of(validation))
    assert written["threshold"] == 0.5
    assert written["caveats"] == ["No threshold was better than chance on the validation cases, so it is 0.5."]


@pytest.mark.parametrize("classes", [3, 8])
def test_more_classes_need_no_threshold(tmp_path, classes):
    names = [f"class <{number}>" for number in range(classes)]
    items, unread = items_of(len(names), 80), loader_of([{"image": None, "label": 0, "case": "x"}])
    written, page = evaluate(tmp_path, items, unread, names)
    p, labels = probabilities_of(items, names)
    recalls = recall_score(labels, p.argmax(1), average=None)
    assert list(written["recall"]) == names
    assert list(written["recall"].values()) == pytest.approx(recalls)
    assert written["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert not {"threshold", "sensitivity", "specificity", "positive_class", "validation"} & set(written)
    for name, recall in written["recall"].items():
        low, high = written["recall_interval_95"][name]
        assert low <= recall <= high
        assert high - low > 0.05
    assert len(page.tables[0]) == 2 + len(names)
    areas = [roc_auc_score(labels == number, p[:, number]) for number in range(len(names))]
    assert all(f"{name} AUC {area:.3f}" in page.words for name, area in zip(names, areas))


def test_a_recall_without_an_error_has_an_interval(tmp_path):
    """Six of six cases do not make a network perfect."""
    items = items_of(number=12)
    for item in items:
        item["image"] = 9 * torch.eye(8)[item["label"]].reshape(1, 2, 2, 2)
    written, page = evaluate(tmp_path, items, loader_of(items_of(seed=1, split="val")))
    assert written["sensitivity"] == 1
    assert written["sensitivity_interval_95"] == pytest.approx([0.6097, 1], abs=1e-4)  # Wilson, by hand
    assert "No case is predicted wrongly" in page.words


def test_the_most_wrong_cases(tmp_path):
    items, validation = items_of(number=120), items_of(seed=1, split="val")
    written, page = evaluate(tmp_path, items, loader_of(validation))
    p, labels = probabilities_of(items)
    wrong = (p[:, 1] >= written["threshold"]) != labels
    own = np.where(labels == 1, p[:, 1], p[:, 0])
    expected = [items[i]["case"] for i in np.argsort(own) if wrong[i]][:12]
    assert [row[0] for row in page.tables[2][1:]] == expected
    assert len(expected) == 12
    assert f"{wrong.sum()} of 120 cases are predicted wrongly; these 12 most of all" in page.words


def test_patients_are_drawn_together_and_counted(tmp_path):
    items = [{**item, "patient": str(number // 4)} for number, item in enumerate(items_of())]
    written, page = evaluate(tmp_path, items, loader_of(items_of(seed=1, split="val")))
    assert (written["cases"], written["patients"]) == (40, 10)
    assert "40 cases of 10 patients" in page.words


HOSTILE = "\"><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>{{ 7*7 }}"


@pytest.mark.parametrize("names", [["<b>", "a#b"], ["gutartig", "bösartig äöü 中"], [HOSTILE, "\u202egnp $x$"]])
def test_odd_names_stay_text(tmp_path, names):
    items = [{**item, "case": f"{names[0]}/{number}"} for number, item in enumerate(items_of())]
    written, page = evaluate(tmp_path, items, loader_of(items_of(seed=1, split="val")), names, data=names[0])
    assert list(written["recall"]) == names
    assert "<script" not in page.text
    assert not [tag for tag, attributes in page.tags if tag in ("script", "img") or "onerror" in attributes]
    shown = [name.replace("\u202e", "\\u202e") for name in names]
    assert [row[0] for row in page.tables[1][1:]] == shown
    assert f"{shown[0]}/" in page.tables[2][1][0]


def test_the_page_sends_no_request_and_has_unique_ids(tmp_path):
    _, page = evaluate(tmp_path, items_of(3), names=["a", "b", "c"])
    assert not re.search(r"https?:|@import|#0[1-5]00[0-9a-f]{2}", page.text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 3
    pictures = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img"]
    assert [label.split()[0] for label in pictures] == ["ROC", "Reliability.", "Probabilities"]


def test_an_earlier_page_is_kept(tmp_path):
    first = evaluate(tmp_path, items_of())[1].text
    second = evaluate(tmp_path, items_of())[1].text
    assert (tmp_path / "evaluation.1.html").read_text() == first == second
    assert (tmp_path / "metrics.1.json").is_file()


def test_no_names_of_cases_in_the_log(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        evaluate(tmp_path, items_of(), loader_of(items_of(seed=1, split="val")))
    assert "on 40 cases" in caplog.text
    assert "scan 0" not in caplog.text


def test_validation_cases_of_one_class(tmp_path):
    items = [item for item in items_of(seed=1, split="val") if item["label"] == 0]
    with pytest.raises(ValueError, match="no validation case has the class malignant: add some"):
        evaluate(tmp_path, items_of(), loader_of(items))
    hidden = DataLoader([dict(item) for item in items], batch_size=8)  # a list does not say its labels
    with pytest.raises(ValueError, match=r"20 cases have none of the class\(es\) \[1\], whose recall is undefined"):
        evaluate(tmp_path, items_of(), hidden)


def test_validation_cases_without_labels(tmp_path):
    items = [{"image": item["image"]} for item in items_of()]
    with pytest.raises(ValueError, match="the validation cases have no labels: give a loader of labelled cases"):
        evaluate(tmp_path, items_of(), loader_of(items))


def test_outputs_that_are_not_finite(tmp_path):
    items = items_of(seed=1, split="val")
    for item in items[:2]:
        item["image"] = torch.full((1, 2, 2, 2), torch.nan)
    with pytest.raises(TrainingDiverged, match="the probabilities of 2 of 40 cases are not finite, training has div"):
        evaluate(tmp_path, items_of(), loader_of(items))
    with pytest.raises(TrainingDiverged, match="not finite, training has diverged"):
        evaluate(tmp_path, items)
    assert not (tmp_path / "metrics.json").exists()


def test_a_single_case(tmp_path):
    with pytest.raises(ValueError, match=r"no evaluated case has the class (benign|malignant): add some"):
        evaluate(tmp_path, items_of()[:1])


def test_the_smallest_evaluation(tmp_path):
    """One case of each class, and two for validation."""
    one = {item["label"]: item for item in items_of()}
    other = {item["label"]: item for item in items_of(seed=1, split="val")}
    written, _ = evaluate(tmp_path, list(one.values()), loader_of(list(other.values())))
    assert written["cases"] == 2
    assert np.ptp(written["sensitivity_interval_95"]) > 0.7


def test_another_network_than_the_cases(tmp_path):
    with pytest.raises(ValueError, match=r"trained for the classes \['a', 'b'\], not for \['benign', 'malignant'\]"):
        evaluate(tmp_path, items_of(), network=Tiny(["a", "b"]))


def test_a_divided_loader_is_gathered(tmp_path, monkeypatch):
    """Of two processes, each predicts half of the validation cases."""
    validation = Dataset(items_of(seed=1, split="val"))
    halves = [
        DataLoader(validation, batch_size=8, sampler=DistributedSampler(validation, 2, rank, shuffle=False))
        for rank in (0, 1)
    ]
    other = probabilities_of([validation.data[index] for index in halves[1].sampler])
    monkeypatch.setattr(evaluation_threshold, "gathered", lambda mine: [mine, other])
    written, _ = evaluate(tmp_path, items_of(), halves[0])
    assert written["validation"]["cases"] == 40
    assert written["threshold"] == pytest.approx(choose_threshold(*probabilities_of(validation.data)), abs=1e-6)
