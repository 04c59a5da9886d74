# SPDX-License-Identifier: Apache-2.0
"""Shortcuts: single numbers of a volume or of its header that alone predict the class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer

from monai_llmboost.tasks.medmnist_metrics import medmnist_auc

# One number that orders nine of ten pairs of cases correctly leaves a network little to show.
SHORTCUT_AUC = 0.9
# From this AUC on, a number is strong enough for a shortcut if no network is better than it by more than a margin:
# then nothing shows that the networks use more than the number.
STRONG_AUC, MARGIN = 0.8, 0.02
# Beginnings of the names of numbers that measure a size.
SIZES = ("volume", "number of voxels")
Labelled = tuple[Mapping[str, np.ndarray], np.ndarray]


def auc_of_single_numbers(training: Labelled, test: Labelled) -> dict[str, float]:
    """Return the test AUC of each number alone; for more than two classes, the mean over the classes.

    A logistic regression of the number's rank learns from the training cases which direction belongs to which class.
    Numbers that do not vary are left out.

    Args:
        training: numbers by name (cases,), and labels (cases,).
        test: the same of the test cases.
    """
    (numbers, labels), (test_numbers, test_labels) = training, test
    classes, found = np.union1d(labels, test_labels), {}
    if len(np.unique(labels)) < len(classes):
        return {}
    for name, values in numbers.items():
        if name in test_numbers and np.ptp(values) > 0:
            ranks = QuantileTransformer(n_quantiles=min(100, len(values)))
            model = make_pipeline(ranks, LogisticRegression(C=100.0, max_iter=1000)).fit(values[:, None], labels)
            probabilities = model.predict_proba(test_numbers[name][:, None])
            found[name] = medmnist_auc(probabilities, np.searchsorted(classes, test_labels))
    return found


def shortcut_warning(alone: Mapping[str, float], best_auc: float | None) -> str:
    """Return a warning that names the numbers that alone predict the class, or ``""`` if there are none.

    Args:
        alone: test AUC of each number.
        best_auc: test AUC of the best network, if it is known.

    Example:
        >>> shortcut_warning({"volume of the mask": 0.93, "voxel spacing along axis 2": 0.6}, best_auc=0.94)
        'Shortcut: the volume of the mask alone reaches AUC 0.930, the best arm 0.940. The task may be a test of size.'
    """
    bound = SHORTCUT_AUC if best_auc is None else min(SHORTCUT_AUC, max(STRONG_AUC, best_auc - MARGIN))
    found = sorted((-auc, name) for name, auc in alone.items() if auc >= bound)
    if not found:
        return ""
    numbers = ", ".join(f"the {name} alone reaches AUC {-auc:.3f}" for auc, name in found)
    best = "" if best_auc is None else f", the best arm {best_auc:.3f}"
    size = any(name.startswith(SIZES) for _, name in found)
    return f"Shortcut: {numbers}{best}. The task may be a test of {'size' if size else 'this number'}."
