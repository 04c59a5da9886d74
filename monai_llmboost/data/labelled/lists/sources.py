# SPDX-License-Identifier: Apache-2.0
"""The paths of scans as lists write them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from monai_llmboost.data.labelled.case import Source
from monai_llmboost.data.labelled.lists.rows import Row
from monai_llmboost.data.scans.dicom.paths import SEPARATOR


def find_source(root: Path, text: str, problems: list[str]) -> Source:
    """Return the absolute path of a scan, with its series if the list names one."""
    path, series = locate(root, text)
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


def locate(root: Path, text: str) -> tuple[Path, str]:
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


def common_folder(root: Path, rows: Iterable[Row]) -> Path:
    """Return the folder below which all scans are: that of the list, or else the deepest."""
    folders = {locate(root, text)[0].parent for row in rows for text in filter(None, row.images)}
    if all(folder.is_relative_to(root) for folder in folders):
        return root
    return Path(os.path.commonpath(folders))


def name_of(root: Path, top: Path, images: Iterable[str]) -> str:
    """Return the name of a case: its path from a folder."""
    path, series = locate(root, next(filter(None, images), ""))
    return (path.relative_to(top).as_posix() if path.is_relative_to(top) else path.as_posix()) + series
