# SPDX-License-Identifier: Apache-2.0
import medmnist
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.handlers import from_engine

from monai_llmboost.engines import MedMNISTACC, MedMNISTAUC, bootstrap_interval, medmnist_acc, medmnist_auc
from monai_llmboost.tasks import TrainingDiverged


def cases(num_classes, number=60, seed=0):
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(number) % num_classes)
    scores = random.normal(size=(number, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    scores = np.exp(scores)
    return scores / scores.sum(1, keepdims=True), labels


@pytest.mark.parametrize(("name", "num_classes"), [("adrenalmnist3d", 2), ("fracturemnist3d", 3), ("organmnist3d", 11)])
def test_equals_the_evaluator_of_medmnist(name, num_classes):
    probabilities, labels = cases(num_classes)
    evaluator = medmnist.Evaluator.__new__(medmnist.Evaluator)  # its constructor wants the file of the set
    evaluator.info, evaluator.labels = medmnist.INFO[name], labels[:, None]
    evaluator.flag, evaluator.split, evaluator.size_flag = name, "test", ""
    expected = evaluator.evaluate(probabilities)
    assert medmnist_auc(probabilities, labels) == pytest.approx(expected.AUC, abs=1e-12)
    assert medmnist_acc(probabilities, labels) == pytest.approx(expected.ACC, abs=1e-12)
    assert 0.7 < expected.AUC < 1


def test_a_tie_of_two_classes_counts_as_the_first():
    assert medmnist_acc(np.array([[0.5, 0.5], [0.4, 0.6]]), np.array([0, 1])) == 1.0


def test_a_class_without_cases():
    with pytest.raises(ValueError, match=r"there are none of the class\(es\) \[1\]: add some"):
        medmnist_auc(np.full((3, 2), 0.5), np.zeros(3, int))


@pytest.mark.parametrize("decollated", [False, True])
def test_as_ignite_metrics_over_uneven_batches(decollated):
    probabilities, labels = cases(3, number=50)
    p, y = torch.tensor(probabilities), torch.tensor(labels)

    def step(engine, index):
        batch = {"pred": p[index], "label": y[index]}
        return [{"pred": a, "label": b} for a, b in zip(*batch.values())] if decollated else batch

    engine = Engine(step)
    MedMNISTAUC(from_engine(["pred", "label"])).attach(engine, "auc")
    MedMNISTACC(from_engine(["pred", "label"])).attach(engine, "acc")
    state = engine.run([torch.arange(0, 32), torch.arange(32, 50)], max_epochs=2)
    assert state.metrics["auc"] == pytest.approx(medmnist_auc(probabilities, labels), abs=1e-6)
    assert state.metrics["acc"] == pytest.approx(medmnist_acc(probabilities, labels), abs=1e-6)


def test_interval_holds_the_value_and_shrinks_with_cases():
    widths = []
    for number in (40, 640):
        probabilities, labels = cases(2, number)
        low, high = bootstrap_interval(medmnist_auc, probabilities, labels, resamples=200)
        assert low < medmnist_auc(probabilities, labels) < high
        widths.append(high - low)
    assert 2.5 < widths[0] / widths[1] < 7, "by the root of 16, four times"


def test_interval_of_a_constant_answer_has_a_width():
    """It is right as often as the class is frequent, and that frequency is uncertain too."""
    labels = np.array([0] * 75 + [1] * 25)
    low, high = bootstrap_interval(medmnist_acc, np.tile([0.9, 0.1], (100, 1)), labels)
    assert 0.62 < low < 0.72 and 0.78 < high < 0.88


def test_interval_covers_the_truth_about_as_often_as_it_says():
    truth = medmnist_auc(*cases(2, 20_000, seed=99))
    hits = 0
    for seed in range(60):
        low, high = bootstrap_interval(medmnist_auc, *cases(2, 100, seed), resamples=100)
        hits += low <= truth <= high
    assert 50 <= hits <= 60


def test_probabilities_that_are_not_finite_are_a_training_that_diverged():
    with pytest.raises(
        TrainingDiverged, match="probabilities are not finite, training has diverged: lower the learning"
    ):
        medmnist_auc(np.full((2, 2), np.nan), np.array([0, 1]))


def test_a_metric_without_labels():
    engine = Engine(lambda engine, probabilities: (probabilities, None))
    MedMNISTAUC().attach(engine, "auc")
    with pytest.raises(ValueError, match="the probabilities have no labels: give batches with labels"):
        engine.run([torch.full((2, 2), 0.5)])
