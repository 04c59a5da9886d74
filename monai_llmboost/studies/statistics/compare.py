# SPDX-License-Identifier: Apache-2.0
"""Test predictions of arms x seeds -> paired differences, their intervals, and in one sentence what they allow to say.

Seeds and test cases are both samples: another seed and another test set would have given other numbers. Seeds stand
where readers stand in a multi-reader multi-case study of diagnostic tests, so the analysis is that of Obuchowski and
Rockette (Commun. Stat. Simul. 24, 1995) with the degrees of freedom of Hillis (Stat. Med. 26, 2007). Seeds are paired:
run s of each arm has the same order of data and the same initialisation.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from monai_llmboost.studies.rounding import rounded
from monai_llmboost.studies.statistics.influence import METRICS, checked_predictions, draws_of_cases

LEVEL = 0.05  # two-sided, of all intervals and tests
POWER = 0.80  # of which the detectable difference is told
# With fewer seeds their spread often comes out far too small by chance: simulated without any difference of two arms,
# up to 13 % of the tests at 5 % found one with two seeds, 8 % with three, but 3 to 6 % from four on. With fewer a least
# spread is taken, with which none to 8 % did; from four on it is not, since it would hide true differences.
SEEDS_FOR_A_SPREAD = 4
SEEDS_FOR_A_CLAIM = 5  # with fewer the verdict says so
NOTHING = 1e-12  # a standard error below it is rounding


class _Runs(NamedTuple):
    """Of one arm and metric: value of each run, influence (runs, cases), mean over the runs of each draw of cases."""

    values: np.ndarray
    influence: np.ndarray
    redrawn: np.ndarray


def compare_arms(
    predictions: Mapping[str, np.ndarray], labels: np.ndarray, references: Sequence[str], folds: int = 1
) -> list[dict[str, Any]]:
    """Compare each pair of arms of which one is a reference, on the test cases of one data set.

    Args:
        predictions: for each arm the probabilities (runs, cases, classes); run s of all arms has one seed.
        labels: (cases,), whole numbers from 0.
        folds: how many runs one after another have one seed; a seed's value is then the mean over them, for folds share
            most of their training cases and are no samples of their own.
        references: names of the arms that others are compared with. Of a pair the earlier in ``predictions`` is the
            reference.

    Returns:
        First for "auc", then for "acc", a dictionary for each pair:

        ``metric``, ``arm``, ``reference``;
        ``difference`` (arm minus reference, mean over the seeds) and ``runs`` (of each seed);
        ``standard_error`` and ``df`` of the difference over seeds and cases (``None``: normal distribution);
        ``intervals`` of 95 %: over the ``seeds`` (t; ``None`` for one seed), over the ``cases`` (percentiles of 2000
        bootstrap draws, the same of all runs), over ``both`` (never
        narrower than over the cases; for one seed over these alone, after DeLong);
        ``p`` (over both), ``p_holm`` (after Holm 1979 over all pairs of this metric), ``p_delong`` (over the cases
        alone); each is 1 where the standard error is 0, since nothing is then known of the spread;
        ``detectable``: the least true difference that would have been seen with 80 % power, or ``None`` if unknown;
        ``verdict``: see :func:`verdict`.

    Raises:
        ValueError: arms differ in their runs, cases or classes; predictions that are not finite; labels that are not
            those of the classes; fewer than two cases of a class; no reference, or one that is no arm.
    """
    arrays, labels = checked_predictions(predictions, labels)
    unknown = [name for name in references if name not in arrays]
    if unknown or not references:
        raise ValueError(f"expected references among the arms {list(arrays)}, got {list(references)}: name such arms")
    counts = draws_of_cases(labels)
    comparisons = []
    for metric, (components, redrawn) in METRICS.items():
        arms = {}
        for name, p in arrays.items():
            values, influence = (_of_seeds(each, folds) for each in components(p, labels))
            arms[name] = _Runs(values, influence, redrawn(p, labels, counts))
        family = [
            {"metric": metric, "arm": arm, "reference": reference, **_difference(arms[arm], arms[reference])}
            for reference, arm in itertools.combinations(arms, 2)
            if reference in references or arm in references
        ]
        comparisons += correct_for_many(family)
    return comparisons


def arm_summary(metric: str, predictions: np.ndarray, labels: np.ndarray, folds: int = 1) -> dict[str, Any]:
    """One arm alone: "auc" or "acc" of its runs.

    Args:
        metric: "auc" or "acc".
        predictions: (runs, cases, classes).
        labels: (cases,).
        folds: as in :func:`compare_arms`; ``runs`` are then the seeds.

    Returns:
        ``mean``; ``sd`` over the seeds (``None`` for one); ``runs``; ``interval`` of 95 % of the mean over seeds and
        cases (for one seed over the cases alone).

    Raises:
        ValueError: as :func:`compare_arms`; an unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(f"expected a metric of {list(METRICS)}, got {metric!r}: give one of these")
    arrays, labels = checked_predictions({"arm": predictions}, labels)
    values, influence = (_of_seeds(each, folds) for each in METRICS[metric].components(arrays["arm"], labels))
    mean = float(values.mean())
    return {
        "mean": mean,
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "runs": values.tolist(),
        "interval": _interval(mean, *over_seeds_and_cases(values, influence), least=0),
    }


