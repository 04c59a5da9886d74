# SPDX-License-Identifier: Apache-2.0
"""Records of the statistics: a comparison of two arms, a summary of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Intervals:
    """Intervals of 95 % of a difference.

    Args:
        seeds: over the seeds alone (t distribution); ``None`` for one seed.
        cases: over the cases alone, percentiles of 2000 bootstrap samples, the same of all runs.
        both: over seeds and cases, never narrower than over the cases; for one seed over these alone, after DeLong.
    """

    seeds: list[float] | None
    cases: list[float]
    both: list[float]


@dataclass(frozen=True)
class Comparison:
    """An arm compared with a reference by one metric; the fields are those of ``results.json``.

    Args:
        metric: name of the metric, such as ``"auc"``.
        arm: name of the arm.
        reference: name of the arm that it is compared with.
        difference: arm minus reference, mean over the seeds.
        runs: difference of each seed.
        standard_error: of the difference over seeds and cases.
        df: its degrees of freedom; ``None``: normal distribution.
        intervals: of the difference.
        p: over seeds and cases; 1 where the standard error is 0, since nothing is then known of the spread.
        p_holm: after Holm 1979 over all pairs of this metric.
        p_delong: over the cases alone.
        detectable: the smallest true difference that is found with 80 % power, or ``None`` if unknown.
        verdict: see :func:`monai_llmboost.studies.statistics.verdict.verdict`.
    """

    metric: str
    arm: str
    reference: str
    difference: float
    runs: list[float]
    standard_error: float
    df: float | None
    intervals: Intervals
    p: float
    p_holm: float | None
    p_delong: float
    detectable: float | None
    verdict: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as ``results.json`` has it."""
        return asdict(self)


@dataclass(frozen=True)
class Summary:
    """A number of the runs of one arm.

    Args:
        mean: over the seeds.
        sd: standard deviation over the seeds; ``None`` for one.
        runs: of each seed.
        interval: of 95 % of the mean over seeds and cases (for one seed over the cases alone), where it is known.
    """

    mean: float
    sd: float | None
    runs: list[float]
    interval: list[float] | None = None

    @classmethod
    def of(cls, runs: Sequence[float], interval: list[float] | None = None) -> Summary:
        """Return the summary of some runs.

        Example:
            >>> Summary.of([0.5, 0.7])
            Summary(mean=0.6, sd=0.14142135623730948, runs=[0.5, 0.7], interval=None)
        """
        values = np.asarray(runs, dtype=float)
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        return cls(float(values.mean()), sd, values.tolist(), interval)

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as ``results.json`` has it, without an interval that is not known."""
        return {name: value for name, value in asdict(self).items() if name != "interval" or value is not None}
