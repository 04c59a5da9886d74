# SPDX-License-Identifier: Apache-2.0
"""A check that weights are not evaluated on their training cases."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from monai_llmboost.networks.class_names import TrainingCases

logger = logging.getLogger("monai_llmboost")


def divided_dataset(loader: Any) -> Any:
    """Return the innermost data set with a ``division`` into folds, inside a loader and wrapping data sets, or None."""
    while loader is not None and not hasattr(loader, "division"):
        loader = getattr(loader, "dataset", None)
    return loader


def division_of(loader: Any) -> str | None:
    """Return the division into folds of a loader's cases; ``None`` if it is unknown."""
    return getattr(divided_dataset(loader), "division", None)


def check_cases(trained: str, loader: Any, path: Path) -> None:
    """Refuse to evaluate weights on their training cases because of a different division into folds.

    Args:
        trained: the division of the training; empty for weights of an earlier version.
        loader: loader of the cases to evaluate.
        path: path of the weights, for the message.

    Raises:
        ValueError: the weights may have been trained on some of these cases.
    """
    dataset = divided_dataset(loader)
    if not trained or dataset is None or trained == dataset.division:
        return
    if dataset.split == "test" and getattr(dataset, "has_official_test", True):
        return
    if trained != TrainingCases.SEVERAL and trained.partition(", ")[0] != dataset.division.partition(", ")[0]:
        if not getattr(dataset, "has_official_test", True):
            logger.warning("these cases are of another list than those of the training: check that none is in both")
        return  # another data set
    if not getattr(dataset, "has_official_test", True):
        raise ValueError(
            f"the list of the cases, or its division, changed since the training of {path}, so weights might be "
            f"evaluated on cases that they were trained on: give {dataset.advice} (trained on "
            f"{trained}; now {dataset.division})"
        )
    raise ValueError(
        f"{path} was trained on {trained}, so maybe on cases of the split {dataset.split} of {dataset.division}: give "
        "the --folds, --fold and --seed of the training, or --split test"
    )
