# SPDX-License-Identifier: Apache-2.0
"""Records of the statistics: the comparison of two arms, and the summary of one arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Intervals:
    """95 % confidence intervals of a difference.

    Args:
        seeds: only over the seeds (t distribution); ``None`` for one seed.
        cases: only over the cases, percentiles of 2000 bootstrap samples, which are the same for all runs.
        both: over seeds and cases, never narrower than over the cases; for one seed only over the cases (AUC: DeLong).
    """

    seeds: list[float] | None
    cases: list[float]
    both: list[float]


@dataclass(frozen=True)
class Comparison:
    """The comparison of an arm with a reference by one metric; the fields are the keys in ``results.json``.

    Args:
        metric: name of the metric, such as ``"auc"``.
        arm: name of the arm.
        reference: name of the reference arm.
        difference: arm minus reference, mean over the seeds.
        runs: difference for each seed.
        standard_error: standard error of the difference over seeds and cases.
        df: its degrees of freedom; ``None``: normal distribution.
        intervals: confidence intervals of the difference.
        p: p-value over seeds and cases; 1 if the standard error is 0, because the spread is then unknown.
        p_holm: p-value corrected for all pairs of this metric (Holm 1979).
        p_delong: p-value only over the cases.
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
        """Return the comparison for ``results.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Summary:
    """The summary of one quantity over the runs of an arm.

    Args:
        mean: mean over the seeds.
        sd: standard deviation over the seeds; ``None`` for one seed.
        runs: value for each seed.
        interval: 95 % interval of the mean over seeds and cases (for one seed only over the cases), if known.
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
        """Return the summary for ``results.json``, without an unknown interval."""
        return {name: value for name, value in asdict(self).items() if name != "interval" or value is not None}
