# SPDX-License-Identifier: Apache-2.0
"""DICOM files as scans: slices put into stacks, copies left out, and every stack one volume or refused."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from monai_llmboost.data.scans.dicom.copies import remove_copies
from monai_llmboost.data.scans.dicom.geometry import are_nearly_parallel, group_by_plane, is_evenly_spaced
from monai_llmboost.data.scans.dicom.headers import read_header, silence_pydicom
from monai_llmboost.data.scans.dicom.identity import Series, group_by_series
from monai_llmboost.data.scans.dicom.layout import Layout, lay_out
from monai_llmboost.data.scans.dicom.pieces import find_pieces
from monai_llmboost.data.scans.dicom.slices import UNITS, SliceHeader
from monai_llmboost.data.scans.dicom.volumes import Volumes, separate_volumes
from monai_llmboost.data.scans.scan import RefusedScan, Scan, SkippedFile

SET_APART = (
    "expected one patient, study and series in an even stack of slices, got several: correct the headers, or keep the "
    "slices of one"
)
# Volumes in time have one affine up to this, in mm.
SAME_AFFINE = 1e-3


@dataclass(frozen=True)
class Stack:
    """Slices that belong together, laid out as one volume, or several in time, or refused.

    Args:
        slices: of a volume in the order of k, of several volume by volume; as found if refused.
        layouts: the geometry of each volume; empty if refused.
        separated_by: what separated it from others of its series.
        warnings: what is odd about it and does not keep it from being read.
        refused: why it is no volume; empty if it is.
        refused_kind: one word for the kind of that reason.
    """

    slices: tuple[SliceHeader, ...]
    layouts: tuple[Layout, ...] = ()
    separated_by: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    refused: str = ""
    refused_kind: str = ""

    @property
    def digest(self) -> str:
        """Eight characters that stand for exactly these slices, wherever they are and whatever lies beside them."""
        names = [(part.sop_uid or part.path.name, part.frame) for part in self.slices]
        if len(set(names)) < len(names):  # as where all files have one SOPInstanceUID
            return _digest(sorted(repr((*name, part.number, part.position)) for name, part in zip(names, self.slices)))
        return _digest(sorted(names))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, in the order of their first slices."""
        return tuple(dict.fromkeys(part.path for part in self.slices))


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


def find_dicom_scans(
    files: Iterable[Path], name: Callable[[Path], str], min_slices: int = 2
) -> tuple[list[Scan], list[SkippedFile]]:
    """The scans among DICOM files, in the order of their names, and the files that are none.

    Args:
        files: DICOM files of any number of series, in any order.
        name: name of a file or folder. A scan is named by its file, or by the folder that holds all of its files; if
            several would get one name, followed by ``_`` and eight characters that stand for a scan's slices.
        min_slices: fewer are refused.
    """
    stacks, skipped = find_dicom_stacks(files, min_slices)
    bases = [_base(stack.files) for stack in stacks]
    shared = Counter(bases)
    scans = [
        _scan(stack, name(base) + (f"_{stack.digest}" if shared[base] > 1 else ""))
        for stack, base in zip(stacks, bases)
    ]
    return sorted(scans, key=lambda scan: scan.name), skipped


def find_dicom_stacks(files: Iterable[Path], min_slices: int = 2) -> tuple[list[Stack], list[SkippedFile]]:
    """The stacks among DICOM files, and the files that hold no slices or are copies of others.

    A stack has one patient, study, series, size, spacing and direction. Where several volumes lie at one place they
    are separated by echo, b-value and the like, or, as volumes in time, by the order of their numbers.
    """
    headers: list[tuple[SliceHeader, ...]] = []
    skipped: list[SkippedFile] = []
    with silence_pydicom():
        for path in sorted({Path(file) for file in files}):
            found = read_header(path)
            if isinstance(found, SkippedFile):
                skipped.append(found)
            else:
                headers.append(found)
    kept, originals, copies = remove_copies(headers)
    skipped += copies
    series = group_by_series(part for file in kept for part in file)
    stacks = _refuse_doubtful(series, [list(_stacks(one, min_slices)) for one in series])
    stacks = _refuse_pieces(stacks)
    of_series = Counter(stack.slices[0].series_uid for stack in stacks)
    others = Counter(file.series_uid for file in skipped if file.series_uid)
    copied = Counter(originals.values())
    return [
        replace(stack, warnings=tuple(_oddities(stack, of_series[uid], others[uid], copied)))
        for stack in stacks
        for uid in [stack.slices[0].series_uid]
    ], sorted(skipped, key=lambda file: file.path)


