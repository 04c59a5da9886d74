# SPDX-License-Identifier: Apache-2.0
"""Test scores of arms x seeds -> paired differences and their intervals.

Seeds and test cases are both samples: another seed and another test set would have given other numbers. Seeds take the
place of readers in a multi-reader multi-case study of diagnostic tests, so the analysis is that of Obuchowski and
Rockette (Commun. Stat. Simul. 24, 1995) with the degrees of freedom of Hillis (Stat. Med. 26, 2007). Seeds are paired:
run s of each arm has the same order of data and the same initialisation.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from monai_llmboost.studies.statistics.influence import (
    bootstrap_counts,
    check_groups,
    checked_scores,
    class_numbers,
    components,
    resampled,
)
from monai_llmboost.studies.statistics.records import Comparison, Intervals, Summary
from monai_llmboost.studies.statistics.verdict import LEVEL, POWER, verdict
from monai_llmboost.tasks import Classification
from monai_llmboost.tasks.task import Task, TaskMetric

# With fewer seeds their spread often comes out far too small by chance: simulated without any difference of two arms,
# up to 13 % of the tests at 5 % found one with two seeds, 8 % with three, but 3 to 6 % from four on. With fewer a least
# spread is taken, with which none to 8 % did; from four on it is not, since it would hide true differences.
SEEDS_FOR_A_SPREAD = 4
NOTHING = 1e-12  # a standard error below it is rounding


@dataclass(frozen=True)
class _Arm:
    """Of one arm and metric: value of each seed, influence (seeds, cases), mean over the runs of each sample."""

    values: np.ndarray
    influence: np.ndarray
    resampled: np.ndarray


def compare_arms(
    predictions: Mapping[str, np.ndarray],
    labels: np.ndarray,
    references: Sequence[str],
    folds: int = 1,
    task: Task | None = None,
) -> list[Comparison]:
    """Compare each pair of arms of which one is a reference, on the test cases of one data set.

    Args:
        predictions: for each arm the scores (runs, cases, values), such as the probabilities of the classes; run s of
            all arms has one seed.
        labels: (cases,).
        references: names of the arms that others are compared with. Of a pair the earlier in ``predictions`` is the
            reference.
        folds: how many consecutive runs have one seed; a seed's value is then the mean over them, for folds share most
            of their training cases and are no samples of their own.
        task: that the scores are of; ``None`` is a classification, with whole numbers from 0 as labels.

    Returns:
        A comparison for each metric of the task, in their order, and each pair.

    Raises:
        ValueError: arms differ in their runs, cases or classes; scores that are not finite; labels that are not those
            of the classes; fewer than two cases of a class; no reference, or one that is no arm.
    """
    arrays, labels, task = _checked(predictions, labels, task)
    unknown = [name for name in references if name not in arrays]
    if unknown or not references:
        raise ValueError(f"unknown references {unknown or 'none'}; choose from the arms {', '.join(arrays)}")
    counts = bootstrap_counts(task.groups(labels))
    comparisons = []
    for name, metric in task.metrics.items():
        arms = {}
        for arm, scores in arrays.items():
            values, influence = (mean_over_folds(each, folds) for each in components(metric, scores, labels))
            arms[arm] = _Arm(values, influence, resampled(metric, scores, labels, counts))
        family = [
            _compare(name, metric, (arm, arms[arm]), (reference, arms[reference]))
            for reference, arm in itertools.combinations(arms, 2)
            if reference in references or arm in references
        ]
        comparisons += correct_for_many(family, metric)
    return comparisons


def arm_summary(
    metric: str, predictions: np.ndarray, labels: np.ndarray, folds: int = 1, task: Task | None = None
) -> Summary:
    """Summarise one metric of the runs of one arm.

    Args:
        metric: its name in the task, such as ``"auc"``.
        predictions: (runs, cases, values).
        labels: (cases,).
        folds: as in :func:`compare_arms`; ``runs`` are then the seeds.
        task: as in :func:`compare_arms`.

    Raises:
        ValueError: as :func:`compare_arms`; an unknown metric.
    """
    arrays, labels, task = _checked({"arm": predictions}, labels, task)
    if metric not in task.metrics:
        raise ValueError(f"unknown metric {metric!r}; choose from {', '.join(task.metrics)}")
    found = task.metrics[metric]
    values, influence = (mean_over_folds(each, folds) for each in components(found, arrays["arm"], labels))
    error, df = over_seeds_and_cases(values, influence)
    return Summary.of(values.tolist(), interval(float(values.mean()), error, df, found.bounds))


def _checked(
    predictions: Mapping[str, np.ndarray], labels: np.ndarray, task: Task | None
) -> tuple[dict[str, np.ndarray], np.ndarray, Task]:
    arrays = checked_scores(predictions, labels)
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
    c = Cov2 and s² = MS(R). The cases alone make s² as large as v - c, v being the mean variance over the cases of one
    seed's value; below ``SEEDS_FOR_A_SPREAD`` seeds s² is not taken to be less.

    Args:
        values: (R,) of the seeds, or differences of two arms.
        influence: (R, cases), see :mod:`monai_llmboost.studies.statistics.influence`.

    Returns:
        The standard error (for R = 1 over the cases alone) and df; ``None``: the normal distribution.
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
    """Return the comparisons of one family with their p after Holm (Scand. J. Stat. 6, 1979), and their verdicts."""
    p = np.array([comparison.p for comparison in comparisons])
    order = p.argsort()
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    done = [replace(comparison, p_holm=float(p)) for comparison, p in zip(comparisons, corrected)]
    return [replace(comparison, verdict=verdict(comparison, metric)) for comparison in done]


def _compare(name: str, metric: TaskMetric, arm: tuple[str, _Arm], reference: tuple[str, _Arm]) -> Comparison:
    """Return all of a comparison that needs no other."""
    (arm_name, one), (reference_name, other) = arm, reference
    runs, influence = one.values - other.values, one.influence - other.influence
    seeds, mean = len(runs), float(runs.mean())
    error, df = over_seeds_and_cases(runs, influence)
    of_cases = _root(float((influence.mean(axis=0) ** 2).sum()))  # DeLong, of the mean over these seeds
    low, high = metric.bounds
    bounds = low - high, high - low
    over_seeds = None
    if seeds > 1:
        over_seeds = interval(mean, _root(float(runs.var(ddof=1)) / seeds), seeds - 1, bounds)
    percentiles = np.quantile(one.resampled - other.resampled, [LEVEL / 2, 1 - LEVEL / 2]).tolist()
    # With few seeds their spread may by chance come out so small that less would be unknown over seeds and cases than
    # over cases alone. That leaves p right on average, but no single interval may say so.
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
    """Return the interval of a metric or a difference of two, which stays within its bounds."""
    half = float(_distribution(df).ppf(1 - LEVEL / 2)) * error
    return [max(mean - half, bounds[0]), min(mean + half, bounds[1])]


def _p_of(mean: float, error: float, df: float | None) -> float:
    return float(2 * _distribution(df).sf(abs(mean) / error)) if error else 1.0


def _root(variance: float) -> float:
    root = float(np.sqrt(variance))
    return root if root > NOTHING else 0.0
