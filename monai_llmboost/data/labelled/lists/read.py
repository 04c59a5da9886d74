# SPDX-License-Identifier: Apache-2.0
"""Reading of labelled lists: a CSV file, a Decathlon datalist, or a folder with one subfolder for each class."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from monai_llmboost.data.labelled.case import CaseList, LabelledCase, Source
from monai_llmboost.data.labelled.lists.cells import read_centre, read_fold, read_label, read_split, to_number
from monai_llmboost.data.labelled.lists.class_folders import read_class_folders
from monai_llmboost.data.labelled.lists.rows import Columns, Row, Table
from monai_llmboost.data.labelled.lists.tables import read_table
from monai_llmboost.data.scans.dicom.reader import SEPARATOR

# More classes than this are most likely measurements or names.
MOST_CLASSES = 50
# Suffixes of lists; anything else that is a file is most likely a scan.
LISTS = (".csv", ".tsv", ".txt", ".json")
# At most so many sentences of one kind are listed one by one.
SHOWN = 10


def read_cases(path: str | Path, columns: Columns | None = None) -> CaseList:
    """Read a labelled list.

    Paths in a list are relative to its folder. Labels are words or numbers; numbers are sorted by their values.

    Args:
        path: a CSV file, a JSON datalist as ``monai.data.load_decathlon_datalist`` and Auto3DSeg read it, or a folder
            with one subfolder for each class, which may be below folders ``train``, ``val`` and ``test``.
        columns: names of the columns; only for files.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: it is no labelled list; mistakes in single rows are in :attr:`CaseList.errors` instead.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "scans.csv"
        >>> _ = file.write_text("image,label\\na.nii.gz,benign\\nb.nii.gz,malignant\\n")
        >>> cases = read_cases(file)
        >>> cases.class_names, len(cases.errors)  # the two files are missing
        (('benign', 'malignant'), 2)
    """
    path = Path(path).expanduser()
    columns = columns or Columns()
    if path.is_dir():
        if columns != Columns():
            raise ValueError(f"{path} is a folder, which has no columns: leave out the options of columns")
        return _finish(path, ("image",), *read_class_folders(path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no list at {path}: give a CSV file, a JSON datalist or a folder of classes")
    if path.suffix.lower() not in LISTS:
        raise ValueError(
            f"{path} is neither a CSV file nor a JSON datalist ({', '.join(LISTS)}): save the table as CSV, or give "
            "the folder with one subfolder for each class"
        )
    table = read_table(path, columns)
    return _finish(path, table.channels, *_read_rows(path, table, columns), table.warnings)


def read_rows(path: Path, columns: Columns) -> tuple[tuple[str, ...], list[LabelledCase], list[str]]:
    """Return the channels of a list, its cases, which need no labels, and the errors, each with its row.

    Raises:
        ValueError: the file is no list.
    """
    table = read_table(path, columns, labelled=False)
    cases, errors = _read_rows(path, table, columns, labelled=False)
    return table.channels, _name_apart(cases), errors


def _read_rows(
    path: Path, table: Table, columns: Columns, labelled: bool = True
) -> tuple[list[LabelledCase], list[str]]:
    root = path.parent.absolute()
    top = _common_folder(root, table.rows)
    errors: list[str] = []
    cases = []
    for row in table.rows:
        problems: list[str] = []
        images = tuple(_find_source(root, text, problems) if text else None for text in row.images)
        if not any(row.images):
            problems.append("no image")
        case = LabelledCase(
            row.values.get("case", "").strip() or _name_of(root, top, row.images),
            images,
            read_label(row, table, columns, problems) if labelled else "",
            read_split(row, problems) if labelled else "",
            read_fold(row, problems) if labelled else None,
            row.values.get("group", "").strip(),
            _find_source(root, mask, problems) if (mask := row.values.get("mask", "").strip()) else None,
            read_centre(row, problems),
            row.place,
        )
        errors += [f"{row.place}: {problem}" for problem in problems]
        cases.append(case)
    return cases, errors


def _find_source(root: Path, text: str, problems: list[str]) -> Source:
    """Return the absolute path of a scan, with its series if the list names one."""
    path, series = _locate(root, text)
    if not os.path.exists(path):  # noqa: PTH110  (a Path raises for a name that no file can have)
        how = "a link that leads nowhere" if os.path.lexists(path) else "no such file or folder"
        problems.append(f"{how}: {text}")
    elif path.is_dir():
        try:
            if not any(path.iterdir()):
                problems.append(f"an empty folder: {text}")
        except OSError as error:
            problems.append(f"a folder that cannot be read ({error.strerror}): {text}")
    return f"{path}{series}"


def _locate(root: Path, text: str) -> tuple[Path, str]:
    """Return the path that a list means, also one written on Windows or macOS, and "::" with the series behind it."""
    name, separator, series = text.partition(SEPARATOR)
    whole = _absolute(root, text)
    if not separator or os.path.lexists(whole):
        name, separator, series = text, "", ""
    slashes = name.replace("\\", "/")
    # macOS writes an umlaut as two characters in names of files, and most programs as one in tables.
    spellings = [name, slashes, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))]
    paths = [_absolute(root, spelling) for spelling in spellings]
    return next(filter(os.path.lexists, paths), paths[1]), separator + series


def _absolute(root: Path, text: str) -> Path:
    return Path(os.path.normpath(root / (Path(text).expanduser() if text.startswith("~/") else text)))


def _common_folder(root: Path, rows: Iterable[Row]) -> Path:
    """Return the folder below which all scans are: that of the list, or else the deepest."""
    folders = {_locate(root, text)[0].parent for row in rows for text in filter(None, row.images)}
    if all(folder.is_relative_to(root) for folder in folders):
        return root
    return Path(os.path.commonpath(folders))


def _name_of(root: Path, top: Path, images: Iterable[str]) -> str:
    path, series = _locate(root, next(filter(None, images), ""))
    return (path.relative_to(top).as_posix() if path.is_relative_to(top) else path.as_posix()) + series


def _finish(
    path: Path,
    channels: Sequence[str],
    cases: list[LabelledCase],
    errors: list[str],
    warnings: Iterable[str] = (),
) -> CaseList:
    """Return the list with its classes, distinct names, and the errors of all rows together."""
    labels = Counter(case.label for case in cases if case.label)
    names = _sort_labels(labels)
    errors, warnings = list(errors), list(warnings)
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
    some = [case for case in cases if not case.split and case.fold is None]
    for what, others in (
        ("split", any(case.split for case in cases)),
        ("fold", any(case.fold is not None and not case.split for case in cases)),
    ):
        if some and others:
            errors.append(
                f"{len(some)} cases have no {what}, such as {some[0].place}, and others have one: give all or none"
            )
    errors += _divided_groups(cases)
    kept, repeated, alike = _drop_repeated(cases)
    repeated += [
        f"the name {name}: {count} cases have it, and are numbered; if they are of one patient, give --group-column"
        for name, count in Counter(case.name for case in kept if not case.group).items()
        if count > 1
    ]
    return CaseList(
        path, tuple(channels), tuple(_name_apart(kept)), tuple(names),
        tuple(shorten([*errors, *alike])), tuple(shorten([*warnings, *repeated])),
    )  # fmt: skip


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


def _drop_repeated(cases: Iterable[LabelledCase]) -> tuple[list[LabelledCase], list[str], list[str]]:
    """Return the cases without rows that say the same again, and sentences on these and on contradicting rows."""
    first: dict[tuple[Source | None, ...], LabelledCase] = {}
    kept, repeated, errors = [], [], []
    for case in cases:
        # One scan may be several cases, with another point or mask to crop around.
        key = (*case.images, case.mask, str(case.centre_mm))
        earlier = first.setdefault(key, case)
        if earlier is case or not any(case.images):
            kept.append(case)
        elif (earlier.label, earlier.split, earlier.fold) == (case.label, case.split, case.fold):
            repeated.append(f"{case.place}: left out, because it repeats: {earlier.place}")
        else:
            errors.append(f"{case.place}: another label, split or fold for the image of: {earlier.place}")
    return kept, repeated, errors


def _name_apart(cases: Iterable[LabelledCase]) -> list[LabelledCase]:
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
