# SPDX-License-Identifier: Apache-2.0
"""Predicted classes at a chosen threshold, compared with values by hand and with scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_curve

from monai_llmboost.tasks import (
    TrainingDiverged,
    balanced_accuracy,
    choose_threshold,
    class_recalls,
    confusion_counts,
    predicted_classes,
    sensitivity_specificity,
)


def two(second):
    """The probabilities of two classes from those of the second."""
    second = np.asarray(second, dtype=float)
    return np.stack([1 - second, second], axis=1)


def random_cases(classes, number=80, seed=0):
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(number) % classes)
    scores = np.exp(random.normal(size=(number, classes)) + np.eye(classes)[labels])
    return scores / scores.sum(1, keepdims=True), labels


@pytest.mark.parametrize(
    ("second", "labels", "threshold"),
    [
        ([0.1, 0.2, 0.6, 0.8], [0, 0, 1, 1], 0.4),  # separated: in the middle of the gap
        ([0.1, 0.3, 0.2, 0.8], [0, 0, 1, 1], 0.15),  # J is 1/2 here and at 0.55; this one is more sensitive
        ([0.1, 0.3, 0.5, 0.5, 0.9], [0, 1, 0, 1, 1], 0.2),  # equal probabilities are not divided
        ([0.8, 0.2], [0, 1], 0.5),  # worse than chance
        ([0.4, 0.4, 0.4], [0, 1, 1], 0.5),  # one probability: nothing to choose
    ],
)
def test_thresholds_by_hand(second, labels, threshold):
    assert choose_threshold(two(second), np.array(labels)) == pytest.approx(threshold)


def test_of_equal_thresholds_the_balanced_one_is_chosen():
    # J = 1/3 at sensitivity and specificity (1, 1/3), (2/3, 2/3) and (1/3, 1).
    probabilities = two([0.1, 0.3, 0.6, 0.2, 0.5, 0.7])
    labels = np.array([0, 0, 0, 1, 1, 1])
    threshold = choose_threshold(probabilities, labels)
    assert threshold == pytest.approx(0.4)
    assert sensitivity_specificity(probabilities, labels, threshold) == pytest.approx((2 / 3, 2 / 3))


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_has_the_largest_youden_index_of_the_roc_curve(seed):
    probabilities, labels = random_cases(2, seed=seed)
    threshold = choose_threshold(probabilities, labels)
    assert threshold not in probabilities[:, 1]
    false_positive, true_positive, _ = roc_curve(labels, probabilities[:, 1])
    assert sum(sensitivity_specificity(probabilities, labels, threshold)) - 1 == pytest.approx(
        max(true_positive - false_positive)
    )


def test_neighbouring_floating_point_numbers_are_separated():
    low = 0.3
    high = np.nextafter(low, 1)
    probabilities, labels = two([low, high]), np.array([0, 1])
    assert sensitivity_specificity(probabilities, labels, choose_threshold(probabilities, labels)) == (1, 1)


@pytest.mark.parametrize(("classes", "threshold"), [(2, None), (2, 0.3), (3, None), (5, None)])
def test_recalls_are_those_of_scikit_learn(classes, threshold):
    probabilities, labels = random_cases(classes)
    predicted = predicted_classes(probabilities, threshold)
    assert class_recalls(probabilities, labels, threshold) == pytest.approx(
        recall_score(labels, predicted, average=None)
    )
    expected = balanced_accuracy_score(labels, predicted)
    assert balanced_accuracy(probabilities, labels, threshold) == pytest.approx(expected)
    assert class_recalls(probabilities, labels, threshold).mean() == pytest.approx(expected)


def test_confusion_by_hand():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    labels = np.array([0, 0, 1, 2])
    assert confusion_counts(probabilities, labels).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert class_recalls(probabilities, labels).tolist() == [0.5, 1, 1]


def test_a_threshold_needs_cases_of_both_classes():
    with pytest.raises(ValueError, match=r"3 cases have none of the class\(es\) \[1\], whose recall is undefined"):
        choose_threshold(two([0.1, 0.5, 0.9]), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"1 cases have none of the class\(es\) \[0\]"):
        choose_threshold(two([0.9]), np.ones(1, int))


def test_a_threshold_is_for_two_classes():
    with pytest.raises(ValueError, match=r"for two classes, not for probabilities of shape \(80, 3\)"):
        choose_threshold(*random_cases(3))


def test_probabilities_that_are_not_finite():
    with pytest.raises(TrainingDiverged, match="the probabilities of 1 of 2 cases are not finite, training has diverg"):
        choose_threshold(two([0.1, np.nan]), np.array([0, 1]))


def test_labels_that_are_no_class_numbers():
    with pytest.raises(ValueError, match="labels must be whole numbers from 0 to 1, not 2"):
        balanced_accuracy(two([0.1, 0.2, 0.9]), np.array([0, 1, 2]))
