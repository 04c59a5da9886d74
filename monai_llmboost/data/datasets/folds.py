# SPDX-License-Identifier: Apache-2.0
"""Folds: the cases of the training and validation splits, divided again for cross-validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from monai_llmboost.arguments import check_whole, is_whole


@dataclass(frozen=True)
class Folds:
    """Stratified division of the cases of ``"train"`` and ``"val"`` together into folds.

    One fold is the new ``"val"``, the others are the new ``"train"``; ``"test"`` stays as it is.

    Args:
        folds: number of folds; 0 keeps the official splits.
        fold: index of the fold that is ``"val"``.
        fold_seed: seed of the division.

    Raises:
        ValueError: an invalid number of folds, fold or seed.

    Example:
        >>> Folds(folds=2, fold=1).select(np.array([0, 0, 1, 1]), "val").tolist()
        [0, 3]
    """

    folds: int = 0
    fold: int = 0
    fold_seed: int = 0

    def __post_init__(self) -> None:
        if not is_whole(self.folds) or self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds must be 0 (the official splits) or a whole number from 2, not {self.folds!r}")
        check_whole("fold", self.fold, 0, max(self.folds, 1) - 1)
        check_whole("fold_seed", self.fold_seed, 0, 2**32 - 1, advice="give --seed 0, for instance")

    def applies_to(self, split: str) -> bool:
        """Return whether a split differs from the official one."""
        return self.folds > 0 and split != "test"

    def select(self, labels: np.ndarray, split: str, groups: np.ndarray | None = None) -> np.ndarray:
        """Return the sorted indices of the cases of a split, ``"train"`` or ``"val"``, by the labels of both.

        Args:
            labels: labels of the cases of both splits.
            split: the split.
            groups: group of each case, such as its patient; the cases of a group stay in one fold.

        Raises:
            ValueError: more folds than the rarest class has cases.
        """
        fewest = np.bincount(labels)[np.unique(labels)].min()
        if self.folds > fewest:
            raise ValueError(f"{self.folds} folds are more than the {fewest} cases of the rarest class: ask for fewer")
        kind = StratifiedKFold if groups is None else StratifiedGroupKFold
        division = kind(self.folds, shuffle=True, random_state=self.fold_seed)
        train, val = list(division.split(labels, labels, groups))[self.fold]
        return val if split == "val" else train

    def describe(self) -> str:
        """Return the division as text, such as ``"fold 0 of 4 by seed 0"``."""
        return f"fold {self.fold} of {self.folds} by seed {self.fold_seed}" if self.folds else "official splits"
