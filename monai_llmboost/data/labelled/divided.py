# SPDX-License-Identifier: Apache-2.0
"""The cases of a labelled list with their division, which every kind of label shares."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from monai_llmboost.arguments import check_choice
from monai_llmboost.data.datasets.labelled import check_fraction, select_labelled
from monai_llmboost.data.labelled.case import BUNDLES, SPLITS, CaseList, LabelledCase
from monai_llmboost.data.labelled.divide import Division
from monai_llmboost.data.labelled.lists.read import read_cases
from monai_llmboost.data.labelled.lists.rows import Columns


class DividedCases:
    """The cases of a list, divided into training, validation and test; it is read when it is first used.

    Args:
        data: the list, see :func:`monai_llmboost.data.labelled.read_cases`.
        columns: names of its columns.
        division: how its cases are divided.
        leave_out: names of cases that are not used.
        is_segmentation: whether the labels must be label maps, or classes.

    Raises:
        FileNotFoundError, ValueError: no list, one of the other kind of labels, mistakes in it, or a division that is
            impossible; a name in ``leave_out`` that the list does not have.

    Example:
        >>> DividedCases("scans.csv", None, None, (), False).select("train")  # doctest: +SKIP
    """

    def __init__(
        self,
        data: str | Path | None,
        columns: Columns | None,
        division: Division | None,
        leave_out: Sequence[str],
        is_segmentation: bool,
    ) -> None:
        self.data = data
        self._columns = columns
        self._division = division or Division()
        self._leave_out = {leave_out} if isinstance(leave_out, str) else {*leave_out}
        self._is_segmentation = is_segmentation

    @cached_property
    def case_list(self) -> CaseList:
        """The list as it was read."""
        if not self.data:
            folder = "a folder with imagesTr and labelsTr" if self._is_segmentation else "a folder of classes"
            raise ValueError(f"no labelled scans were named: give --data with a CSV list, a datalist or {folder}")
        found = read_cases(self.data, self._columns)
        if found.is_segmentation != self._is_segmentation:
            kinds = {False: "classes", True: "label maps"}
            raise ValueError(
                f"the labels of {self.data} are {kinds[found.is_segmentation]}, not {kinds[self._is_segmentation]}: "
                f"train the bundle {BUNDLES[found.is_segmentation]} on it"
            )
        if errors := found.errors:
            more = f", and {len(errors) - 1} more; `monai-llmboost inspect` lists them" if len(errors) > 1 else ""
            raise ValueError(f"{self.data} has mistakes: {errors[0]}{more}: correct them")
        return found

    @cached_property
    def _divided(self) -> tuple[list[LabelledCase], str]:
        names = {case.name for case in self.case_list.cases}
        if unknown := sorted(self._leave_out - names):
            raise ValueError(
                f"leave_out has {unknown[0]!r}, which is no case of {self.data}: correct it, or inspect again"
            )
        return self._division.divide([case for case in self.case_list.cases if case.name not in self._leave_out])

    @property
    def cases(self) -> list[LabelledCase]:
        """The cases, each with its split."""
        return self._divided[0]

    @cached_property
    def is_there(self) -> bool:
        """Whether there is a list."""
        return bool(self.data) and Path(str(self.data)).expanduser().exists()

    def digest(self, more: Sequence[Any] = ()) -> str:
        """Return the digest of the training and validation cases, and of more values; empty without a list."""
        if not self.is_there:
            return ""
        text = self.case_list.label_text
        said = sorted([case.name, text(case), case.split, case.group] for case in self.cases if case.split != "test")
        return hashlib.sha256(json.dumps([*said, *more]).encode()).hexdigest()

    def describe(self, digest: str) -> str:
        """Return the division as text, with the name of the list and a digest; empty without a list."""
        if not self.is_there:
            return ""
        return f"{Path(str(self.data)).name}, cases {digest[:8]}, {self._divided[1]}"

    @cached_property
    def has_test(self) -> bool:
        """Whether there are test cases."""
        return any(case.split == "test" for case in self.cases)

    def select(self, split: str) -> list[LabelledCase]:
        """Return the cases of a split.

        Raises:
            ValueError: an unknown split, or no case of it.
        """
        check_choice("split", split, SPLITS)
        cases = [case for case in self.cases if case.split == split]
        if not cases:
            counts = ", ".join(f"{count} {name}" for name, count in Counter(case.split for case in self.cases).items())
            raise ValueError(
                f"{self.case_list.path} has no {split} cases, it has {counts}: choose another split, or add some"
            )
        return cases

    def reduce(
        self, cases: Sequence[LabelledCase], fraction: float, number_of: Callable[[LabelledCase], int]
    ) -> list[LabelledCase]:
        """Return a fraction of the training cases of each class, see :func:`select_labelled`.

        Raises:
            ValueError: an invalid fraction.
        """
        check_fraction(fraction)
        if fraction == 1:
            return list(cases)
        labels = np.array([number_of(case) for case in cases])
        return [cases[index] for index in select_labelled(labels, fraction, self._division.seed)]

    def item(self, case: LabelledCase, label: Any) -> dict[str, Any]:
        """Return the item of a case for a MONAI data set."""
        image: Any = list(case.images) if len(case.images) > 1 else case.images[0]
        item: dict[str, Any] = {"image": image, "label": label, "case": case.name}
        if any(one.group for one in self.cases):
            item["patient"] = case.group or f"case {case.name}"
        if case.mask is not None:
            item["mask"] = case.mask
        if case.centre_mm is not None:
            item["centre"] = list(case.centre_mm)
        return item
