# SPDX-License-Identifier: Apache-2.0
"""The value of a metric in each run, and the contribution of each test case to its variance.

The cases are a sample of all cases that could have been tested. Each row of the *influence* belongs to a run, and the
covariance matrix of the runs' values over such samples is ``influence @ influence.T``. Values and influence depend on
the kind of metric: a mean over cases, or a mean area under ROC curves.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

from monai_llmboost.tasks.task import TaskMetric

FEWEST_CASES = 2  # of a class: the variance of a single case is unknown


def components(
    metric: TaskMetric, scores: np.ndarray, labels: np.ndarray, patients: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a metric (runs,) and their influence (runs, cases), or (runs, patients) if these are given.

    Args:
        metric: metric of a task.
        scores: (runs, cases, values), all runs on the same cases.
        labels: (cases,).
        patients: patient of each case (cases,); ``None``: each case is of another patient.
    """
    values, influence = (_mean_components if metric.per_case else _curve_components)(metric, scores, labels)
    return values, influence if patients is None else _sum_over_patients(influence, patients)


def _sum_over_patients(influence: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Return the influence of each patient: the sum over their cases, which are not independent.

    Sources: for areas under ROC curves Obuchowski, Biometrics 53 (1997); for means Rao and Scott, Biometrics 48 (1992).
    """
    names, of_case = np.unique(patients, return_inverse=True)
    number, cases = len(names), len(of_case)
    summed = np.zeros((len(influence), number))
    np.add.at(summed.T, of_case, influence.T)
    # The influence has a factor for the variance of a sample of cases; now patients are the sample.
    return summed * np.sqrt(number / (number - 1) * (cases - 1) / cases)


def resampled(metric: TaskMetric, scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean of the runs' values for each bootstrap sample of the cases (samples,), computed exactly.

    Args:
        metric: metric of a task.
        scores: (runs, cases, values).
        labels: (cases,).
        counts: number of times that each case is in each sample (samples, cases).
    """
    return (_resampled_mean if metric.per_case else _resampled_areas)(metric, scores, labels, counts)


def _mean_components(metric: TaskMetric, scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the components of a mean over N cases: influence = (value of the case - mean) / sqrt(N (N - 1)).

    A case without a value (NaN) in a run counts neither in N nor in the influence of the run.
    """
    of_cases = metric.per_case(scores, labels)  # type: ignore[misc]
    there = np.isfinite(of_cases)
    cases = there.sum(axis=1, keepdims=True)
    values = np.where(there, of_cases, 0.0).sum(axis=1, keepdims=True) / cases
    return values[:, 0], np.where(there, of_cases - values, 0.0) / np.sqrt(cases * (cases - 1))


def _resampled_mean(metric: TaskMetric, scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    of_cases = metric.per_case(scores, labels)  # type: ignore[misc]
    there = np.isfinite(of_cases)
    drawn = counts @ there.T  # (samples, runs): cases with a value
    values = counts @ np.where(there, of_cases, 0.0).T / np.maximum(drawn, 1)
    # A sample without any case that has a value is no sample of this mean.
    return np.where(drawn > 0, values, np.nanmean(of_cases, axis=1)).mean(axis=1)


def can_be_compared(metric: TaskMetric, scores: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether each run has enough cases with a value of a metric; only means over cases may lack some."""
    if metric.per_case is None:
        return True
    return bool((np.isfinite(metric.per_case(scores, labels)).sum(axis=1) >= FEWEST_CASES).all())


def _curve_components(metric: TaskMetric, scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return areas under ROC curves, and DeLong's structural components of these areas.

    For m positive cases x and n other cases y, with psi = 1 if x scores above y, 1/2 for a tie, else 0::

        V(x) = mean over y of psi(x, y)    V(y) = mean over x of psi(x, y)    AUC = mean of V(x) = mean of V(y)
        influence(x) = (V(x) - AUC) / sqrt(m (m - 1))        influence(y) = (V(y) - AUC) / sqrt(n (n - 1))

    For several curves, values and influence are means over the curves.

    Source: DeLong et al., Biometrics 44 (1988); with ranks, in O(cases log cases): Sun and Xu, IEEE SPL 21 (2014).
    """
    values, influence = np.zeros(len(scores)), np.zeros(scores.shape[:2])
    curves = list(metric.curves(scores, labels))  # type: ignore[misc]
    for of_curve, positive in curves:
        x, y = of_curve[:, positive], of_curve[:, ~positive]
        m, n = x.shape[1], y.shape[1]
        ranks = stats.rankdata(of_curve, axis=1)
        of_x = (ranks[:, positive] - stats.rankdata(x, axis=1)) / n  # (runs, m): others below, ties by half
        of_y = 1 - (ranks[:, ~positive] - stats.rankdata(y, axis=1)) / m  # (runs, n)
        auc = of_x.mean(axis=1, keepdims=True)
        values += auc[:, 0]
        influence[:, positive] += (of_x - auc) / np.sqrt(m * (m - 1))
        influence[:, ~positive] += (of_y - auc) / np.sqrt(n * (n - 1))
    return values / len(curves), influence / len(curves)


def _resampled_areas(metric: TaskMetric, scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the exact areas for each sample, computed from all pairs of cases."""
    values = np.zeros(len(counts))
    curves = list(metric.curves(scores, labels))  # type: ignore[misc]
    for of_curve, positive in curves:
        wins = np.zeros((positive.sum(), (~positive).sum()))  # psi, the mean over the runs: AUC is linear in it
        for run in of_curve:
            x, y = run[positive, None], run[None, ~positive]
            wins += ((x > y) + 0.5 * (x == y)) / len(of_curve)
        of_x, of_y = counts[:, positive], counts[:, ~positive]
        values += ((of_x @ wins) * of_y).sum(axis=1) / (of_x.sum(axis=1) * of_y.sum(axis=1))
    return values / len(curves)


def bootstrap_counts(
    groups: np.ndarray, samples: int = 2000, seed: int = 0, patients: np.ndarray | None = None
) -> np.ndarray:
    """Return the number of times that each case is in each bootstrap sample (Efron 1979): (samples, cases).

    Each sample is drawn with replacement from all groups together, because the numbers of cases of each class would
    also vary in a new test set. A sample without a case of each group has no AUC, so it is drawn again.

    Args:
        groups: group of each case (cases,), such as its class.
        samples: number of samples.
        seed: seed of the random numbers.
        patients: patient of each case (cases,), who is drawn with all cases; ``None``: each case is of another patient.

    Example:
        >>> bootstrap_counts(np.array([0, 0, 1]), samples=4).sum(axis=1)
        array([3., 3., 3., 3.])
    """
    random, cases = np.random.default_rng(seed), len(groups)
    of_case = np.arange(cases) if patients is None else np.unique(patients, return_inverse=True)[1]
    number = of_case.max() + 1
    members = groups[:, None] == np.unique(groups)  # (cases, groups)
    counts = np.zeros((samples, cases))
    missing = np.ones(samples, dtype=bool)
    while missing.any():
        counts[missing] = random.multinomial(number, np.full(number, 1 / number), size=missing.sum())[:, of_case]
        missing = (counts @ members == 0).any(axis=1)
    return counts


def checked_scores(
    scores: Mapping[str, np.ndarray], labels: np.ndarray, missing: bool = False
) -> dict[str, np.ndarray]:
    """Return the scores of each arm (runs, cases, values) in float64 after checking them.

    Args:
        scores: by arm.
        labels: (cases,).
        missing: whether a value may be missing, NaN.

    Raises:
        ValueError: arms of different shapes; scores that are not finite; different numbers of labels and cases.
    """
    arrays = {name: np.asarray(p, dtype=np.float64) for name, p in scores.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(
            f"arms differ in their runs, cases or classes, their scores have the shapes {shapes}: give each arm the "
            "same seeds and cases"
        )
    shape = next(iter(shapes.values()))
    if len(shape) != 3 or shape[0] < 1:
        raise ValueError(f"scores must have the shape (runs, cases, classes), not {shape}: stack the runs")
    if len(labels) != shape[1]:
        raise ValueError(f"{shape[1]} cases need {shape[1]} labels, not {len(labels)}: give one label per case")
    broken = [
        name for name, array in arrays.items() if np.isinf(array).any() or (np.isnan(array).any() and not missing)
    ]
    if broken:
        raise ValueError(f"scores of the arms {broken} are not finite: leave out the seeds that failed")
    return arrays


def check_patients(patients: np.ndarray | None, cases: int) -> None:
    """Check the patients of the cases.

    Raises:
        ValueError: not one patient for each case; fewer than two patients.
    """
    if patients is None:
        return
    if np.shape(patients) != (cases,):
        raise ValueError(f"{cases} cases need {cases} patients, not {np.shape(patients)}: give one patient per case")
    if len(np.unique(patients)) < FEWEST_CASES:
        raise ValueError(f"the test cases must be of {FEWEST_CASES} patients or more: add patients")


def check_groups(groups: np.ndarray) -> None:
    """Check that each group of the cases, such as a class, has enough cases for a variance.

    Raises:
        ValueError: fewer than two cases of a group.
    """
    names, numbers = np.unique(groups, return_counts=True)
    rare = names[numbers < FEWEST_CASES].tolist()
    if rare:
        raise ValueError(
            f"each class needs {FEWEST_CASES} test cases or more, the classes {rare} have fewer: add cases"
        )


def class_numbers(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return labels as an array after checking that they are class numbers and that each class has enough cases.

    Raises:
        ValueError: labels that are not class numbers; fewer than two cases of a class.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be whole numbers (cases,), not {labels.dtype} of shape {labels.shape}: number the classes"
        )
    strange = sorted(set(labels.tolist()) - set(range(classes)))
    if strange:
        raise ValueError(f"labels must be from 0 to {classes - 1}, not {strange}: give the labels of these classes")
    rare = [k for k in range(classes) if (labels == k).sum() < FEWEST_CASES]
    if rare:
        raise ValueError(
            f"each class needs {FEWEST_CASES} test cases or more, the classes {rare} have fewer: add cases"
        )
    return labels
