# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals of a metric over the cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np


def bootstrap_interval(
    metric: Callable[[np.ndarray, np.ndarray], float],
    scores: np.ndarray,
    labels: np.ndarray,
    resamples: int = 500,
    coverage: float = 0.95,
    groups: np.ndarray | None = None,
    patients: np.ndarray | None = None,
) -> tuple[float, float]:
    """Return the bootstrap percentile interval of a metric over the cases (Efron 1979), with a fixed seed.

    Args:
        metric: scores (cases, values) and labels (cases,) -> one number.
        scores: scores of all cases, such as class probabilities.
        labels: labels of all cases.
        resamples: number of bootstrap samples.
        coverage: coverage of the interval, 0 to 1.
        groups: group of each case (cases,); a sample without a case of each group is drawn again, because the metric
            is undefined on it. ``None``: the labels, which are classes.
        patients: patient of each case (cases,), who is drawn with all cases, because cases of one patient are not
            independent; ``None``: each case is of another patient.

    Example:
        >>> import numpy as np
        >>> low, high = bootstrap_interval(lambda scores, labels: scores.mean(), np.arange(100) / 100, np.zeros(100))
        >>> low < 0.495 < high
        True
    """
    draws = bootstrap_draws(labels if groups is None else groups, resamples, patients)
    values = [metric(scores[drawn], labels[drawn]) for drawn in draws]
    low, high = np.quantile(values, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def bootstrap_draws(
    groups: np.ndarray, resamples: int = 500, patients: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yield the indices of the cases of each bootstrap sample, with a fixed seed; see :func:`bootstrap_interval`.

    Example:
        >>> import numpy as np
        >>> drawn = next(bootstrap_draws(np.array([0, 0, 0, 1, 1])))
        >>> len(drawn), 3 in drawn or 4 in drawn
        (5, True)
    """
    random = np.random.default_rng(0)
    needed = len(np.unique(groups))
    of_patients = None if patients is None else [np.flatnonzero(patients == name) for name in np.unique(patients)]
    number = len(groups if of_patients is None else of_patients)
    while resamples:
        drawn = random.integers(number, size=number)
        if of_patients is not None:
            drawn = np.concatenate([of_patients[patient] for patient in drawn])
        if len(np.unique(groups[drawn])) == needed:
            yield drawn
            resamples -= 1
