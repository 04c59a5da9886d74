# SPDX-License-Identifier: Apache-2.0
"""What is wrong with labelled scans: errors that must be corrected before a training, warnings, and notes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from monai_llmboost.data.labelled import SPLITS, CaseList, LabelledCase
from monai_llmboost.data.transforms.load import LEAST_COVER
from monai_llmboost.inspection.shortcuts import Shortcut, find_shortcuts, header_numbers
from monai_llmboost.inspection.structures import Structure, absent_structures, check_label_content
from monai_llmboost.inspection.survey import CaseSurvey

# A class with a larger part of the training cases than this is a strong imbalance: saying it always is right so often.
MAJORITY = 0.8
# Fewer training cases of a class than this are few.
FEW = 10
# A part of the refused scans above which more than single scans is wrong.
MANY_REFUSED = 0.1
# At most so many names in a sentence, and sentences of one kind.
NAMED, SHOWN = 3, 10


@dataclass(frozen=True)
class Duplicate:
    """Cases with the same image by content.

    Args:
        cases: names.
        labels: their labels.
        places: their splits, or folds; one for each case.
        is_error: whether they have different labels, or may be in different splits.
    """

    cases: tuple[str, ...]
    labels: tuple[str, ...]
    places: tuple[str, ...]
    is_error: bool


@dataclass(frozen=True)
class Findings:
    """What was found.

    Args:
        errors: mistakes that must be corrected before a training, one sentence each.
        warnings: what may make a result worthless, or a training worse.
        notes: what is worth knowing.
        duplicates: cases with the same image.
        shortcuts: fields that alone predict the class.
    """

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()
    shortcuts: tuple[Shortcut, ...] = ()


def check_cases(
    cases: CaseList,
    survey: Sequence[CaseSurvey],
    divided: Sequence[LabelledCase],
    structures: Sequence[Structure] = (),
) -> Findings:
    """Find errors and oddities of a list and its scans.

    Args:
        cases: the list.
        survey: the records of its cases.
        divided: the cases that can be used, each with the split it gets; empty if they cannot be divided.
        structures: the structures of a list for segmentation.

    Example:
        >>> check_cases(cases, survey_cases(cases), divided).errors  # doctest: +SKIP
        ('the image of a.nii.gz (train) and b.nii.gz (test) is the same: keep one',)
    """
    records = {record.name: record for record in survey}
    usable = [case for case in cases.cases if not records[case.name].refused]
    labelled = [case for case in usable if case.label]
    duplicates = _find_duplicates(usable, records)
    shortcuts = find_shortcuts(
        labelled, header_numbers([records[case.name] for case in labelled], cases.channels) if labelled else {}
    )
    absent, lacking = absent_structures(structures, divided)
    errors = [
        *cases.errors,
        *_shorten(_say_duplicate(one) for one in duplicates if one.is_error),
        *_missing_classes(cases, divided),
        *(["no label map has a structure: every voxel is 0"] if cases.is_segmentation and not structures else []),
        *absent,
        *_shorten(_apart(survey)),
    ]
    warnings = [
        *cases.warnings,
        *_counts(cases, divided),
        *lacking,
        *_shorten(check_label_content(structures, [records[case.name] for case in usable])),
        *_say_refused(cases, survey),
        *_say_shortcuts(shortcuts),
        *_modalities(cases, usable, records),
        *_shorten(_say_duplicate(one) for one in duplicates if not one.is_error),
    ]
    return Findings(
        tuple(errors), tuple(warnings), tuple(_notes([records[case.name] for case in usable])), tuple(duplicates),
        tuple(shortcuts),
    )  # fmt: skip


def _find_duplicates(usable: Sequence[LabelledCase], records: dict[str, CaseSurvey]) -> list[Duplicate]:
    with_image: dict[str, dict[str, LabelledCase]] = defaultdict(dict)
    for case in usable:
        for one in records[case.name].measures:
            if one.minimum < one.maximum:  # empty channels are all equal
                with_image[one.digest][case.name] = case
    sets = {tuple(same): list(same.values()) for same in with_image.values() if len(same) > 1}
    return [_duplicate(same, [_label_of(case, records) for case in same]) for same in sets.values()]


def _label_of(case: LabelledCase, records: dict[str, CaseSurvey]) -> str:
    """Return the class of a case, or a name for the content of its label map."""
    label_map = records[case.name].label_map
    return case.label if label_map is None else f"label map {label_map.digest[:6]}"


def _duplicate(same: Sequence[LabelledCase], labels: Sequence[str]) -> Duplicate:
    # One scan may have several findings, each with its own point or mask and label.
    targets: dict[tuple, set[str]] = defaultdict(set)
    for case, label in zip(same, labels):
        targets[(case.mask, case.centre_mm)].add(label)
    places = [case.split or ("" if case.fold is None else f"fold {case.fold}") for case in same]
    undivided = not any(places) and len({case.group or case.name for case in same}) > 1
    is_error = any(len(different) > 1 for different in targets.values()) or len(set(places)) > 1 or undivided
    return Duplicate(tuple(case.name for case in same), tuple(labels), tuple(places), is_error)


def _say_duplicate(one: Duplicate) -> str:
    shown = [
        f"{name} ({', '.join(filter(None, (label, place)))})"
        for name, label, place in zip(one.cases[:NAMED], one.labels, one.places)
    ]
    more = f" and {len(one.cases) - NAMED} more" if len(one.cases) > NAMED else ""
    what = f"the same image: {', '.join(shown)}{more}"
    if len(set(one.labels)) > 1 and one.is_error and len(set(one.places)) == 1:
        return f"{what}; it has different labels: correct or remove them"
    if len(set(one.places)) > 1:
        return f"{what}; it is in different splits, so that a test would be a test of memory: keep one"
    if one.is_error:
        return f"{what}; training and validation may each get one: keep one, or give them one group"
    return f"{what}; it counts more than others: keep one"


def _missing_classes(cases: CaseList, divided: Sequence[LabelledCase]) -> Iterator[str]:
    counts = {split: Counter(case.label for case in divided if case.split == split) for split in SPLITS}
    for split, count in counts.items():
        lost = [name for name in cases.class_names if not count[name]]
        if count and lost and len(cases.class_names) > 1:
            yield f"the class {', '.join(lost)} has no {split} case that can be used: add some, or divide differently"
    if divided and not counts["train"]:
        yield "there are no training cases that can be used: correct the splits"


def _apart(survey: Iterable[CaseSurvey]) -> Iterator[str]:
    for record in survey:
        if record.cover < LEAST_COVER:
            yield (
                f"{record.name}: {record.refused}, so they are not of one place: give scans of one examination, or "
                "register them"
            )


def _counts(cases: CaseList, divided: Sequence[LabelledCase]) -> Iterator[str]:
    count = Counter(case.label for case in divided if case.split != "test")
    total = count.total()
    for name, number in count.most_common(1):
        if number > MAJORITY * total and len(cases.class_names) > 1:
            yield (
                f"{100 * number / total:.0f} % of the cases are of the class {name}, so accuracy says little: compare "
                "by AUC, and give --balance loss or --balance sampling"
            )
    if cases.is_segmentation and 0 < total < FEW:
        yield f"few cases to train and validate on: {total}; differences between networks will be chance"
    few = [f"{name} ({count[name]})" for name in cases.class_names if 0 < count[name] < FEW]
    if few:
        yield f"few cases to train and validate on: {', '.join(few)}; differences between networks will be chance"


def _say_refused(cases: CaseList, survey: Sequence[CaseSurvey]) -> Iterator[str]:
    refused = [record for record in survey if record.refused and record.cover >= LEAST_COVER]
    if not refused:
        return
    kinds = Counter(record.refused_kind for record in refused)
    said = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    yield f"{len(refused)} of {len(survey)} cases cannot be used and are left out ({said})"
    labels = {case.name: case.label for case in cases.cases}
    lost = Counter(labels[record.name] for record in refused)
    is_many = len(refused) > MANY_REFUSED * len(survey) and not cases.is_segmentation
    if is_many and len(refused) >= FEW and max(lost.values()) == len(refused):
        yield f"all refused cases are of the class {labels[refused[0].name]}: what is wrong with them is not chance"


def _say_shortcuts(shortcuts: Sequence[Shortcut]) -> Iterator[str]:
    if not shortcuts:
        return
    said = [f"{one.name}, AUC {one.auc:.2f}{one.class_name and f' for {one.class_name}'}" for one in shortcuts[:SHOWN]]
    more = f"; and {len(shortcuts) - SHOWN} more" if len(shortcuts) > SHOWN else ""
    yield (
        f"shortcut: a number of the header alone predicts the class of held-out cases ({'; '.join(said)}{more}); a "
        "network may learn this instead of what the scans show"
    )


def _modalities(cases: CaseList, usable: Sequence[LabelledCase], records: dict[str, CaseSurvey]) -> Iterator[str]:
    for place, channel in enumerate(cases.channels):
        scans = [records[case.name].channels[place] for case in usable]
        found = Counter(one.modality or "unknown" for one in scans if one is not None)
        if len(found) > 1:
            said = ", ".join(f"{number} {name}" for name, number in found.most_common())
            where = f" in channel {channel}" if len(cases.channels) > 1 else ""
            yield f"several modalities{where}: {said}; their values do not mean the same"


def _notes(records: Sequence[CaseSurvey]) -> Iterator[str]:
    scans = [one for record in records for one in record.measures]
    if not scans:
        return
    for what, values in {
        "orientations of the files": Counter(one.orientation for one in scans),
        "formats": Counter(one.format for one in scans),
    }.items():
        if len(values) > 1:
            yield f"{what}: {', '.join(f'{number} {name}' for name, number in values.most_common())}"
    steps = np.array([one.spacing_mm for one in scans])
    low, high = steps.min(axis=0), steps.max(axis=0)
    if (high > 1.05 * low).any():
        product = " x ".join(f"{a:.3g} to {b:.3g}" for a, b in zip(low, high))
        yield f"spacing of {product} mm along x, y, z; all are resampled to one"
    lacking = sum(bool(record.missing) for record in records)
    if lacking:
        yield f"cases that lack a channel, which is filled with zeros: {lacking}"
    remarks = Counter(line for one in scans for line in one.warnings)
    for line, number in remarks.most_common(NAMED):
        yield f"{number} scan{'s' * (number > 1)}: {line}"


def _shorten(sentences: Iterable[str]) -> list[str]:
    found = list(sentences)
    return found if len(found) <= SHOWN else [*found[:SHOWN], f"and {len(found) - SHOWN} more of this kind"]