def _refuse_doubtful(series: Sequence[Series], stacks: Sequence[list[Stack]]) -> list[Stack]:
    """All stacks; those of several owners under one SeriesInstanceUID refused as one if some of them are no volumes."""
    owners: dict[str, list[int]] = {}
    for i, one in enumerate(series):
        if one.separated_by:
            owners.setdefault(one.slices[0].series_uid, []).append(i)
    found = list(stacks)
    for several in owners.values():
        refused = next((stack for i in several for stack in stacks[i] if stack.refused), None)
        if refused is not None and len(several) > 1:
            slices = tuple(part for i in several for part in series[i].slices)
            found[several[0]] = [Stack(slices, refused=refused.refused, refused_kind="unclear")]
            for i in several[1:]:
                found[i] = []
    return [stack for several in found for stack in several]


def _stacks(series: Series, min_slices: int) -> Iterator[Stack]:
    """The stacks of a series, each laid out or refused."""
    if series.refused:
        yield Stack(series.slices, warnings=series.warnings, refused=series.refused, refused_kind="unclear")
        return
    if lost := [part for part in series.slices if not part.has_size]:  # it may be any slice of the series
        refused = f"{lost[0].problem} ({lost[0].path.name})"
        yield Stack(series.slices, warnings=series.warnings, refused=refused, refused_kind="damaged")
        return
    sizes: dict[tuple[int, int], list[SliceHeader]] = {}
    for part in series.slices:
        sizes.setdefault((part.rows, part.columns), []).append(part)
    for slices in sizes.values():
        planes = _planes(slices)
        stacks = [
            _laid_out(volumes, series, min_slices)
            for plane in planes
            for volumes in (
                separate_volumes(plane, series.lacks_uid) if plane[0].is_placed else [Volumes(tuple(plane))]
            )
        ]
        yield from _refuse_fallen_apart(stacks) if len(planes) > 1 else stacks


