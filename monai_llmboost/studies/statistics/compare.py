# SPDX-License-Identifier: Apache-2.0
"""Paired differences between arms, with confidence intervals over seeds and test cases.

Seeds and test cases are both samples: another seed or another test set would give other numbers. Seeds correspond to
the readers of a multi-reader multi-case study of diagnostic tests, so the analysis follows Obuchowski and Rockette
(Commun. Stat. Simul. 24, 1995) with the degrees of freedom of Hillis (Stat. Med. 26, 2007). Seeds are paired: run s of
each arm has the same order of data and the same initialisation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from monai_llmboost.studies.statistics.influence import (
    bootstrap_counts,
    can_be_compared,
    check_groups,
    check_patients,
    checked_scores,
    class_numbers,
    components,
    resampled,
)
from monai_llmboost.studies.statistics.records import Comparison, Intervals, Summary
from monai_llmboost.studies.statistics.verdict import LEVEL, POWER, verdict
from monai_llmboost.tasks import Classification
from monai_llmboost.tasks.task import Task, TaskMetric

# With fewer seeds, their spread is often far too small by chance: in simulations without a true difference, tests at
# 5 % found one in up to 13 % of cases with two seeds and 8 % with three, but in 3 to 6 % from four seeds on. Below four
# seeds, a minimum spread reduces this to 0 to 8 %; from four on it is not used, because it would hide true differences.
SEEDS_FOR_A_SPREAD = 4
NOTHING = 1e-12  # a smaller standard error is a rounding error


@dataclass(frozen=True)
class _Arm:
    """One arm and metric: value of each seed, influence (seeds, cases), mean over runs for each bootstrap sample."""

    values: np.ndarray
    influence: np.ndarray
    resampled: np.ndarray


def compare_arms(
    predictions: Mapping[str, np.ndarray],
    labels: np.ndarray,
    references: Sequence[str],
    folds: int = 1,
    task: Task | None = None,
    compared: Callable[[str, str], bool] | None = None,
    patients: np.ndarray | None = None,
) -> list[Comparison]:
    """Compare each pair of arms that includes a reference, on the test cases of one data set.

    Args:
        predictions: for each arm the scores (runs, cases, values), such as class probabilities; run s has the same
            seed in all arms.
        labels: (cases,).
        references: names of the arms that others are compared with. In a pair, the arm that comes first in
            ``predictions`` is the reference.
        folds: number of consecutive runs with the same seed; the value of a seed is the mean over them, because folds
            share most of their training cases and are not independent samples.
        task: task of the scores; ``None`` is a classification, with whole numbers from 0 as labels.
        compared: function of two arms, whether they are compared; ``None``: if one of them is a reference.
        patients: patient of each case (cases,), because cases of one patient are not independent; ``None``: each case
            is of another patient.

    Returns:
        A comparison for each metric, in the task's order, and each pair.

    Raises:
        ValueError: arms differ in their runs, cases or classes; scores that are not finite; labels that are not
            classes; fewer than two cases of a class or patients; no reference, or a reference that is not an arm.
    """
    arrays, labels, task = _checked(predictions, labels, task, patients)
    unknown = [name for name in references if name not in arrays]
    if unknown or not references:
        raise ValueError(f"unknown references {unknown or 'none'}; choose from the arms {', '.join(arrays)}")
    pairs = [
        (reference, arm)
        for reference, arm in itertools.combinations(arrays, 2)
        if (compared(reference, arm) if compared else {reference, arm} & set(references))
    ]
    return _compare_pairs(pairs, arrays, labels, folds, task, patients)


def compare_with_floors(
    predictions: Mapping[str, np.ndarray],
    labels: np.ndarray,
    base: str,
    floors: Sequence[str],
    folds: int = 1,
    task: Task | None = None,
    patients: np.ndarray | None = None,
) -> list[Comparison]:
    """Compare the base of a study with each of its floors: base minus floor.

    These comparisons are a family of their own, so that floors do not weaken the tests of the arms.

    Args:
        predictions: as in :func:`compare_arms`, with the base and the floors.
        labels: (cases,).
        base: name of the arm that the others are compared with first.
        floors: names of the floors.
        folds: as in :func:`compare_arms`.
        task: as in :func:`compare_arms`.
        patients: as in :func:`compare_arms`.

    Raises:
        ValueError: as :func:`compare_arms`.
    """
    arrays, labels, task = _checked({name: predictions[name] for name in (base, *floors)}, labels, task, patients)
    return _compare_pairs([(floor, base) for floor in floors], arrays, labels, folds, task, patients)


def _compare_pairs(
    pairs: Sequence[tuple[str, str]],
    arrays: Mapping[str, np.ndarray],
    labels: np.ndarray,
    folds: int,
    task: Task,
    patients: np.ndarray | None,
) -> list[Comparison]:
    """Return the comparisons of pairs of a reference and an arm, which are one family for each metric.

    A metric with fewer than two cases that have a value in each run is left out.
    """
    counts = bootstrap_counts(task.groups(labels), patients=patients)
    comparisons = []
    for name, metric in task.metrics.items():
        if not all(can_be_compared(metric, scores, labels) for scores in arrays.values()):
            continue
        arms = {}
        for arm, scores in arrays.items():
            values, influence = (mean_over_folds(each, folds) for each in components(metric, scores, labels, patients))
            arms[arm] = _Arm(values, influence, resampled(metric, scores, labels, counts))
        family = [_compare(name, metric, (arm, arms[arm]), (first, arms[first])) for first, arm in pairs]
        comparisons += correct_for_many(family, metric)
    return comparisons


def arm_summary(
    metric: str,
    predictions: np.ndarray,
    labels: np.ndarray,
    folds: int = 1,
    task: Task | None = None,
    patients: np.ndarray | None = None,
) -> Summary:
    """Summarise one metric of the runs of one arm.

    Args:
        metric: name of the metric in the task, such as ``"auc"``.
        predictions: (runs, cases, values).
        labels: (cases,).
        folds: as in :func:`compare_arms`; with folds, ``runs`` has a value for each seed.
        task: as in :func:`compare_arms`.
        patients: as in :func:`compare_arms`.

    Raises:
        ValueError: as :func:`compare_arms`; an unknown metric.
    """
    arrays, labels, task = _checked({"arm": predictions}, labels, task, patients)
    if metric not in task.metrics:
        raise ValueError(f"unknown metric {metric!r}; choose from {', '.join(task.metrics)}")
    found = task.metrics[metric]
    values, influence = (mean_over_folds(each, folds) for each in components(found, arrays["arm"], labels, patients))
    error, df = over_seeds_and_cases(values, influence)
    return Summary.of(values.tolist(), interval(float(values.mean()), error, df, found.bounds))


def _checked(
    predictions: Mapping[str, np.ndarray], labels: np.ndarray, task: Task | None, patients: np.ndarray | None
) -> tuple[dict[str, np.ndarray], np.ndarray, Task]:
    arrays = checked_scores(predictions, labels, getattr(task, "missing_scores", False))
    check_patients(patients, len(labels))
    if task is None:
        classes = next(iter(arrays.values())).shape[2]
        return arrays, class_numbers(labels, classes), Classification([f"class {k}" for k in range(classes)])
    check_groups(task.groups(labels))
    return arrays, labels, task


def mean_over_folds(runs: np.ndarray, folds: int) -> np.ndarray:
    """Return the mean of the runs of each seed: (seeds * folds, ...) -> (seeds, ...)."""
    return runs.reshape(-1, folds, *runs.shape[1:]).mean(axis=1)


def over_seeds_and_cases(values: np.ndarray, influence: np.ndarray) -> tuple[float, float | None]:
    """Return the standard error of the mean of ``values`` over seeds and cases, and its degrees of freedom.

    With s² the variance of the R values, c the mean covariance over the cases of two different seeds' values::

        variance = s²/R + max(c, 0)        df = (R - 1) ((s² + R max(c, 0)) / s²)²

    For differences of two arms c = 2 (Cov2 - Cov3) and s²/2 = MS(T x R) of Obuchowski and Rockette, for one arm
    c = Cov2 and s² = MS(R). Sampling of the cases contributes v - c to s², where v is the mean variance over the cases
    of one seed's value; below ``SEEDS_FOR_A_SPREAD`` seeds, v - c is the lower bound of s².

    Args:
        values: (R,), one value per seed, or differences of two arms.
        influence: (R, cases), see :mod:`monai_llmboost.studies.statistics.influence`.

    Returns:
        The standard error (for R = 1 only over the cases) and df; ``None``: the normal distribution.
    """
    seeds = len(values)
    own = float((influence**2).sum() / seeds)
    if seeds == 1:
        return _root(own), None
    spread = float(values.var(ddof=1))
    shared = max(float((influence.sum(axis=0) ** 2).sum() - seeds * own) / (seeds * (seeds - 1)), 0.0)
    if seeds < SEEDS_FOR_A_SPREAD:
        spread = max(spread, own - shared)
    whole = spread + seeds * shared
    df = None if spread <= 1e-6 * whole else (seeds - 1) * (whole / spread) ** 2
    return _root(whole / seeds), df


def correct_for_many(comparisons: Sequence[Comparison], metric: TaskMetric) -> list[Comparison]:
    """Return the comparisons of one family with p-values after Holm (Scand. J. Stat. 6, 1979) and with verdicts."""
    p = np.array([comparison.p for comparison in comparisons])
    order = p.argsort()
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    done = [replace(comparison, p_holm=float(p)) for comparison, p in zip(comparisons, corrected)]
    return [replace(comparison, verdict=verdict(comparison, metric)) for comparison in done]


def _compare(name: str, metric: TaskMetric, arm: tuple[str, _Arm], reference: tuple[str, _Arm]) -> Comparison:
    """Return a comparison without the fields that depend on other comparisons."""
    (arm_name, one), (reference_name, other) = arm, reference
    runs, influence = one.values - other.values, one.influence - other.influence
    seeds, mean = len(runs), float(runs.mean())
    error, df = over_seeds_and_cases(runs, influence)
    of_cases = _root(float((influence.mean(axis=0) ** 2).sum()))  # DeLong, for the mean over these seeds
    low, high = metric.bounds
    bounds = low - high, high - low
    over_seeds = None
    if seeds > 1:
        over_seeds = interval(mean, _root(float(runs.var(ddof=1)) / seeds), seeds - 1, bounds)
    percentiles = np.quantile(one.resampled - other.resampled, [LEVEL / 2, 1 - LEVEL / 2]).tolist()
    # With few seeds, their spread may by chance be so small that the interval over seeds and cases is narrower than the
    # interval over cases only. p is still right on average, but no single interval may be that narrow.
    over_both = interval(mean, error, df, bounds)
    over_both = [min(over_both[0], percentiles[0]), max(over_both[1], percentiles[1])]
    spread, known = _distribution(df), max(error, of_cases)
    return Comparison(
        metric=name,
        arm=arm_name,
        reference=reference_name,
        difference=mean,
        runs=runs.tolist(),
        standard_error=error,
        df=df,
        intervals=Intervals(over_seeds, percentiles, over_both),
        p=_p_of(mean, error, df),
        p_holm=None,
        p_delong=_p_of(mean, of_cases, None),
        detectable=float((spread.ppf(1 - LEVEL / 2) + spread.ppf(POWER)) * known) if error else None,
    )


def _distribution(df: float | None) -> Any:
    return stats.norm() if df is None else stats.t(df)


def interval(mean: float, error: float, df: float | None, bounds: tuple[float, float]) -> list[float]:
    """Return the confidence interval of a metric or a difference of metrics, clipped to its bounds."""
    half = float(_distribution(df).ppf(1 - LEVEL / 2)) * error
    return [max(mean - half, bounds[0]), min(mean + half, bounds[1])]


def _p_of(mean: float, error: float, df: float | None) -> float:
    return float(2 * _distribution(df).sf(abs(mean) / error)) if error else 1.0


def _root(variance: float) -> float:
    root = float(np.sqrt(variance))
    return root if root > NOTHING else 0.0
