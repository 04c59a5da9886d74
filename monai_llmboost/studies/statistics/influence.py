# SPDX-License-Identifier: Apache-2.0
"""Predictions of runs -> the value of a metric in each run, and what each test case contributes to its variance.

The cases are taken as drawn from all cases that could have been tested. A row of *influence* belongs to a run, and the
covariance matrix of the runs' values over such draws is ``influence @ influence.T``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

Components = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
Redrawn = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class StudyMetric(NamedTuple):
    """A metric of runs on the same cases.

    ``components(predictions, labels)`` gives values (runs,) and influence (runs, cases);
    ``redrawn(predictions, labels, counts)`` the mean of the runs' values for each draw of cases (draws,), computed
    anew. Predictions are (runs, cases, classes), labels (cases,), counts (draws, cases): how often a case was drawn.
    """

    components: Components
    redrawn: Redrawn


def auc_components(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and DeLong's structural components of it.

    Of m cases x of a class and n others y, with psi = 1 if x scores above y, 1/2 if they tie, and 0 else::

        V(x) = mean over y of psi(x, y)    V(y) = mean over x of psi(x, y)    AUC = mean of V(x) = mean of V(y)
        influence(x) = (V(x) - AUC) / sqrt(m (m - 1))        influence(y) = (V(y) - AUC) / sqrt(n (n - 1))

    For more than two classes both are the mean over the classes, each against all others.

    Source: DeLong et al., Biometrics 44 (1988); by ranks, in O(cases log cases): Sun and Xu, IEEE SPL 21 (2014).
    """
    values, influence = np.zeros(len(predictions)), np.zeros(predictions.shape[:2])
    one_against_all = list(_one_against_all(predictions, labels))
    for scores, inside in one_against_all:
        x, y = scores[:, inside], scores[:, ~inside]
        m, n = x.shape[1], y.shape[1]
        ranks = stats.rankdata(scores, axis=1)
        of_x = (ranks[:, inside] - stats.rankdata(x, axis=1)) / n  # (runs, m): others below, ties by half
        of_y = 1 - (ranks[:, ~inside] - stats.rankdata(y, axis=1)) / m  # (runs, n)
        auc = of_x.mean(axis=1, keepdims=True)
        values += auc[:, 0]
        influence[:, inside] += (of_x - auc) / np.sqrt(m * (m - 1))
        influence[:, ~inside] += (of_y - auc) / np.sqrt(n * (n - 1))
    return values / len(one_against_all), influence / len(one_against_all)


def auc_redrawn(predictions: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of the runs' AUC in each draw of cases: every pair of drawn cases is counted, none is approximated."""
    values = np.zeros(len(counts))
    one_against_all = list(_one_against_all(predictions, labels))
    for scores, inside in one_against_all:
        wins = np.zeros((inside.sum(), (~inside).sum()))  # psi, the mean over the runs: AUC is linear in it
        for run in scores:
            x, y = run[inside, None], run[None, ~inside]
            wins += ((x > y) + 0.5 * (x == y)) / len(scores)
        of_x, of_y = counts[:, inside], counts[:, ~inside]
        values += ((of_x @ wins) * of_y).sum(axis=1) / (of_x.sum(axis=1) * of_y.sum(axis=1))
    return values / len(one_against_all)


def _one_against_all(predictions: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each class that is scored its scores (runs, cases) and whether a case belongs to it (cases,)."""
    classes = predictions.shape[2]
    for k in [1] if classes == 2 else range(classes):  # two classes have one curve: medmnist scores the second
        yield predictions[:, :, k], labels == k


def acc_components(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fraction of the N cases classified rightly; influence = (right or not - fraction) / sqrt(N (N - 1))."""
    right = _right(predictions, labels)
    values, cases = right.mean(axis=1), len(labels)
    return values, (right - values[:, None]) / np.sqrt(cases * (cases - 1))


def acc_redrawn(predictions: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of the runs' ACC in each draw of cases."""
    return counts @ _right(predictions, labels).mean(axis=0) / counts.sum(axis=1)


def _right(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1.0 where a run classifies a case rightly, else 0.0: (runs, cases)."""
    two = predictions.shape[2] == 2
    predicted = predictions[:, :, 1] > 0.5 if two else predictions.argmax(axis=2)
    return (predicted == labels).astype(np.float64)


def draws_of_cases(labels: np.ndarray, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """How often each case is in each bootstrap draw (Efron 1979): (draws, cases).

    As many cases as there are, with replacement, from all classes together, since a new test set would not have the
    same numbers of cases of each class either. A draw in which a class is missing is drawn again: it has no AUC.
    """
    random, cases = np.random.default_rng(seed), len(labels)
    members = labels[:, None] == np.unique(labels)  # (cases, classes)
    counts = np.zeros((draws, cases))
    missing = np.ones(draws, dtype=bool)
    while missing.any():
        counts[missing] = random.multinomial(cases, np.full(cases, 1 / cases), size=missing.sum())
        missing = (counts @ members == 0).any(axis=1)
    return counts


def checked_predictions(
    predictions: Mapping[str, np.ndarray], labels: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Predictions of each arm (runs, cases, classes) in float64 and labels (cases,), if they belong together.

    Raises:
        ValueError: arms of different shapes; predictions that are not finite; labels that are not whole numbers of the
            classes, one per case; fewer than two cases of a class, whose variance is unknown.
    """
    arrays = {name: np.asarray(p, dtype=np.float64) for name, p in predictions.items()}
    labels = np.asarray(labels)
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(
            f"expected the same runs, cases and classes of each arm, got predictions of shapes {shapes}: give each arm "
            "the same seeds and cases"
        )
    shape = next(iter(shapes.values()))
    if len(shape) != 3 or shape[0] < 1 or shape[2] < 2:
        raise ValueError(f"expected predictions (runs, cases, classes), got shape {shape}: stack the runs")
    _, cases, classes = shape
    if labels.shape != (cases,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"expected whole numbers as labels of the {cases} cases, got shape {labels.shape} of {labels.dtype}: "
            "give one label per case"
        )
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise ValueError(
            f"expected finite predictions, got others of the arms {broken}: leave out the seeds that failed"
        )
    strange = sorted(set(labels.tolist()) - set(range(classes)))
    if strange:
        raise ValueError(f"expected labels from 0 to {classes - 1}, got {strange}: give the labels of these classes")
    rare = [k for k in range(classes) if (labels == k).sum() < 2]
    if rare:
        raise ValueError(f"expected two test cases or more of each class, got fewer of the classes {rare}: add cases")
    return arrays, labels


# Of each run what medmnist_auc and medmnist_acc of monai_llmboost.tasks.classification give, as a test holds.
METRICS = {"auc": StudyMetric(auc_components, auc_redrawn), "acc": StudyMetric(acc_components, acc_redrawn)}
