# SPDX-License-Identifier: Apache-2.0
"""The structures of a list for segmentation: their names, their volumes, and what is wrong with the label maps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from monai_llmboost.data.labelled import SPLITS, CaseList, LabelledCase
from monai_llmboost.data.labelled.label_maps import check_structures
from monai_llmboost.inspection.label_map import unknown_values
from monai_llmboost.inspection.survey import CaseSurvey

# A structure with fewer voxels than this, in the median, is very small.
SMALL_VOXELS = 30
# A volume is strange that differs from the median by more than this factor, and by more than this number of standard
# deviations of the logarithm (from the median absolute deviation).
STRANGE_FACTOR, STRANGE_DEVIATIONS, MAD_TO_SD = 4.0, 5.0, 1.4826
# From so many volumes on, some can be called strange.
ENOUGH_VOLUMES = 8
NAMED = 3


@dataclass(frozen=True)
class Structure:
    """A structure in the label maps of a list.

    Args:
        value: its value.
        name: its name.
        volumes_mm3: its volume in each case that has it.
        median_voxels: median number of voxels in them; 0 if there are none.
    """

    value: int
    name: str
    volumes_mm3: Mapping[str, float]
    median_voxels: float


def name_structures(cases: CaseList, survey: Iterable[CaseSurvey], given: Any) -> tuple[dict[int, str], str]:
    """Return the names of structures by their values, and where they come from.

    They are those that are given, else those of the list, else ``"structure N"`` for each value N in a label map.

    Raises:
        ValueError: what is given is wrong.
    """
    if given:
        return check_structures(dict(given) if isinstance(given, Mapping) else given), "given"
    if cases.structures:
        return dict(cases.structures), "the names of the list"
    maps = [record.label_map for record in survey if record.label_map and not record.refused]
    names = {value: f"structure {value}" for value in sorted({value for one in maps for value in one.values})}
    return names, "the values in the label maps, which the list does not name"


def refuse_unknown(survey: Sequence[CaseSurvey], structures: Mapping[int, str]) -> list[CaseSurvey]:
    """Return the records, with those refused whose label map has a value that is no structure."""
    checked = []
    for record in survey:
        reason = unknown_values(record.label_map, structures) if record.label_map and not record.refused else ""
        checked.append(replace(record, refused=reason, refused_kind="label") if reason else record)
    return checked


def measure_structures(structures: Mapping[int, str], survey: Iterable[CaseSurvey]) -> list[Structure]:
    """Return the structures with their volumes in the cases that can be used."""
    maps = {record.name: record.label_map for record in survey if record.label_map and not record.refused}
    found = []
    for value, name in structures.items():
        volumes = {case: one.volumes_mm3[value] for case, one in maps.items() if value in one.values}
        counts = [one.voxels[one.values.index(value)] for one in maps.values() if value in one.values]
        found.append(Structure(value, name, volumes, float(np.median(counts)) if counts else 0.0))
    return found


def absent_structures(structures: Sequence[Structure], divided: Sequence[LabelledCase]) -> tuple[list[str], list[str]]:
    """Return errors on structures that training or validation needs, and warnings on those that another split lacks."""
    errors, warnings = [], []
    for split in SPLITS:
        own = {case.name for case in divided if case.split == split}
        lost = [one.name for one in structures if not own & {*one.volumes_mm3}]
        if own and lost and split == "train":
            errors.append(
                f"no training case that can be used has {', '.join(lost)}: add some, divide differently, or give "
                "--structures without it"
            )
        elif split == "val" and own and lost and len(lost) == len(structures):
            errors.append("no validation case that can be used has a structure, so no epoch can be chosen: add some")
        elif own and lost:
            warnings.append(
                f"no {split} case that can be used has {', '.join(lost)}, so nothing is measured of it there"
            )
    return errors, warnings


def check_label_content(structures: Sequence[Structure], usable: Sequence[CaseSurvey]) -> Iterator[str]:
    """Yield warnings on label maps that are empty, equal or of one structure, and on small or strange structures."""
    maps = {record.name: record.label_map for record in usable if record.label_map}
    empty = [name for name, one in maps.items() if not one.values]
    if empty:
        yield f"{len(empty)} of {len(maps)} label maps are empty, have no structure: {_some(empty)}"
    full = [name for name, one in maps.items() if one.is_one_structure]
    if full:
        yield f"label maps with one structure in every voxel, which are no segmentation: {_some(full)}"
    same: dict[str, list[CaseSurvey]] = defaultdict(list)
    for record in usable:
        if record.label_map and record.label_map.values:
            same[record.label_map.digest].append(record)
    for alike in same.values():
        if len({record.measures[0].digest for record in alike}) > 1:
            names = [record.name for record in alike]
            yield f"the same label map for different images: {_some(names)}; it is most likely that of another case"
    small = [f"{one.name} ({one.median_voxels:.0f})" for one in structures if 0 < one.median_voxels < SMALL_VOXELS]
    if small:
        yield f"structures of very few voxels, in the median: {', '.join(small)}: Dice says little of them"
    for one in structures:
        if strange := _strange_volumes(one):
            middle = float(np.median([*one.volumes_mm3.values()]))
            yield f"volumes of {one.name} that differ strongly from the median of {middle:.4g} mm3: {_some(strange)}"


def _strange_volumes(one: Structure) -> list[str]:
    """Return the cases in which the volume of a structure differs strongly from the median, each with the volume."""
    if len(one.volumes_mm3) < ENOUGH_VOLUMES:
        return []
    logs = np.log([*one.volumes_mm3.values()])
    apart = np.abs(logs - np.median(logs))
    bound = max(np.log(STRANGE_FACTOR), STRANGE_DEVIATIONS * MAD_TO_SD * float(np.median(apart)))
    items = sorted(zip(-apart, one.volumes_mm3.items()))
    return [f"{name} ({volume:.4g})" for distance, (name, volume) in items if -distance > bound]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
