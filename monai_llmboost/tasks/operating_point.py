# SPDX-License-Identifier: Apache-2.0
"""Predicted classes at a threshold, and what they say: sensitivity, specificity, recall, confusion matrix."""

from __future__ import annotations

import numpy as np

from monai_llmboost.tasks.task import TrainingDiverged

DEFAULT_THRESHOLD = 0.5


def choose_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the threshold of the second class that maximises Youden's J = sensitivity + specificity - 1.

    Thresholds lie midway between neighbouring probabilities, so that they hold for cases a little different. Of several
    with the same J, the one whose sensitivity and specificity are closest is taken, then the more sensitive one.

    Args:
        probabilities: (cases, 2), of the validation cases.
        labels: (cases,) 0 or 1.

    Returns:
        The threshold; 0.5 if none is better than calling all cases the same (J <= 0).

    Raises:
        ValueError: not two classes; a class without a case; labels that are not class numbers.
        TrainingDiverged: probabilities that are not finite.

    Example:
        >>> import numpy as np
        >>> choose_threshold(np.array([[0.9, 0.1], [0.75, 0.25], [0.5, 0.5]]), np.array([0, 0, 1]))
        0.375
    """
    from sklearn.metrics import roc_curve

    if probabilities.ndim != 2 or probabilities.shape[1] != 2:
        raise ValueError(
            f"a threshold is for two classes, not for probabilities of shape {probabilities.shape}: with more classes, "
            "predict the most probable one"
        )
    _check(probabilities, labels)
    second = probabilities[:, 1]
    # The first cut calls no case positive, the last one all of them; those between are probabilities, falling.
    false_positive, true_positive, cuts = roc_curve(labels, second, pos_label=1, drop_intermediate=False)
    sensitivity, specificity = true_positive[1:-1], 1 - false_positive[1:-1]
    youden = (sensitivity + specificity - 1).round(12)
    if not youden.size or youden.max() <= 0:
        return DEFAULT_THRESHOLD
    best = np.lexsort((-sensitivity, abs(sensitivity - specificity).round(12), -youden))[0]
    upper, lower = cuts[1 + best], cuts[2 + best]
    middle = lower + (upper - lower) / 2
    return float(middle if middle > lower else upper)  # equal for neighbouring floating-point numbers


def predicted_classes(probabilities: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Return the predicted class of each case (cases,).

    Args:
        probabilities: (cases, classes).
        threshold: the second of two classes is predicted from this probability on; ``None``: the most probable class.

    Example:
        >>> import numpy as np
        >>> predicted_classes(np.array([[0.7, 0.3], [0.9, 0.1]]), threshold=0.2).tolist()
        [1, 0]
    """
    if threshold is None:
        return probabilities.argmax(axis=1)
    return (probabilities[:, 1] >= threshold).astype(int)


def confusion_counts(probabilities: np.ndarray, labels: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Return the number of cases of each class (rows) that are predicted as each class (columns), (classes, classes).

    Args:
        probabilities: (cases, classes).
        labels: (cases,) whole numbers.
        threshold: see :func:`predicted_classes`.

    Raises:
        ValueError: labels that are not class numbers; a class without a case.
        TrainingDiverged: probabilities that are not finite.

    Example:
        >>> import numpy as np
        >>> confusion_counts(np.array([[0.7, 0.3], [0.1, 0.9]]), np.array([0, 1])).tolist()
        [[1, 0], [0, 1]]
    """
    from sklearn.metrics import confusion_matrix

    _check(probabilities, labels)
    return confusion_matrix(labels, predicted_classes(probabilities, threshold), labels=range(probabilities.shape[1]))


def class_recalls(probabilities: np.ndarray, labels: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Return for each class the fraction of its cases that are predicted as it (classes,).

    The arguments are those of :func:`confusion_counts`.

    Example:
        >>> import numpy as np
        >>> class_recalls(np.array([[0.7, 0.3], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 0])).tolist()
        [0.5, 1.0]
    """
    _check(probabilities, labels)
    classes = probabilities.shape[1]
    found = labels[predicted_classes(probabilities, threshold) == labels]
    return np.bincount(found, minlength=classes) / np.bincount(labels, minlength=classes)


def sensitivity_specificity(probabilities: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[float, float]:
    """Return the recalls of the second and of the first of two classes at a threshold.

    Example:
        >>> import numpy as np
        >>> sensitivity_specificity(np.array([[0.7, 0.3], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 0]), 0.5)
        (1.0, 0.5)
    """
    specificity, sensitivity = class_recalls(probabilities, labels, threshold)
    return float(sensitivity), float(specificity)


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray, threshold: float | None = None) -> float:
    """Return the mean of the classes' recalls, which equals ``sklearn.metrics.balanced_accuracy_score``.

    The arguments are those of :func:`confusion_counts`.

    Example:
        >>> import numpy as np
        >>> balanced_accuracy(np.array([[0.7, 0.3], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 0]))
        0.75
    """
    return float(class_recalls(probabilities, labels, threshold).mean())


def _check(probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Check that probabilities are finite, and that labels are class numbers with a case of each class."""
    unusable = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if unusable:
        raise TrainingDiverged(
            f"the probabilities of {unusable} of {len(labels)} cases are not finite, training has diverged: lower the "
            "learning rate"
        )
    classes = probabilities.shape[1]
    there = set(np.unique(labels).tolist())
    if unknown := sorted(there - set(range(classes))):
        raise ValueError(f"labels must be whole numbers from 0 to {classes - 1}, not {unknown[0]!r}")
    if absent := sorted(set(range(classes)) - there):
        raise ValueError(
            f"{len(labels)} cases have none of the class(es) {absent}, whose recall is undefined: add some"
        )
