# SPDX-License-Identifier: Apache-2.0
"""Mistakes of a labelled list as a whole: its classes or label maps, its splits, and rows that repeat."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from monai_llmboost.data.labelled.case import LabelledCase, Source
from monai_llmboost.data.labelled.lists.cells import to_number

# More classes than this are most likely measurements or names.
MOST_CLASSES = 50
# At most so many sentences of one kind are listed one by one.
SHOWN = 10


def check_classes(cases: Sequence[LabelledCase]) -> tuple[list[str], list[str]]:
    """Return the names of the classes, and what is wrong with them."""
    names = _sort_labels(case.label for case in cases if case.label)
    errors = []
    if len(names) < 2:
        found = f"only the class {names[0]!r}" if names else "no class"
        errors.append(f"{found} in the whole list: a classification needs two or more")
    if len(names) > min(MOST_CLASSES, max(2, len(cases) // 2)):
        errors.append(
            f"{len(names)} different labels in {len(cases)} cases ({', '.join(names[:3])} ...): give classes, not "
            "measurements or names; is it the right label column?"
        )
    folded = Counter(name.casefold() for name in names)
    for twice in (name for name, count in folded.items() if count > 1):
        written = ", ".join(repr(name) for name in names if name.casefold() == twice)
        errors.append(f"the labels {written} differ in upper and lower case only: write one of them")
    return names, errors


def check_label_maps(cases: Iterable[LabelledCase]) -> Iterator[str]:
    """Yield a sentence for each label map that is that of another image, or an image itself."""
    first: dict[Source, LabelledCase] = {}
    for case in cases:
        if case.label_map is None:
            continue
        if case.label_map in case.images:
            yield f"{case.place}: image and label map are one file: give the label map, {case.label_map}"
        earlier = first.setdefault(case.label_map, case)
        if earlier.images != case.images:
            yield f"{case.place}: the label map of another image: {earlier.place}"


def check_splits(cases: Sequence[LabelledCase]) -> Iterator[str]:
    """Yield a sentence if only some cases have a split or fold, and for each group that is divided."""
    some = [case for case in cases if not case.split and case.fold is None]
    for what, others in (
        ("split", any(case.split for case in cases)),
        ("fold", any(case.fold is not None and not case.split for case in cases)),
    ):
        if some and others:
            yield f"{len(some)} cases have no {what}, such as {some[0].place}, and others have one: give all or none"
    yield from _divided_groups(cases)


def _divided_groups(cases: Iterable[LabelledCase]) -> Iterator[str]:
    splits: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        place = case.split or ("" if case.fold is None else f"fold {case.fold}")
        if case.group and place:
            splits[case.group].add(place)
    for group, places in splits.items():
        if len(places) > 1:
            yield f"the group {group} is in {' and '.join(sorted(places))}: keep all its cases in one"


def _sort_labels(labels: Iterable[str]) -> list[str]:
    numbers = {label: to_number(label) for label in labels}
    if all(number is not None for number in numbers.values()):
        return sorted(numbers, key=lambda label: (numbers[label] or 0.0, label))
    return sorted(numbers, key=lambda label: (label.casefold(), label))


def drop_repeated(cases: Iterable[LabelledCase]) -> tuple[list[LabelledCase], list[str], list[str]]:
    """Return the cases without rows that say the same again, and sentences on these and on contradicting rows."""
    first: dict[tuple[Source | None, ...], LabelledCase] = {}
    kept, repeated, errors = [], [], []
    for case in cases:
        # One scan may be several cases, with another point or mask to crop around.
        key = (*case.images, case.mask, str(case.centre_mm))
        earlier = first.setdefault(key, case)
        if earlier is case or not any(case.images):
            kept.append(case)
        elif _said(earlier) == _said(case):
            repeated.append(f"{case.place}: left out, because it repeats: {earlier.place}")
        else:
            errors.append(f"{case.place}: another label, split or fold for the image of: {earlier.place}")
    return kept, repeated, errors


def _said(case: LabelledCase) -> tuple:
    return case.label, case.label_map, case.split, case.fold


def name_apart(cases: Iterable[LabelledCase]) -> list[LabelledCase]:
    """Return the cases with different names."""
    cases = list(cases)
    listed = {case.name for case in cases}
    taken: set[str] = set()
    found = []
    for case in cases:
        name, number = case.name, 1
        while name in taken or (number > 1 and name in listed):
            number += 1
            name = f"{case.name} ({number})"
        taken.add(name)
        found.append(replace(case, name=name))
    return found


def shorten(sentences: Sequence[str]) -> list[str]:
    """Return sentences, with a count instead of those after the first ten of one kind (the same last part)."""
    kinds: Counter[str] = Counter()
    found: list[str] = []
    for sentence in sentences:
        kind = sentence.partition(": ")[2].partition(": ")[0] or sentence
        kinds[kind] += 1
        if kinds[kind] <= SHOWN:
            found.append(sentence)
    return [*found, *(f"and {count - SHOWN} more: {kind}" for kind, count in kinds.items() if count > SHOWN)]
