# SPDX-License-Identifier: Apache-2.0
"""Calibration: does a network that gives its most probable class 80 % get 80 % of these cases right?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_BINS = 15  # as in Guo et al. 2017


@dataclass(frozen=True)
class Reliability:
    """The cases in bins of the probability of their most probable class; empty bins are left out.

    Args:
        confidence: mean probability of the most probable class in each bin (bins,).
        accuracy: fraction of cases whose most probable class is right (bins,).
        cases: number of cases (bins,).

    Example:
        >>> import numpy as np
        >>> round(Reliability(np.array([0.6, 0.9]), np.array([0.5, 1.0]), np.array([3, 1])).error, 6)
        0.1
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    cases: np.ndarray

    @property
    def error(self) -> float:
        """Return the expected calibration error: the mean over the cases of abs(accuracy - confidence) in their bin."""
        return float(np.average(abs(self.accuracy - self.confidence), weights=self.cases))


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = NUM_BINS) -> Reliability:
    """Return the reliability of probabilities in bins of equal width, the lower edge of each left out.

    Args:
        probabilities: (cases, classes).
        labels: (cases,) whole numbers.
        bins: number of bins in [0, 1].

    Example:
        >>> import numpy as np
        >>> reliability(np.array([[0.7, 0.3], [0.68, 0.32], [0.1, 0.9]]), np.array([0, 1, 1])).accuracy.tolist()
        [0.5, 1.0]
    """
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    number = _bin_of(top, bins)
    cases = np.bincount(number, minlength=bins)
    there = cases > 0
    sums = (np.bincount(number, weights=values, minlength=bins) for values in (top, right))
    confidence, accuracy = (total[there] / cases[there] for total in sums)
    return Reliability(confidence, accuracy, cases[there])


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = NUM_BINS) -> float:
    """Return the expected calibration error (Guo et al. 2017, arXiv:1706.04599), 0 for a calibrated network.

    It is too large for few cases, see :func:`error_if_calibrated`. The arguments are those of :func:`reliability`.

    Example:
        >>> import numpy as np
        >>> round(calibration_error(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 1, 1])), 6)
        0.25
    """
    return reliability(probabilities, labels, bins).error


def error_if_calibrated(probabilities: np.ndarray, bins: int = NUM_BINS, draws: int = 500) -> float:
    """Return the mean calibration error of a perfectly calibrated network with these probabilities, by simulation.

    Each draw makes the most probable class of a case right with just its probability; the seed is fixed.

    Args:
        probabilities: (cases, classes).
        bins: number of bins in [0, 1].
        draws: number of draws.

    Example:
        >>> import numpy as np
        >>> few, many = (error_if_calibrated(np.tile([0.8, 0.2], (cases, 1))) for cases in (10, 1000))
        >>> few > 5 * many
        True
    """
    top = probabilities.max(axis=1)
    in_bin = np.eye(bins)[_bin_of(top, bins)]  # (cases, bins)
    right = np.random.default_rng(0).random((draws, len(top))) < top
    return float(abs((right - top) @ in_bin).sum(axis=1).mean() / len(top))


def _bin_of(values: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each value: bin m is (m / bins, (m + 1) / bins]."""
    return np.digitize(values, np.linspace(0, 1, bins + 1)[1:-1], right=True)
