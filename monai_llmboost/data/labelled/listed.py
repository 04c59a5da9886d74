# SPDX-License-Identifier: Apache-2.0
"""Scans to predict from a list: cases of several channels, with masks or points to crop around."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_llmboost.data.labelled.case import LabelledCase
from monai_llmboost.data.labelled.lists.read import read_rows
from monai_llmboost.data.labelled.lists.rows import Columns
from monai_llmboost.data.scans.dicom.paths import SEPARATOR, get_reader_paths
from monai_llmboost.data.scans.find import find_scans
from monai_llmboost.data.scans.scan import Scan


@dataclass(frozen=True)
class ListedScan(Scan):
    """A case of a list; the other fields are those of its first channel.

    Args:
        channels: the scan of each channel; ``None`` for one that the list leaves out.
        mask: a mask to crop around.
        centre_mm: a point to crop around, in RAS+ mm.

    Example:
        >>> ListedScan("case 1", (Path("t1.nii"), Path("t2.nii")), "NIfTI").channels
        ()
    """

    channels: tuple[Scan | None, ...] = ()
    mask: Scan | None = None
    centre_mm: tuple[float, float, float] | None = None

    @property
    def parts(self) -> list[Scan]:
        """The scans of the channels that are there, and of the mask."""
        return [part for part in (*self.channels, self.mask) if part is not None]


def find_listed_scans(path: Path, columns: Columns, channels: int) -> list[ListedScan]:
    """Return the cases of a list, with or without labels; one that cannot be read is refused with the reason.

    Args:
        path: a CSV or JSON list, see :func:`monai_llmboost.data.labelled.read_cases`.
        columns: names of its columns.
        channels: number of channels of the network's input.

    Raises:
        ValueError: it is no such list, or its cases have another number of channels.
    """
    names, cases, errors = read_rows(path, columns)
    if len(names) != channels:
        raise ValueError(
            f"the cases of {path} have {len(names)} channels ({', '.join(names)}), and the network takes {channels}: "
            "name the columns of the training with --image_column"
        )
    wrong: dict[str, str] = {}
    for error in errors:
        place, _, reason = error.partition(": ")
        wrong.setdefault(place, reason)
    return [_find_case(case, names, wrong.get(case.place, "")) for case in cases]


def item_of(scan: Scan) -> dict[str, Any]:
    """Return the item of a scan for the transforms that load it."""
    if not isinstance(scan, ListedScan):
        return {"image": reader_source(scan)}
    sources = [None if channel is None else reader_source(channel) for channel in scan.channels]
    item: dict[str, Any] = {"image": sources if len(sources) > 1 else sources[0]}
    if scan.mask is not None:
        item["mask"] = reader_source(scan.mask)
    if scan.centre_mm is not None:
        item["centre"] = list(scan.centre_mm)
    return item


def first_channel(scan: Scan) -> Scan:
    """Return the first channel of a listed case that is there; any other scan itself."""
    channels = scan.channels if isinstance(scan, ListedScan) else ()
    return next((channel for channel in channels if channel is not None), scan)


def first_channel_index(scan: Scan) -> int:
    """Return the position of :func:`first_channel` among the channels of a case."""
    channels = scan.channels if isinstance(scan, ListedScan) else ()
    return next((number for number, channel in enumerate(channels) if channel is not None), 0)


def reader_source(scan: Scan) -> Any:
    """Return the reader's input for a scan."""
    return str(scan.files[0]) if scan.format == "NIfTI" else get_reader_paths(scan)


def _find_case(case: LabelledCase, names: Iterable[str], wrong: str) -> ListedScan:
    if wrong:
        # The path as the list has it, so that it can be hidden in the reason.
        return ListedScan(case.name, (Path(wrong.partition(": ")[2]),), "NIfTI", refused=wrong, refused_kind="unread")
    mask = None if case.mask is None else _find(str(case.mask))
    found = [None if source is None else _find(str(source)) for source in case.images]
    there = [(name, scan) for name, scan in zip(names, found) if scan is not None]
    first = there[0][1]
    several = len(found) > 1
    parts = [(f"channel {name}: " if several else "", scan) for name, scan in there]
    parts += [] if mask is None else [("mask: ", mask)]
    refused, kind = next(((what + scan.refused, scan.refused_kind) for what, scan in parts if scan.refused), ("", ""))
    return ListedScan(
        name=case.name,
        files=tuple(file for _, scan in there for file in scan.files),
        format=first.format,
        shape=first.shape,
        spacing_mm=first.spacing_mm,
        orientation=first.orientation,
        modality=first.modality,
        series_uid=first.series_uid,
        stack="-".join(scan.stack for _, scan in there if scan.stack),
        warnings=tuple(f"{name}: {line}" if several else line for name, scan in there for line in scan.warnings),
        refused=refused,
        refused_kind=kind,
        channels=tuple(found),
        mask=mask,
        centre_mm=case.centre_mm,
    )


def _find(source: str) -> Scan:
    """Return the single scan at a path, or a refused one."""
    path, _, series = source.partition(SEPARATOR)
    try:
        scans, _ = find_scans(path)
    except FileNotFoundError as error:
        return Scan(path, (Path(path),), "NIfTI", refused=str(error), refused_kind="unread")
    chosen = [scan for scan in scans if not series or series in (scan.series_uid, scan.stack)]
    if len(chosen) != 1:
        how = ", ".join(scan.series_uid or scan.name for scan in chosen[:4]) or "none"
        reason = f"expected one scan at {source}, got {len(chosen)} ({how}): name one as PATH::SeriesInstanceUID"
        return Scan(path, (Path(path),), "NIfTI", refused=reason, refused_kind="several-volumes")
    return chosen[0]
