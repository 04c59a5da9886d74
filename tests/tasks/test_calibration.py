# SPDX-License-Identifier: Apache-2.0
"""The calibration error, compared with values by hand and with the curve of scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from monai_llmboost.tasks import calibration_error, error_if_calibrated, reliability


def random_cases(number, classes, sharpness=1.0):
    """Cases of a network that is calibrated, and of one that is not, if sharpness is not 1."""
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(classes), number)
    labels = (random.random((number, 1)) > probabilities.cumsum(1)).sum(1).clip(max=classes - 1)
    shown = probabilities**sharpness
    return shown / shown.sum(1, keepdims=True), labels


def test_by_hand():
    # Bins of 1/15: two cases of 0.62 in (0.6, 0.667], one right; two of 0.9 and 0.92 in (0.867, 0.933], both right;
    # one of exactly 0.6 in (0.533, 0.6], wrong.
    second = np.array([0.62, 0.38, 0.9, 0.08, 0.6])
    labels = np.array([1, 1, 1, 0, 0])
    probabilities = np.stack([1 - second, second], axis=1)
    found = reliability(probabilities, labels)
    assert found.cases.tolist() == [1, 2, 2]
    assert found.confidence == pytest.approx([0.6, 0.62, 0.91])
    assert found.accuracy == pytest.approx([0, 0.5, 1])
    expected = (0.6 + 2 * 0.12 + 2 * 0.09) / 5
    assert calibration_error(probabilities, labels) == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_bins_are_those_of_scikit_learn(classes):
    probabilities, labels = random_cases(300, classes, sharpness=2)
    top, right = probabilities.max(1), probabilities.argmax(1) == labels
    accuracy, confidence = calibration_curve(right, top, n_bins=15)
    found = reliability(probabilities, labels)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.confidence == pytest.approx(confidence)
    assert found.cases.sum() == 300


def test_a_calibrated_network_has_the_error_of_few_cases():
    errors = {sharpness: calibration_error(*random_cases(4000, 3, sharpness)) for sharpness in (1, 2)}
    by_chance = error_if_calibrated(random_cases(4000, 3)[0])
    assert by_chance == pytest.approx(errors[1], abs=0.006)
    assert errors[2] > 5 * by_chance
    assert error_if_calibrated(random_cases(40, 3)[0]) > 5 * by_chance, (
        "ten times as much from a hundredth of the cases"
    )


def test_certain_cases():
    certain = np.eye(3)[[0, 1, 2, 0]]
    assert calibration_error(certain, np.array([0, 1, 2, 0])) == 0
    assert calibration_error(certain, np.array([1, 1, 2, 0])) == 0.25
    assert error_if_calibrated(certain) == 0
