# SPDX-License-Identifier: Apache-2.0
"""The conclusion from a comparison, as one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from monai_llmboost.studies.rounding import rounded
from monai_llmboost.studies.statistics.records import Comparison
from monai_llmboost.tasks.task import TaskMetric

LEVEL = 0.05  # two-sided, of all intervals and tests
POWER = 0.80  # of the detectable difference
# A base that is behind its best floor by less than this reaches it: such a difference is no reason to doubt the base.
FLOOR_MARGIN = 0.005
SEEDS_FOR_A_CLAIM = 5  # with fewer seeds, the verdict contains a warning


def verdict(comparison: Comparison, metric: TaskMetric) -> str:
    """Return the conclusion from a comparison, in one sentence.

    "better" or "worse": the interval over seeds and cases excludes 0, and p is below the level also after Holm.
    "suggests": p is below the level only before Holm. Otherwise no difference was seen, and the sentence gives the
    excluded and the detectable differences.
    """
    low, high = comparison.intervals.both
    start = f"{comparison.arm} against {comparison.reference}: {metric.label} {_signed(comparison.difference)}"
    few = _few_seeds(len(comparison.runs))
    if comparison.standard_error == 0:
        return f"{start} without any spread over seeds or test cases, so it is unknown if this is a difference{few}."
    start += f" [{rounded(low)}, {rounded(high)}]"
    if low <= 0 <= high:
        return f"{start}: no difference seen; {_excluded(comparison, metric)}{few}."
    gain = (comparison.difference > 0) == metric.larger_is_better
    p, p_holm = _p(comparison.p), comparison.p_holm
    if p_holm is None or p_holm < LEVEL:
        holm = "" if p_holm is None else f", {_p(p_holm)} corrected for all comparisons"
        return f"{start}: {'better' if gain else 'worse'} ({p}{holm}){few}."
    what = "a gain" if gain else "a loss"
    return f"{start}: suggests {what} ({p}), but not after correction for all comparisons ({_p(p_holm)}){few}."


def with_caveats(comparisons: Sequence[Comparison], caveats: Sequence[str]) -> list[Comparison]:
    """Return comparisons whose verdicts begin with caveats, sentences that limit every conclusion on a data set."""
    return [replace(each, verdict=" ".join([*caveats, each.verdict])) for each in comparisons]


def without_caveats(verdict: str, caveats: Sequence[str]) -> str:
    """Return a verdict without the sentences that :func:`with_caveats` put before it, to show them once for all."""
    return verdict.removeprefix(" ".join([*caveats, ""]))


def floor_caveat(base: tuple[str, float], floors: Sequence[Comparison], metric: TaskMetric) -> str:
    """Return a sentence if the base does not reach its best floor (to within ``FLOOR_MARGIN``), else ``""``.

    Args:
        base: name of the base and its mean of the metric.
        floors: comparisons of the base with each floor by this metric, base minus floor.
        metric: the metric.
    """
    name, mean = base
    sign = 1 if metric.larger_is_better else -1
    best = min(floors, key=lambda each: sign * each.difference, default=None)
    if best is None or sign * best.difference > -FLOOR_MARGIN:
        return ""
    low, high = best.intervals.both
    significant = not low <= 0 <= high and (best.p if best.p_holm is None else best.p_holm) < LEVEL
    return (
        f"The base {name} ({metric.label} {rounded(mean)}) does not reach {best.reference} "
        f"({rounded(mean - best.difference)}; {'' if significant else 'not '}significant), so this says little."
    )


def _excluded(comparison: Comparison, metric: TaskMetric) -> str:
    low, high = comparison.intervals.both
    gain, loss = (high, -low) if metric.larger_is_better else (-low, high)
    detectable = comparison.detectable or 0.0
    impossible = detectable >= metric.bounds[1] - metric.bounds[0]
    seen = "no true difference" if impossible else f"a true difference of {rounded(detectable)}"
    return (
        f"gains above {rounded(gain)} and losses above {rounded(loss)} are excluded at {100 * (1 - LEVEL):.0f} % "
        f"({seen} would have been seen with {100 * POWER:.0f} % power)"
    )


def _few_seeds(seeds: int) -> str:
    if seeds == 1:
        return "; from one seed, so over the test cases alone: the spread between seeds is unknown"
    if seeds < SEEDS_FOR_A_CLAIM:
        return f"; from {seeds} seeds only, which say little about the spread between seeds"
    return ""


def _signed(number: float) -> str:
    return ("" if rounded(number).startswith("-") else "+") + rounded(number)


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
