# SPDX-License-Identifier: Apache-2.0
"""The scans of a run: found at the inputs or in a list of cases, and selected by name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_llmboost.data import Scan, SkippedFile, find_scans
from monai_llmboost.data.labelled.listed import ListedScan, find_listed_scans
from monai_llmboost.data.labelled.lists.rows import Columns
from monai_llmboost.data.labelled.lists.tables import TABLES
from monai_llmboost.inference.hidden import hashed


def find_cases(
    where: Any,
    columns: Columns | None,
    channels: int,
    follow_links: bool,
    leave_out: Any,
    hide: bool,
    num_workers: int = 0,
) -> tuple[list[Scan], list[SkippedFile]]:
    """Return the scans and the other files at the inputs, or the cases of a list with columns.

    Args:
        where: the inputs.
        columns: columns of a list of cases; ``None`` for lists of scans.
        channels: channels of a case.
        follow_links: also follow links that lead out of a folder.
        leave_out: folders that are not searched.
        hide: remove file names from the message if nothing is found.
        num_workers: processes that read headers.
    """
    listed = None if columns is None else _find_listed(where, columns, channels)
    if listed is not None:
        return [*listed], []
    try:
        excluded = [Path(path).absolute() for path in as_list(leave_out)]
        return find_scans(as_list(where), follow_links, excluded, num_workers=num_workers)
    except FileNotFoundError:
        if not hide:
            raise
        raise FileNotFoundError("no NIfTI or DICOM scans at one of the inputs: see --dry-run without --salt") from None


def choose_cases(scans: Sequence[Scan], patterns: Sequence[str], salt: str | None) -> list[Scan]:
    """Return the scans whose name, or salted name, equals or matches one of the patterns.

    Raises:
        ValueError: a pattern matches no scan.
    """
    names = [{scan.name} if salt is None else {scan.name, hashed(scan.name, str(salt))} for scan in scans]
    chosen: set[int] = set()
    for pattern in patterns:
        fits = re.compile(fnmatch.translate(pattern)).match
        found = {number for number, own in enumerate(names) if pattern in own or any(map(fits, own))}
        if not found:
            example = "" if salt else "".join(f", such as {scan.name}" for scan in scans[:1])
            raise ValueError(f"--only {pattern!r} fits none of {len(scans)} cases{example}: correct it")
        chosen |= found
    return [scan for number, scan in enumerate(scans) if number in chosen]


def as_list(where: Any) -> list[Any]:
    """Return one path or several as a list."""
    return [where] if isinstance(where, (str, Path)) else list(where)


def _find_listed(where: Any, columns: Columns, channels: int) -> list[ListedScan] | None:
    """Return the cases of an input that is a table; ``None`` for other inputs, such as folders and lists of paths."""
    paths = [Path(one).expanduser() for one in as_list(where)]
    if len(paths) != 1 or paths[0].suffix.lower() not in TABLES or not paths[0].is_file():
        if channels > 1:
            raise ValueError(
                f"the network takes {channels} channels, so a folder does not say which scans belong together: give a "
                "CSV list with a column for each channel"
            )
        return None
    try:
        return find_listed_scans(paths[0], columns, channels)
    except ValueError:
        if channels > 1 or columns.images is not None:
            raise
        return None  # a plain list of paths


def with_parts(scans: Sequence[Scan]) -> list[Scan]:
    """Return scans, and those of which listed cases are made."""
    return [*scans, *(part for scan in scans if isinstance(scan, ListedScan) for part in scan.parts)]