def _of_seeds(runs: np.ndarray, folds: int) -> np.ndarray:
    """Runs (seeds * folds, ...) to the means of each seed's, (seeds, ...)."""
    return runs.reshape(-1, folds, *runs.shape[1:]).mean(axis=1)


def over_seeds_and_cases(values: np.ndarray, influence: np.ndarray) -> tuple[float, float | None]:
    """Standard error of the mean of ``values`` over seeds and cases, and its degrees of freedom.

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


def correct_for_many(comparisons: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the comparisons of one family ``p_holm``, their p after Holm (Scand. J. Stat. 6, 1979), and ``verdict``."""
    p = np.array([c["p"] for c in comparisons])
    order = p.argsort()
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    done = [{**c, "p_holm": float(p)} for c, p in zip(comparisons, corrected)]
    return [{**c, "verdict": verdict(c)} for c in done]


def verdict(comparison: Mapping[str, Any]) -> str:
    """What a comparison allows to say, in one sentence.

    Better or worse: the interval over seeds and cases excludes 0, and p is small after Holm too. Suggests: p is small
    before Holm only. Otherwise no difference was seen, and the sentence tells what is
    excluded, and what difference could have been seen.
    """
    low, high = comparison["intervals"]["both"]
    seeds = len(comparison["runs"])
    start = f"{comparison['arm']} against {comparison['reference']}: {comparison['metric'].upper()}"
    start += f" {_signed(comparison['difference'])}"
    few = ""
    if seeds == 1:
        few = "; from one seed, so over the test cases alone: the spread between seeds is unknown"
    elif seeds < SEEDS_FOR_A_CLAIM:
        few = f"; from {seeds} seeds only, which tell little of the spread between seeds"
    if comparison["standard_error"] == 0:
        return f"{start} without any spread over seeds or test cases: whether this is a difference cannot be told{few}."
    start += f" [{rounded(low)}, {rounded(high)}]"
    p, p_holm = comparison["p"], comparison["p_holm"]
    holm = "" if p_holm is None else f", {_p(p_holm)} corrected for all comparisons"
    what = "a gain" if comparison["difference"] > 0 else "a loss"
    if low <= 0 <= high:
        detectable, power = comparison["detectable"], f"would have been seen with {100 * POWER:.0f} % power"
        seen = f"{'no true difference' if detectable >= 1 else f'a true difference of {rounded(detectable)}'} {power}"
        excluded = (
            f"gains above {rounded(high)} and losses above {rounded(-low)} are excluded at {100 * (1 - LEVEL):.0f} %"
        )
        return f"{start}: no difference seen; {excluded} ({seen}){few}."
    if p_holm is None or p_holm < LEVEL:
        return f"{start}: {'better' if low > 0 else 'worse'} ({_p(p)}{holm}){few}."
    return f"{start}: suggests {what} ({_p(p)}), but not after correction for all comparisons ({_p(p_holm)}){few}."


def _difference(arm: _Runs, reference: _Runs) -> dict[str, Any]:
    """All of a comparison that needs no other."""
    runs, influence = arm.values - reference.values, arm.influence - reference.influence
    seeds, mean = len(runs), float(runs.mean())
    error, df = over_seeds_and_cases(runs, influence)
    of_cases = _root(float((influence.mean(axis=0) ** 2).sum()))  # DeLong, of the mean over these seeds
    over_seeds = None
    if seeds > 1:
        over_seeds = _interval(mean, _root(float(runs.var(ddof=1)) / seeds), seeds - 1)
    percentiles = np.quantile(arm.redrawn - reference.redrawn, [LEVEL / 2, 1 - LEVEL / 2])
    spread = _distribution(df)
    # With few seeds their spread may by chance come out so small that less would be unknown over seeds and cases than
    # over cases alone. That leaves p right on average, but no single interval may tell it.
    over_both = _interval(mean, error, df)
    over_both = [min(over_both[0], float(percentiles[0])), max(over_both[1], float(percentiles[1]))]
    known = max(error, of_cases)
    return {
        "difference": mean,
        "runs": runs.tolist(),
        "standard_error": error,
        "df": df,
        "intervals": {"seeds": over_seeds, "cases": percentiles.tolist(), "both": over_both},
        "p": _p_of(mean, error, df),
        "p_holm": None,
        "p_delong": _p_of(mean, of_cases, None),
        "detectable": float((spread.ppf(1 - LEVEL / 2) + spread.ppf(POWER)) * known) if error else None,
        "verdict": "",
    }


def _distribution(df: float | None) -> Any:
    return stats.norm() if df is None else stats.t(df)


def _interval(mean: float, error: float, df: float | None, least: float = -1) -> list[float]:
    """Of a metric or a difference of two, which cannot pass ``least`` and 1."""
    half = float(_distribution(df).ppf(1 - LEVEL / 2)) * error
    return [max(mean - half, least), min(mean + half, 1.0)]


def _p_of(mean: float, error: float, df: float | None) -> float:
    return float(2 * _distribution(df).sf(abs(mean) / error)) if error else 1.0


def _root(variance: float) -> float:
    root = float(np.sqrt(variance))
    return root if root > NOTHING else 0.0


def _signed(number: float) -> str:
    return ("" if rounded(number).startswith("-") else "+") + rounded(number)


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
