# SPDX-License-Identifier: Apache-2.0
"""Records of labelled scans: one case, and the list of all cases."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# What a reader takes for a scan: a file, a folder with one DICOM series, "path::SeriesInstanceUID", or its files.
Source = str | tuple[str, ...]
SPLITS = ("train", "val", "test")
# What to do with a case that lacks a channel.
MISSING = ("refuse", "zeros")
# The bundles for lists of classes, and for those of label maps.
BUNDLES = {False: "scans_classification", True: "scans_segmentation"}


@dataclass(frozen=True)
class LabelledCase:
    """One labelled case.

    Args:
        name: name of the case; no two cases have the same.
        images: a scan for each channel; ``None`` if the list leaves it out.
        label: name of its class; empty if the list gives none, or a label map.
        split: ``"train"``, ``"val"``, ``"test"``, or empty if the list gives none.
        fold: number of its fold, if the list gives one.
        group: what cases have in common that must not be divided, such as the patient; empty if unknown.
        mask: a mask to crop around.
        centre_mm: a point to crop around, in RAS+ mm.
        place: where the list has it, such as ``"row 7"``, for messages.
        label_map: a volume of whole numbers on the scan's grid, each the value of a structure; only in segmentation.

    Example:
        >>> LabelledCase("a.nii.gz", ("scans/a.nii.gz",), "benign").split
        ''
    """

    name: str
    images: tuple[Source | None, ...]
    label: str = ""
    split: str = ""
    fold: int | None = None
    group: str = ""
    mask: Source | None = None
    centre_mm: tuple[float, float, float] | None = None
    place: str = ""
    label_map: Source | None = None


@dataclass(frozen=True)
class CaseList:
    """The cases of a list.

    Args:
        path: the file or folder.
        channels: names of the channels, one for each image of a case.
        cases: the cases, in the order of the list.
        class_names: the classes in the order of the network's output.
        errors: mistakes that must be corrected before a training, one sentence each.
        warnings: oddities.
        structures: names of the structures by their values in the label maps, without the background 0; empty if the
            list names none, and in classification.
        is_segmentation: whether the labels are label maps.

    Example:
        >>> cases = [LabelledCase("a", ("a.nii",), "no"), LabelledCase("b", ("b.nii",), "yes")]
        >>> CaseList(Path("list.csv"), ("image",), tuple(cases), ("no", "yes")).count("train")
        Counter()
    """

    path: Path
    channels: tuple[str, ...]
    cases: tuple[LabelledCase, ...]
    class_names: tuple[str, ...]
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    structures: Mapping[int, str] = field(default_factory=dict)
    is_segmentation: bool = False

    def count(self, split: str) -> Counter[str]:
        """Return the number of cases of each class in a split."""
        return Counter(case.label for case in self.cases if case.split == split)

    @property
    def digest(self) -> str:
        """The digest of what the list says: names, labels, splits, folds and groups, not the scans' content."""
        said: list[list] = [
            [case.name, self.label_text(case), case.split, case.fold, case.group] for case in self.cases
        ]
        said += [[value, name] for value, name in self.structures.items()]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def label_text(self, case: LabelledCase) -> str:
        """Return the label of a case as text: its class, or the path of its label map from the list's folder."""
        if case.label_map is None:
            return case.label
        folder = self.path if self.path.is_dir() else self.path.parent
        return os.path.relpath(str(case.label_map), folder.absolute())
