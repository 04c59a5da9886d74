# SPDX-License-Identifier: Apache-2.0
"""A list of label maps as a bundle's config uses it: its structures, and the items of each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from monai_llmboost.data.labelled.case import CaseList, LabelledCase
from monai_llmboost.data.labelled.divide import Division
from monai_llmboost.data.labelled.divided import DividedCases
from monai_llmboost.data.labelled.label_maps import check_structures
from monai_llmboost.data.labelled.lists.rows import Columns


class SegmentedScans:
    """The cases of a list of label maps, divided into training, validation and test; it is read when first used.

    Args:
        data: the list, see :func:`monai_llmboost.data.labelled.read_cases`.
        columns: names of its columns.
        division: how its cases are divided; there are no classes that each part must have.
        leave_out: names of cases that are not used, such as those whose label map is on another grid.
        structures: names of the structures by their values in the label maps, in the order of the network's output;
            ``None`` or empty: those of the list.

    Raises:
        FileNotFoundError, ValueError: no list, mistakes in it, or a division that is impossible; a name in
            ``leave_out`` that the list does not have; structures that are wrong, or are named nowhere.

    Example:
        >>> scans = SegmentedScans("dataset.json")  # doctest: +SKIP
        >>> scans.items("train")[0]  # doctest: +SKIP
        {'image': '/data/imagesTr/a.nii.gz', 'label': '/data/labelsTr/a.nii.gz', 'case': 'imagesTr/a.nii.gz'}
    """

    def __init__(
        self,
        data: str | Path | None,
        columns: Columns | None = None,
        division: Division | None = None,
        leave_out: Sequence[str] = (),
        structures: Mapping[Any, str] | None = None,
    ) -> None:
        self.data = data
        self._divided = DividedCases(data, columns, division, leave_out, is_segmentation=True)
        self._structures = check_structures(dict(structures)) if structures else {}

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
        """Whether there is a list; without one, the network can be made, such as to load trained weights into it."""
        return self._divided.is_there

    @property
    def structures(self) -> dict[int, str]:
        """The names of the structures by their values in the label maps; one without a name if there is no list."""
        if self._structures:
            if self.is_there:
                self._check_names(self._structures)
            return dict(self._structures)
        if not self.is_there:
            return {1: "structure 1"}
        if not self.case_list.structures:
            raise ValueError(
                f'{self.data} names no structures: inspect it, or give --structures \'{{"1": "liver"}}\', with the '
                "values in its label maps"
            )
        return dict(self.case_list.structures)

    @property
    def class_names(self) -> list[str]:
        """The names of the network's classes: the background, then the structures."""
        return ["background", *self.structures.values()]

    @cached_property
    def digest(self) -> str:
        """The digest of the structures, and of the training and validation cases (names, label maps, splits, groups).

        It is empty without a list.
        """
        return self._divided.digest([[value, name] for value, name in self.structures.items()])

    @property
    def division(self) -> str:
        """The division as text, with the name of the list and the digest; empty without a list.

        It is stored with trained weights, so that they are not evaluated on cases that a changed list now calls test.
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

    def _check_names(self, structures: Mapping[int, str]) -> None:
        """Raise ValueError if a name has another value in the list than in other structures."""
        values = {name: value for value, name in structures.items()}
        for value, name in self.case_list.structures.items():
            if values.get(name, value) != value:
                raise ValueError(
                    f"{name!r} is the value {value} in the label maps of {self.data}, and {values[name]} in those of "
                    "the plan or the training: label maps must have the same values, so correct them or the names"
                )

    def items(
        self, split: str, label_fraction: float = 1.0, structures: Mapping[int, str] | None = None
    ) -> list[dict[str, Any]]:
        """Return the items of a split for a MONAI data set.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            label_fraction: fraction of the training cases, see
                :func:`~monai_llmboost.data.datasets.labelled.select_labelled`.
            structures: names of the network's structures by their values, which the list must not contradict.

        Returns:
            For each case ``"image"`` (a scan, or a list of one for each channel), ``"label"`` (its label map),
            ``"case"``, and as far as the list has them ``"patient"``, ``"mask"`` and ``"centre"``.

        Raises:
            ValueError: no case of this split, an invalid fraction, or a structure that has another value here.
        """
        if structures is not None:
            self._check_names(structures)
        cases = self._divided.select(split)
        cases = self._divided.reduce(cases, label_fraction if split == "train" else 1.0, lambda _: 0)
        return [self._divided.item(case, case.label_map) for case in cases]
