# SPDX-License-Identifier: Apache-2.0
"""Reading of labelled lists: a CSV file, a Decathlon datalist, or a folder of classes or of images and label maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from monai_llmboost.data.labelled.case import CaseList, LabelledCase
from monai_llmboost.data.labelled.lists.cells import find_label_map, read_centre, read_fold, read_label, read_split
from monai_llmboost.data.labelled.lists.checks import (
    check_classes,
    check_label_maps,
    check_splits,
    drop_repeated,
    name_apart,
    shorten,
)
from monai_llmboost.data.labelled.lists.class_folders import read_class_folders
from monai_llmboost.data.labelled.lists.label_folders import has_label_folders
from monai_llmboost.data.labelled.lists.rows import Columns, Table
from monai_llmboost.data.labelled.lists.sources import common_folder, find_source, name_of
from monai_llmboost.data.labelled.lists.structures import read_structures
from monai_llmboost.data.labelled.lists.tables import drop_unlabelled_tests, read_folder, read_table

# Suffixes of lists; anything else that is a file is most likely a scan.
LISTS = (".csv", ".tsv", ".txt", ".json")


def read_cases(path: str | Path, columns: Columns | None = None) -> CaseList:
    """Read a labelled list.

    Paths in a list are relative to its folder. Labels are words or numbers, which are sorted by their values; in a list
    for segmentation, they are paths of label maps.

    Args:
        path: a CSV file, a JSON datalist as ``monai.data.load_decathlon_datalist`` and Auto3DSeg read it, a folder
            with one subfolder for each class, which may be below folders ``train``, ``val`` and ``test``, or a folder
            of the Decathlon or nnU-Net with ``imagesTr`` and ``labelsTr``.
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
        if has_label_folders(path):
            return _finish(path, path, read_folder(path), columns)
        return _finish_classes(path, ("image",), *read_class_folders(path))
    return _finish(path, path.parent, read_table(_find_file(path), columns), columns)


def check_list(path: str | Path, columns: Columns | None = None) -> None:
    """Check that there is a list, and, in a file, the columns if they are given; no scan is looked for.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: the file is no labelled list, or lacks one of the columns.
    """
    path = Path(path).expanduser()
    file = None if path.is_dir() else _find_file(path)
    if file is not None and columns is not None:
        read_table(file, columns)


def _find_file(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"there is no list at {path}: give a CSV file, a JSON datalist or a folder of classes")
    if path.suffix.lower() not in LISTS:
        raise ValueError(
            f"{path} is neither a CSV file nor a JSON datalist ({', '.join(LISTS)}): save the table as CSV, or give "
            "the folder with one subfolder for each class"
        )
    return path


def is_for_segmentation(path: str | Path, columns: Columns) -> bool:
    """Return whether the labels of a list are label maps; no scan is looked for.

    Raises:
        ValueError: the file is no labelled list.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return has_label_folders(path)
    return path.is_file() and path.suffix.lower() in LISTS and read_table(path, columns).is_segmentation


def read_rows(path: Path, columns: Columns) -> tuple[tuple[str, ...], list[LabelledCase], list[str]]:
    """Return the channels of a list, its cases, which need no labels, and the errors, each with its row.

    Raises:
        ValueError: the file is no list.
    """
    table = read_table(path, columns, labelled=False)
    cases, errors = _read_rows(path.parent, table, columns, labelled=False)
    return table.channels, name_apart(cases), errors


def _read_rows(
    root: Path, table: Table, columns: Columns, labelled: bool = True
) -> tuple[list[LabelledCase], list[str]]:
    root = root.absolute()
    top = common_folder(root, table.rows)
    has_maps = table.is_segmentation
    errors: list[str] = []
    cases = []
    for row in table.rows:
        problems: list[str] = []
        images = tuple(find_source(root, text, problems) if text else None for text in row.images)
        if not any(row.images):
            problems.append("no image")
        # A scan is segmented as a whole: masks and points to crop around are of classification.
        mask = "" if has_maps else row.values.get("mask", "").strip()
        case = LabelledCase(
            row.values.get("case", "").strip() or name_of(root, top, row.images),
            images,
            read_label(row, table, columns, problems) if labelled and not has_maps else "",
            read_split(row, problems) if labelled else "",
            read_fold(row, problems) if labelled else None,
            row.values.get("group", "").strip(),
            find_source(root, mask, problems) if mask else None,
            None if has_maps else read_centre(row, problems),
            row.place,
            find_label_map(row, columns, root, problems) if labelled and has_maps else None,
        )
        errors += [f"{row.place}: {problem}" for problem in problems]
        cases.append(case)
    return cases, errors


def _finish(path: Path, root: Path, table: Table, columns: Columns) -> CaseList:
    """Return the list of a table whose paths are relative to a folder."""
    if not table.is_segmentation:
        cases, errors = _read_rows(root, table, columns)
        return _finish_classes(path, table.channels, cases, errors, table.warnings)
    table = drop_unlabelled_tests(table)
    cases, errors = _read_rows(root, table, columns)
    structures, wrong = read_structures(table.labels)
    wrong += check_label_maps(cases)
    found = _finish_cases(path, table.channels, cases, [*errors, *wrong], table.warnings)
    return replace(found, structures=dict(sorted(structures.items())), is_segmentation=True)


def _finish_classes(
    path: Path, channels: Sequence[str], cases: list[LabelledCase], errors: list[str], warnings: Iterable[str] = ()
) -> CaseList:
    names, wrong = check_classes(cases)
    return replace(_finish_cases(path, channels, cases, [*errors, *wrong], warnings), class_names=tuple(names))


def _finish_cases(
    path: Path, channels: Sequence[str], cases: list[LabelledCase], errors: Sequence[str], warnings: Iterable[str]
) -> CaseList:
    """Return the list with distinct names, and the errors of all rows together."""
    errors = [*errors, *check_splits(cases)]
    kept, repeated, alike = drop_repeated(cases)
    repeated += [
        f"the name {name}: {count} cases have it, and are numbered; if they are of one patient, give --group-column"
        for name, count in Counter(case.name for case in kept if not case.group).items()
        if count > 1
    ]
    return CaseList(
        path, tuple(channels), tuple(name_apart(kept)), (),
        tuple(shorten([*errors, *alike])), tuple(shorten([*warnings, *repeated])),
    )  # fmt: skip
