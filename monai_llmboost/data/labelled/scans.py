# SPDX-License-Identifier: Apache-2.0
"""A list of classes as a bundle's config uses it: its classes, and the items of each split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from monai_llmboost.data.datasets.labelled import check_fraction
from monai_llmboost.data.labelled.case import CaseList, LabelledCase
from monai_llmboost.data.labelled.divide import Division
from monai_llmboost.data.labelled.divided import DividedCases
from monai_llmboost.data.labelled.lists.rows import Columns


class LabelledScans:
    """The cases of a labelled list, divided into training, validation and test; it is read when it is first used.

    Args:
        data: the list, see :func:`monai_llmboost.data.labelled.read_cases`.
        columns: names of its columns.
        division: how its cases are divided.
        leave_out: names of cases that are not used, such as scans that cannot be read.
        positive: the class that is last, for which sensitivity is computed and a threshold is chosen; ``None``: the
            last one in the order of numbers or words.

    Raises:
        FileNotFoundError, ValueError: no list, mistakes in it, or a division that is impossible; a name in
            ``leave_out`` that the list does not have.

    Example:
        >>> scans = LabelledScans("scans.csv")  # doctest: +SKIP
        >>> scans.items("train")[0]  # doctest: +SKIP
        {'image': '/data/a.nii.gz', 'label': 1, 'case': 'a.nii.gz'}
    """

    def __init__(
        self,
        data: str | Path | None,
        columns: Columns | None = None,
        division: Division | None = None,
        leave_out: Sequence[str] = (),
        positive: str | None = None,
    ) -> None:
        self.data = data
        self._divided = DividedCases(data, columns, division, leave_out, is_segmentation=False)
        self._positive = None if positive is None else str(positive)

    @property
    def case_list(self) -> CaseList:
        """The list as it was read."""
        return self._divided.case_list

    @property
    def cases(self) -> list[LabelledCase]:
        """The cases, each with its split."""
        return self._divided.cases

    @property
    def is_there(self) -> bool:
        """Whether there is a list.

        Without one, the network can be made, such as to load trained weights into it, and MONAI Label and federated
        learning train on the items that they put in the place of a list's.
        """
        return self._divided.is_there

    @property
    def class_names(self) -> list[str]:
        """The names of the classes; two without a name if there is no list."""
        if not self.is_there:
            return ["class 0", "class 1"]
        names = [*self.case_list.class_names]
        if self._positive is None:
            return names
        if self._positive not in names:
            raise ValueError(
                f"positive_class {self._positive!r} is no class of {self.data}, it has {', '.join(names)}: correct it"
            )
        return [*(name for name in names if name != self._positive), self._positive]

    @cached_property
    def digest(self) -> str:
        """The digest of the training and validation cases (names, labels, splits and groups); empty without a list."""
        return self._divided.digest()

    @property
    def division(self) -> str:
        """The division as text, with the name of the list and the digest.

        It is stored with trained weights, so that they are not evaluated on cases that a changed list now calls test.
        It is empty if there is no list.
        """
        return self._divided.describe(self.digest)

    @property
    def has_test(self) -> bool:
        """Whether there are test cases."""
        return self._divided.has_test

    @property
    def best_split(self) -> str:
        """The split to evaluate: the test, or the validation cases if there is none."""
        return "test" if self.has_test else "val"

    def items(
        self, split: str, label_fraction: float = 1.0, class_names: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Return the items of a split for a MONAI data set.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            label_fraction: fraction of the training cases of each class, see
                :func:`~monai_llmboost.data.datasets.labelled.select_labelled`.
            class_names: the classes in the order of the network's output, which number the labels; ``None``: those of
                the list. A list for an evaluation may have them in another order, or not all of them.

        Returns:
            For each case ``"image"`` (a scan, or a list of one for each channel), ``"label"``, ``"case"``, and as far
            as the list has them ``"patient"``, ``"mask"`` and ``"centre"``.

        Raises:
            ValueError: no case of this split, or none of a class for training or validation; a class that the network
                does not have; an invalid fraction.
        """
        check_fraction(label_fraction)
        cases = self._divided.select(split)
        names = list(self.class_names if class_names is None else class_names)
        if strange := next((case for case in cases if case.label not in names), None):
            raise ValueError(
                f"{strange.place} of {self.case_list.path} has the class {strange.label!r}, which is none of the "
                f"network's ({', '.join(names)}): correct the list, or leave out class_names"
            )
        there = {case.label for case in cases}
        if split != "test" and (lost := [name for name in names if name not in there]):
            raise ValueError(
                f"the {split} cases of {self.case_list.path} are all of {', '.join(sorted(there))}, and none of "
                f"{', '.join(lost)}: correct the splits, or leave them out for folds"
            )
        if split == "train":
            cases = self._divided.reduce(cases, label_fraction, lambda case: names.index(case.label))
        return [self._divided.item(case, names.index(case.label)) for case in cases]

    def class_weights(self, class_names: Sequence[str] | None = None) -> list[float]:
        """Return the weight of each class in a loss, inverse to its number of training cases, with the mean 1."""
        counts = Counter(case.label for case in self.cases if case.split == "train")
        inverse = np.array([1 / max(counts[name], 1) for name in class_names or self.class_names])
        return (inverse / inverse.mean()).tolist()

    def case_weights(self) -> list[float]:
        """Return the weight of each training case with which all classes are drawn equally often."""
        weights = dict(zip(self.class_names, self.class_weights()))
        return [weights[case.label] for case in self.cases if case.split == "train"]
