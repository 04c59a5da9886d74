# SPDX-License-Identifier: Apache-2.0
"""Reading of labelled lists: a CSV file, a Decathlon datalist, or a folder with one subfolder for each class."""

from __future__ import annotations

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from monai_llmboost.data.labelled.case import CaseList, LabelledCase, Source
from monai_llmboost.data.labelled.tables import CENTRE, SPLIT_WORDS, Columns, Row, Table, read_table
from monai_llmboost.data.scans.dicom.reader import SEPARATOR, get_reader_paths
from monai_llmboost.data.scans.find import find_scans
from monai_llmboost.data.scans.scan import Scan

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
        return _finish(path, ("image",), *_read_folder(path))
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
            _label(row, table, columns, problems) if labelled else "",
            _split(row, problems) if labelled else "",
            _fold(row, problems) if labelled else None,
            row.values.get("group", "").strip(),
            _find_source(root, mask, problems) if (mask := row.values.get("mask", "").strip()) else None,
            _centre(row, problems),
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


def _label(row: Row, table: Table, columns: Columns, problems: list[str]) -> str:
    text = row.values.get("label", "").strip()
    if not text:
        problems.append(f"no label in {columns.label!r}" if "label" in row.values else f"no {columns.label!r}")
        return ""
    number = _number(text)
    if number is not None:
        if not math.isfinite(number):
            problems.append(f"the label {text!r} is not a class")
            return ""
        text = str(int(number)) if number == int(number) else text  # spreadsheets turn 1 into 1.0
    return table.class_names.get(text, text)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _split(row: Row, problems: list[str]) -> str:
    text = row.values.get("split", "").strip().lower()
    if text and text not in SPLIT_WORDS:
        problems.append(f"the split {text!r} is none of train, val and test")
    return SPLIT_WORDS.get(text, "")


def _fold(row: Row, problems: list[str]) -> int | None:
    text = row.values.get("fold", "").strip()
    number = _number(text) if text else None
    if text and (number is None or not math.isfinite(number) or number != int(number) or number < 0):
        problems.append(f"the fold {text!r} is no whole number from 0")
        return None
    return None if number is None else int(number)


def _centre(row: Row, problems: list[str]) -> tuple[float, float, float] | None:
    # In countries with a decimal comma, spreadsheets write it.
    texts = [row.values.get(name, "").strip().replace(",", ".") for name in CENTRE]
    if not any(texts):
        return None
    numbers = [_number(text) for text in texts]
    if any(number is None or not math.isfinite(number) for number in numbers):
        problems.append(f"the centre {', '.join(texts)} is not three numbers, in mm")
        return None
    return tuple(numbers)  # type: ignore[return-value]


def _read_folder(path: Path) -> tuple[list[LabelledCase], list[str]]:
    path = path.absolute()
    folders = _subfolders(path)
    splits = {folder.name: SPLIT_WORDS.get(folder.name.lower(), "") for folder in folders}
    if {"train", "val"} & {*splits.values()} and not all(splits.values()):
        named = next(name for name, split in splits.items() if split)
        other = next(name for name, split in splits.items() if not split)
        raise ValueError(
            f"{path} has the folder {named!r} of a split next to {other!r}, which is none: put all classes below "
            "train, val and test, and nothing else"
        )
    if folders and all(splits.values()):
        classes = [(one, splits[folder.name]) for folder in folders for one in _subfolders(folder)]
    else:
        classes = [(folder, "") for folder in folders]
    if not classes:
        raise ValueError(
            f"{path} has no folders of classes: put the scans of each class into a subfolder with the name of the "
            "class, or give a CSV list"
        )
    cases, errors = [], []
    for folder, split in classes:
        try:
            scans, _ = find_scans(folder)
        except FileNotFoundError:
            errors.append(f"the folder {folder.relative_to(path).as_posix()} has no scans: remove it, or add some")
            continue
        place = folder.relative_to(path).as_posix()
        cases += [
            LabelledCase(f"{place}/{scan.name}", (_source(scan),), folder.name, split, place=place) for scan in scans
        ]
    return cases, errors


def _source(scan: Scan) -> Source:
    """Return what the reader takes for a scan that was found in a folder, also for one that it will refuse."""
    return str(scan.files[0].absolute()) if scan.format == "NIfTI" else tuple(get_reader_paths(scan))


def _subfolders(path: Path) -> list[Path]:
    whole = path.resolve()
    return sorted(
        one
        for one in path.absolute().iterdir()
        if one.is_dir() and not one.name.startswith((".", "__")) and not whole.is_relative_to(one.resolve())
    )


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


def _sort_labels(labels: Iterable[str]) -> list[str]:
    numbers = {label: _number(label) for label in labels}
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
