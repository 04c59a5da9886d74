# SPDX-License-Identifier: Apache-2.0
"""The division of a list's cases into training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from monai_llmboost.arguments import check_whole, is_positive
from monai_llmboost.data.datasets.folds import Folds
from monai_llmboost.data.labelled.case import LabelledCase

# Folds of a list without a validation split.
FOLDS = 5
# A fraction for the test is turned into one with a denominator up to this, such as 3/10, or larger for one part.
MOST_PARTS = 10


@dataclass(frozen=True)
class Division:
    """How the cases are divided.

    Cases of one group, such as a patient, stay together, and each part has every class in about the same share. What a
    list says (a split, a fold) is kept.

    Args:
        folds: number of folds to divide the training cases into, one of which validates; ``None``: those of the list,
            or :data:`FOLDS` if it has neither a validation split nor folds.
        fold: the fold that validates, from 0.
        test_fraction: fraction of the cases to set aside as test, if the list has no test split; 0 for none.
        seed: seed of what is divided here.

    Raises:
        ValueError: an invalid number, or more folds than cases of a class.

    Example:
        >>> cases = [LabelledCase(str(n), (str(n),), "ab"[n % 2]) for n in range(20)]
        >>> divided, text = Division(folds=5).divide(cases)
        >>> sum(case.split == "val" for case in divided), text
        (4, 'fold 0 of 5 by seed 0')
    """

    folds: int | None = None
    fold: int = 0
    test_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (is_positive(self.test_fraction) or self.test_fraction == 0) or self.test_fraction > 0.5:
            raise ValueError(f"test_fraction must be a number from 0 to 0.5, not {self.test_fraction!r}")
        check_whole("split_seed", self.seed, 0, 2**32 - 1)

    def divide(self, cases: Sequence[LabelledCase]) -> tuple[list[LabelledCase], str]:
        """Return the cases, each with its split, and the division as text."""
        cases = self._set_test_aside(cases)
        rest = [case for case in cases if case.split != "test"]
        if not rest:  # a list to evaluate only
            return list(cases), "all test cases"
        text = "" if not self.test_fraction else f", {self.test_fraction:g} set aside as test by seed {self.seed}"
        if self.folds is None and any(case.split == "val" for case in rest):
            if self.fold:
                raise ValueError(f"fold {self.fold} has no effect: the list has a validation split; give folds too")
            return cases, f"the list's split{text}"
        if self.folds is None and all(case.fold is not None for case in rest):
            return self._by_list(cases, rest), f"fold {self.fold} of the list{text}"
        folds = Folds(FOLDS if self.folds is None else self.folds, self.fold, self.seed)
        if not folds.folds:
            raise ValueError("folds 0 is no number of folds: leave out folds, or give 5, for example")
        split = dict.fromkeys((case.name for case in rest), "train")
        labels = np.unique([case.label for case in rest], return_inverse=True)[1]
        _check_groups(rest, folds.folds, "folds")
        chosen = folds.select(labels, "val", _groups(rest))
        _check_parts(labels, chosen, "folds", rest)
        split |= {rest[index].name: "val" for index in chosen}
        return [replace(case, split=split.get(case.name, case.split)) for case in cases], folds.describe() + text

    def _set_test_aside(self, cases: Sequence[LabelledCase]) -> list[LabelledCase]:
        if not self.test_fraction:
            return list(cases)
        if any(case.split == "test" for case in cases):
            raise ValueError("test_fraction has no effect: the list has a test split; leave it out")
        share = Fraction(self.test_fraction).limit_denominator(max(MOST_PARTS, round(1 / self.test_fraction)))
        labels = np.unique([case.label for case in cases], return_inverse=True)[1]
        fewest = int(np.bincount(labels).min())
        if share.denominator > fewest:
            raise ValueError(
                f"test_fraction {self.test_fraction:g} needs {share.denominator} cases of each class, and one has "
                f"{fewest}: give test_fraction 0, or add cases"
            )
        _check_groups(cases, share.denominator, "test_fraction")
        # Another stream than that of the folds.
        seed = (self.seed + 1_000_003) % 2**32
        parts = StratifiedGroupKFold(share.denominator, shuffle=True, random_state=seed)
        divided = [part for _, part in parts.split(labels, labels, _groups(cases))]
        test = np.concatenate(divided[: share.numerator])
        _check_parts(labels, test, "test_fraction", cases)
        chosen = set(test.tolist())
        return [replace(case, split="test") if index in chosen else case for index, case in enumerate(cases)]

    def _by_list(self, cases: Sequence[LabelledCase], rest: Sequence[LabelledCase]) -> list[LabelledCase]:
        known = sorted({case.fold for case in rest if case.fold is not None})
        if self.fold not in known:
            raise ValueError(f"the list has the folds {', '.join(map(str, known))}, and not {self.fold}: correct fold")
        if len(known) < 2:
            raise ValueError(
                f"the list has the single fold {known[0]}, so nothing is left to train on: give two or more"
            )
        return [
            case if case.split == "test" else replace(case, split="val" if case.fold == self.fold else "train")
            for case in cases
        ]


def _check_groups(cases: Sequence[LabelledCase], parts: int, option: str) -> None:
    """Raise ValueError if there are fewer groups than parts."""
    number = len(np.unique(_groups(cases)))
    if parts > number:
        raise ValueError(
            f"{parts} parts cannot be made of {number} group(s), which stay together: change {option}, or add cases"
        )


def _check_parts(labels: np.ndarray, chosen: np.ndarray, option: str, cases: Sequence[LabelledCase]) -> None:
    """Raise ValueError if a class is not in both parts, because its cases are in too few groups."""
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    for label in np.unique(labels):
        if label not in labels[chosen] or label not in labels[rest]:
            name = cases[int(np.flatnonzero(labels == label)[0])].label
            groups = len(np.unique(_groups([case for case in cases if case.label == name])))
            raise ValueError(
                f"the class {name!r} cannot be in both parts of the division, because its cases are in {groups} "
                f"group(s), which stay together: change {option}, or the split_seed, or add cases"
            )


def _groups(cases: Sequence[LabelledCase]) -> np.ndarray:
    """Return the number of the group of each case; a case without a group is one of its own."""
    return np.unique(
        [f"group {case.group}" if case.group else f"case {case.name}" for case in cases], return_inverse=True
    )[1]
