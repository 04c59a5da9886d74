# SPDX-License-Identifier: Apache-2.0
"""A part of the training cases, for learning curves over the number of labels."""

from __future__ import annotations

import math

import numpy as np

# Cases of each class that stay in any case, if it has as many.
FEWEST = 2


def check_fraction(fraction: float) -> None:
    """Check a fraction of the labels.

    Raises:
        ValueError: not a number above 0 and at most 1.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
        raise ValueError(
            f"label_fraction must be a number above 0 and at most 1, not {fraction!r}: give 0.1, for example"
        )


def select_labelled(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return indices of a fraction of the cases of each class, repeated to the number of all cases.

    An epoch over them has as many batches as one over all cases, so that any fraction is trained for the same number of
    steps. A smaller fraction with the same seed is a part of a larger one. Each class keeps at least two cases.

    Args:
        labels: (cases,) int64.
        fraction: above 0 and at most 1; 1 gives all cases in their order.
        seed: seed of the choice.

    Example:
        >>> select_labelled(np.array([0] * 6 + [1] * 4), 0.5, seed=0).tolist()
        [1, 3, 5, 7, 8, 1, 3, 5, 7, 8]
    """
    if fraction == 1:
        return np.arange(len(labels))
    random = np.random.default_rng([seed, len(labels)])
    chosen = []
    for label in np.unique(labels):
        own = random.permutation(np.flatnonzero(labels == label))
        chosen.append(own[: max(FEWEST, math.ceil(round(fraction * len(own), 6)))])
    return np.resize(np.sort(np.concatenate(chosen)), len(labels))