def _planes(slices: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Slices of one size by direction and pixel spacing; all together where the place of one is not known."""
    if not all(part.is_placed for part in slices):
        return [sorted(slices, key=lambda part: part.is_placed)]
    return group_by_plane(slices)


def _laid_out(volumes: Volumes, series: Series, min_slices: int) -> Stack:
    slices = volumes.slices
    stack = Stack(
        slices,
        separated_by=(*series.separated_by, *volumes.separated_by),
        warnings=(*series.warnings, *volumes.warnings),
    )
    try:
        bad = next((part for part in slices if part.problem), None)
        if bad:
            raise RefusedScan(f"{bad.problem} ({bad.path.name})", kind="damaged")
        if volumes.refused:
            raise RefusedScan(volumes.refused, kind="unclear")
        each = len(slices) // volumes.count
        layouts = [lay_out(slices[start : start + each], min_slices) for start in range(0, len(slices), each)]
        if any(np.abs(layout.affine - layouts[0].affine).max() > SAME_AFFINE for layout in layouts):
            raise RefusedScan(
                f"expected {volumes.count} volumes at one place, got some that moved: keep one", kind="several-volumes"
            )
        _check_alike(slices)
    except RefusedScan as refused:
        return replace(stack, refused=str(refused), refused_kind=refused.kind)
    return replace(stack, slices=tuple(part for layout in layouts for part in layout.slices), layouts=tuple(layouts))


def _check_alike(slices: Sequence[SliceHeader]) -> None:
    """Refuse slices whose values do not mean the same."""
    meanings: list[tuple[str, set[Any]]] = [
        ("modality", {part.modality for part in slices} - {""}),
        ("photometric interpretation", {part.inverted for part in slices}),
        ("sign (PixelRepresentation)", {part.signed for part in slices}),
        ("way of scaling (RescaleSlope)", {part.slope is None for part in slices}),
        ("number of bits (MONOCHROME1)", {part.bits_stored for part in slices if part.inverted}),
    ]
    meanings += [(f"unit ({keyword})", {part.units[i] for part in slices} - {""}) for i, keyword in enumerate(UNITS)]
    for words, values in meanings:
        if len(values) > 1:
            raise RefusedScan(
                f"expected slices of one {words}, got several: keep the slices of one volume", kind="mixed"
            )


def _refuse_fallen_apart(stacks: list[Stack]) -> list[Stack]:
    """The stacks of one series; one refused stack in their place if but for their directions they are one volume."""
    slices = [part for stack in stacks for part in stack.slices]
    alike = all(part.is_placed and are_nearly_parallel(slices[0], part) for part in slices)
    if len(slices) < 3 or not alike or not is_evenly_spaced(slices):
        return stacks
    refused = (
        "expected slices of one direction and pixel spacing, got some that differ by more than a tenth of a pixel, in "
        "one even stack: export the series again"
    )
    return [Stack(tuple(slices), refused=refused, refused_kind="no-geometry")]


def _refuse_pieces(stacks: Sequence[Stack]) -> list[Stack]:
    """The stacks, with those refused as one that are pieces of one even stack though their headers set them apart."""
    found = list(stacks)
    for several in find_pieces([(stack.slices, stack.separated_by) for stack in stacks]):
        slices = tuple(part for i in several for part in stacks[i].slices)
        found[several[0]] = Stack(slices, refused=SET_APART, refused_kind="unclear")
        for i in several[1:]:
            found[i] = Stack(())
    return [stack for stack in found if stack.slices]


def _oddities(stack: Stack, of_series: int, others: int, copied: Counter[Path]) -> Iterator[str]:
    if of_series > 1 and stack.slices[0].series_uid:
        by = f", separated by {' and '.join(stack.separated_by)}" if stack.separated_by else ""
        yield f"one of {of_series} stacks of its series{by}"
    yield from stack.warnings
    if others:
        yield f"files of its series that are no grey slices: {others}; some of its slices may be missing"
    if copies := sum(copied[path] for path in stack.files):
        yield f"copies of its files were left out: {copies}"
    if stack.slices[0].inverted:
        yield "stored with low values bright (MONOCHROME1): mirrored, so that bright is high"
    if stack.layouts and stack.layouts[0].tilt_deg:
        yield f"its slices are tilted by {stack.layouts[0].tilt_deg:.1f} degrees (gantry tilt)"


def _base(files: Sequence[Path]) -> Path:
    return files[0] if len(files) == 1 else Path(os.path.commonpath([file.parent for file in files]))


def _scan(stack: Stack, name: str) -> Scan:
    first = stack.slices[0]
    scan = Scan(
        name=name,
        files=stack.files,
        format="DICOM",
        modality=first.modality,
        series_uid=first.series_uid,
        stack=stack.digest,
        warnings=stack.warnings,
        refused=stack.refused,
        refused_kind=stack.refused_kind,
    )
    if not stack.layouts:
        return scan
    affine = stack.layouts[0].affine
    count = len(stack.layouts)
    return replace(
        scan,
        shape=(first.columns, first.rows, len(stack.layouts[0].slices), *([count] if count > 1 else [])),
        spacing_mm=tuple(float(size) for size in nibabel.affines.voxel_sizes(affine)),
        orientation="".join(nibabel.aff2axcodes(affine)),
    )
