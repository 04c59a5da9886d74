# SPDX-License-Identifier: Apache-2.0
"""Labelled scans in a folder with one subfolder for each class."""

from __future__ import annotations

from pathlib import Path

from monai_llmboost.data.labelled.case import LabelledCase, Source
from monai_llmboost.data.labelled.lists.rows import SPLIT_WORDS
from monai_llmboost.data.scans.dicom.paths import get_reader_paths
from monai_llmboost.data.scans.scan import Scan


def read_class_folders(path: Path) -> tuple[list[LabelledCase], list[str]]:
    """Return the cases of a folder with one subfolder for each class, and the errors.

    Raises:
        ValueError: there are no such subfolders.
    """
    from monai_llmboost.data.scans.find import find_scans  # takes half a second, and files do without it

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
