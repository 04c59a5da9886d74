# SPDX-License-Identifier: Apache-2.0
"""Which cases weights were trained on, so that they are not evaluated on those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_llmboost.data.datasets.named import LabelledVolumes
from monai_llmboost.networks.class_names import TrainingCases


def labelled_volumes_of(loader: Any) -> LabelledVolumes | None:
    """Return the labelled volumes behind a loader and behind datasets around them; ``None`` for others."""
    while loader is not None and not isinstance(loader, LabelledVolumes):
        loader = getattr(loader, "dataset", None)
    return loader


def division_of(loader: Any) -> str | None:
    """Return the division into folds of the cases that a loader gives; ``None`` where they say nothing of it."""
    volumes = labelled_volumes_of(loader)
    return None if volumes is None else volumes.division


def check_cases(trained: str, loader: Any, path: Path) -> None:
    """Refuse to evaluate weights on cases that they were trained on by another division into folds.

    Args:
        trained: the division that the weights were trained by; empty for weights of an earlier version.
        loader: of the cases to evaluate.
        path: of the weights, for the message.

    Raises:
        ValueError: some of these cases were trained on.
    """
    volumes = labelled_volumes_of(loader)
    if not trained or volumes is None or volumes.split == "test" or trained == volumes.division:
        return
    if trained != TrainingCases.SEVERAL and trained.partition(", ")[0] != volumes.division.partition(", ")[0]:
        return  # another data set
    raise ValueError(
        f"expected cases that {path} was not trained on, got the split {volumes.split} of {volumes.division}, and it "
        f"was trained on {trained}: give the --folds, --fold and --seed of the training, or --split test"
    )
