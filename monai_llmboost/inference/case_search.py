# SPDX-License-Identifier: Apache-2.0
"""The cases of a run: scans found on disk, selected, and checked by their headers; neither torch nor MONAI is used."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai_llmboost.arguments import check_switch
from monai_llmboost.data.labelled.listed import ListedScan, find_listed_scans
from monai_llmboost.data.labelled.lists.rows import Columns
from monai_llmboost.data.labelled.lists.tables import TABLES
from monai_llmboost.data.scans.find import find_scans
from monai_llmboost.data.scans.scan import RefusedScan, Scan, SkippedFile, get_refused_kind
from monai_llmboost.inference.hidden import HiddenNames, hashed
from monai_llmboost.inference.reasons import reason_of


@dataclass(frozen=True)
class FoundCases:
    """The result of a search for cases.

    Args:
        scans: scans to predict.
        refused: scans that cannot be read correctly according to their headers.
        skipped: files that are not scans.
        hidden: the hidden names; ``None`` without a salt.
    """

    scans: list[Scan]
    refused: list[Scan]
    skipped: list[SkippedFile]
    hidden: HiddenNames | None


@dataclass(frozen=True)
class CaseSearch:
    """A search for cases; the arguments are those of :class:`monai_llmboost.inference.ScanCases`.

    Args:
        where: a folder, a file, a pattern or a list file, or several of them; ``None`` searches for nothing.
        channels: channels of the network's input, for lists.
        follow_links: also follow links to folders, and links that lead out of the folder.
        leave_out: folders that are not searched.
        salt: a secret text; if given, names are hidden.
        only: names of cases, or patterns; ``None`` takes all.
        columns: columns of a list of cases.
        num_workers: processes that read headers; 0 reads them in this process.

    Example:
        >>> CaseSearch("scans", 1).run().scans  # doctest: +SKIP
    """

    where: str | Path | Sequence[str | Path] | None
    channels: int
    follow_links: bool = False
    leave_out: Sequence[str | Path] | str | Path = ()
    salt: str | None = None
    only: Sequence[str] | str | None = None
    columns: Columns | None = None
    num_workers: int = 0

    def run(
        self,
        check_header: Callable[[Scan], None] | None = None,
        check_shape: Callable[[Sequence[int]], None] | None = None,
    ) -> FoundCases:
        """Search for the cases.

        Args:
            check_header: raises :class:`RefusedScan` for a scan whose header shows that reading would refuse it.
            check_shape: does so for the voxels of a scan along (i, j, k).

        Raises:
            FileNotFoundError: no scans were found.
            ValueError: an empty salt; a name or pattern that matches no case.
        """
        check_switch("follow_links", self.follow_links)
        salt = self.salt
        if salt is not None and not str(salt).strip():
            raise ValueError("the salt is empty: give a secret word that nobody can guess")
        scans, skipped = self._find()
        hidden = None if salt is None else HiddenNames(str(salt), with_parts(scans), skipped)
        if self.only is not None:
            scans = _choose(scans, _as_list(self.only), salt)
        scans = [_check(scan, check_header, check_shape) for scan in scans]
        if hidden is not None:
            scans = list(map(hidden.scan, scans))
            skipped = list(map(hidden.skipped, skipped))
        kept, refused = ([scan for scan in scans if bool(scan.refused) is wanted] for wanted in (False, True))
        return FoundCases(kept, refused, skipped, hidden)

    def _find(self) -> tuple[list[Scan], list[SkippedFile]]:
        """Return the scans and the other files, or the cases of a list with columns."""
        if self.where is None:
            return [], []
        listed = None if self.columns is None else _find_listed(self.where, self.columns, self.channels)
        if listed is not None:
            return [*listed], []
        excluded = [Path(path).absolute() for path in _as_list(self.leave_out)]
        try:
            return find_scans(_as_list(self.where), self.follow_links, excluded, num_workers=self.num_workers)
        except FileNotFoundError:
            if self.salt is None:
                raise
            raise FileNotFoundError(
                "no NIfTI or DICOM scans at one of the inputs: see --dry-run without --salt"
            ) from None


def _choose(scans: Sequence[Scan], patterns: Sequence[str], salt: str | None) -> list[Scan]:
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


def _check(
    scan: Scan, check_header: Callable[[Scan], None] | None, check_shape: Callable[[Sequence[int]], None] | None
) -> Scan:
    """Return a scan, refused if its header shows that reading would refuse it."""
    if scan.refused:
        return scan
    try:
        if check_header is not None:
            check_header(scan)
        if check_shape is not None and scan.shape:
            check_shape(scan.shape[:3])
    except RefusedScan as error:
        return replace(scan, refused=reason_of(error), refused_kind=get_refused_kind(error))
    return scan


def _as_list(where: Any) -> list[Any]:
    return [where] if isinstance(where, (str, Path)) else list(where)


def _find_listed(where: Any, columns: Columns, channels: int) -> list[ListedScan] | None:
    """Return the cases of an input that is a table; ``None`` for other inputs, such as folders and lists of paths."""
    paths = [Path(one).expanduser() for one in _as_list(where)]
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
