# SPDX-License-Identifier: Apache-2.0
"""Scans in DICOM files: slices are grouped into stacks without copies, and each stack is laid out or refused."""

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
from monai_llmboost.data.scans.dicom.repeated_positions import separate_volumes
from monai_llmboost.data.scans.dicom.slices import UNITS, SliceHeader
from monai_llmboost.data.scans.dicom.tolerances import SAME_AFFINE_MM
from monai_llmboost.data.scans.dicom.volumes import Volumes
from monai_llmboost.data.scans.parallel import read_files
from monai_llmboost.data.scans.scan import RefusedScan, Scan, SkippedFile

SEPARATE_PIECES = (
    "expected one patient, study and series in an even stack of slices, got several: correct the headers, or keep the "
    "slices of one"
)


@dataclass(frozen=True)
class Stack:
    """Slices of one volume, or of several volumes in time, laid out or refused.

    Args:
        slices: slices in the order of k, volume by volume; unsorted if refused.
        layouts: geometry of each volume; empty if refused.
        separated_by: tags that separated it from others of its series.
        warnings: oddities that do not prevent reading.
        refused: why the slices are not a volume; empty if they are.
        refused_kind: kind of that reason, see ``REFUSED_KINDS``.
    """

    slices: tuple[SliceHeader, ...]
    layouts: tuple[Layout, ...] = ()
    separated_by: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    refused: str = ""
    refused_kind: str = ""

    @property
    def digest(self) -> str:
        """Return eight hexadecimal digits that identify these slices, independent of their folder."""
        names = [(header.sop_uid or header.path.name, header.frame) for header in self.slices]
        if len(set(names)) < len(names):  # for example, if all files have one SOPInstanceUID
            return _digest(
                sorted(
                    repr((*name, header.instance_number, header.position)) for name, header in zip(names, self.slices)
                )
            )
        return _digest(sorted(names))

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files, in the order of their first slices."""
        return tuple(dict.fromkeys(header.path for header in self.slices))

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the voxels along (i, j, k), and the number of volumes if there are several; empty if refused."""
        if not self.layouts:
            return ()
        first, count = self.layouts[0].slices, len(self.layouts)
        return (first[0].columns, first[0].rows, len(first), *([count] if count > 1 else []))


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


def find_dicom_scans(
    files: Iterable[Path], name: Callable[[Path], str], min_slices: int = 2, num_workers: int = 0
) -> tuple[list[Scan], list[SkippedFile]]:
    """Find the scans among DICOM files, sorted by name, and the files that are not part of a scan.

    Args:
        files: DICOM files of any number of series, in any order.
        name: function from a file or folder to its name. A scan has the name of its file, or of the folder with all of
            its files, followed by ``_`` and the digest of its slices if several scans would share the name.
        min_slices: minimum number of slices of a scan.
        num_workers: processes that read headers; 0 reads them in this process.
    """
    stacks, skipped = find_dicom_stacks(files, min_slices, num_workers)
    bases = [_get_base(stack.files) for stack in stacks]
    shared = Counter(bases)
    scans = [
        _to_scan(stack, name(base) + (f"_{stack.digest}" if shared[base] > 1 else ""))
        for stack, base in zip(stacks, bases)
    ]
    return sorted(scans, key=lambda scan: scan.name), skipped


def find_dicom_stacks(
    files: Iterable[Path], min_slices: int = 2, num_workers: int = 0
) -> tuple[list[Stack], list[SkippedFile]]:
    """Find the stacks among DICOM files, and the files that have no slices or are copies of others.

    A stack has one patient, study, series, size, spacing and direction. Volumes at the same positions are separated by
    tags such as echo and b-value, or, for volumes in time, by the order of their instance numbers.
    """
    headers: list[tuple[SliceHeader, ...]] = []
    skipped: list[SkippedFile] = []
    with silence_pydicom():
        for found in read_files(read_header, sorted({Path(file) for file in files}), num_workers, "read DICOM headers"):
            if isinstance(found, SkippedFile):
                skipped.append(found)
            else:
                headers.append(found)
    kept, originals, copies = remove_copies(headers)
    skipped += copies
    series = group_by_series(header for file in kept for header in file)
    stacks = _refuse_unclear_owners(series, [list(_make_stacks(one, min_slices)) for one in series])
    stacks = _refuse_pieces(stacks)
    of_series = Counter(stack.slices[0].series_uid for stack in stacks)
    others = Counter(file.series_uid for file in skipped if file.series_uid)
    copied = Counter(originals.values())
    return [
        replace(stack, warnings=tuple(_describe_oddities(stack, of_series[uid], others[uid], copied)))
        for stack in stacks
        for uid in [stack.slices[0].series_uid]
    ], sorted(skipped, key=lambda file: file.path)


def _refuse_unclear_owners(series: Sequence[Series], stacks: Sequence[list[Stack]]) -> list[Stack]:
    """Merge stacks of several patients or studies with one SeriesInstanceUID into one refusal if any is refused."""
    owners: dict[str, list[int]] = {}
    for i, one in enumerate(series):
        if one.separated_by:
            owners.setdefault(one.slices[0].series_uid, []).append(i)
    found = list(stacks)
    for several in owners.values():
        refused = next((stack for i in several for stack in stacks[i] if stack.refused), None)
        if refused is not None and len(several) > 1:
            slices = tuple(header for i in several for header in series[i].slices)
            found[several[0]] = [Stack(slices, refused=refused.refused, refused_kind="unclear")]
            for i in several[1:]:
                found[i] = []
    return [stack for several in found for stack in several]


def _make_stacks(series: Series, min_slices: int) -> Iterator[Stack]:
    """Yield the stacks of a series, each laid out or refused."""
    if series.refused:
        yield Stack(series.slices, warnings=series.warnings, refused=series.refused, refused_kind="unclear")
        return
    if sizeless := [header for header in series.slices if not header.has_size]:  # it may be any slice of the series
        refused = f"{sizeless[0].problem} ({sizeless[0].path.name})"
        yield Stack(series.slices, warnings=series.warnings, refused=refused, refused_kind="damaged")
        return
    sizes: dict[tuple[int, int], list[SliceHeader]] = {}
    for header in series.slices:
        sizes.setdefault((header.rows, header.columns), []).append(header)
    for slices in sizes.values():
        planes = _group_by_plane(slices)
        stacks = [
            _lay_out(volumes, series, min_slices)
            for plane in planes
            for volumes in (
                separate_volumes(plane, series.lacks_uid) if plane[0].is_placed else [Volumes(tuple(plane))]
            )
        ]
        yield from _refuse_split_planes(stacks) if len(planes) > 1 else stacks


def _group_by_plane(slices: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Group slices of one size by direction and pixel spacing; into one group if the geometry of one is unknown."""
    if not all(header.is_placed for header in slices):
        return [sorted(slices, key=lambda header: header.is_placed)]
    return group_by_plane(slices)


def _lay_out(volumes: Volumes, series: Series, min_slices: int) -> Stack:
    slices = volumes.slices
    stack = Stack(
        slices,
        separated_by=(*series.separated_by, *volumes.separated_by),
        warnings=(*series.warnings, *volumes.warnings),
    )
    try:
        if bad := next((header for header in slices if header.problem), None):
            raise RefusedScan(f"{bad.problem} ({bad.path.name})", kind="damaged")
        if volumes.refused:
            raise RefusedScan(volumes.refused, kind="unclear")
        each = len(slices) // volumes.count
        layouts = [lay_out(slices[start : start + each], min_slices) for start in range(0, len(slices), each)]
        if any(np.abs(layout.affine - layouts[0].affine).max() > SAME_AFFINE_MM for layout in layouts):
            raise RefusedScan(
                f"expected {volumes.count} volumes at one place, got some that moved: keep one", kind="several-volumes"
            )
        _check_alike(slices)
    except RefusedScan as refused:
        return replace(stack, refused=str(refused), refused_kind=refused.kind)
    return replace(
        stack, slices=tuple(header for layout in layouts for header in layout.slices), layouts=tuple(layouts)
    )


def _check_alike(slices: Sequence[SliceHeader]) -> None:
    """Check that the values of slices have the same meaning and unit."""
    meanings: list[tuple[str, set[Any]]] = [
        ("modality", {header.modality for header in slices} - {""}),
        ("photometric interpretation", {header.inverted for header in slices}),
        ("sign (PixelRepresentation)", {header.signed for header in slices}),
        ("way of scaling (RescaleSlope)", {header.slope is None for header in slices}),
        ("number of bits (MONOCHROME1)", {header.bits_stored for header in slices if header.inverted}),
    ]
    meanings += [
        (f"unit ({keyword})", {header.units[i] for header in slices} - {""}) for i, keyword in enumerate(UNITS)
    ]
    for name, values in meanings:
        if len(values) > 1:
            raise RefusedScan(
                f"expected slices of one {name}, got several: keep the slices of one volume", kind="mixed"
            )


def _refuse_split_planes(stacks: list[Stack]) -> list[Stack]:
    """Return the stacks of one series, or one refused stack if they are one volume except for their directions."""
    slices = [header for stack in stacks for header in stack.slices]
    alike = all(header.is_placed and are_nearly_parallel(slices[0], header) for header in slices)
    if len(slices) < 3 or not alike or not is_evenly_spaced(slices):
        return stacks
    refused = (
        "expected slices of one direction and pixel spacing, got some that differ by more than a tenth of a pixel, in "
        "one even stack: export the series again"
    )
    return [Stack(tuple(slices), refused=refused, refused_kind="no-geometry")]


def _refuse_pieces(stacks: Sequence[Stack]) -> list[Stack]:
    """Merge stacks into one refusal if they are pieces of one evenly spaced stack although their headers differ."""
    found = list(stacks)
    for several in find_pieces([(stack.slices, stack.separated_by) for stack in stacks]):
        slices = tuple(header for i in several for header in stacks[i].slices)
        found[several[0]] = Stack(slices, refused=SEPARATE_PIECES, refused_kind="unclear")
        for i in several[1:]:
            found[i] = Stack(())
    return [stack for stack in found if stack.slices]


def _describe_oddities(stack: Stack, of_series: int, others: int, copied: Counter[Path]) -> Iterator[str]:
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


def _get_base(files: Sequence[Path]) -> Path:
    return files[0] if len(files) == 1 else Path(os.path.commonpath([file.parent for file in files]))


def _to_scan(stack: Stack, name: str) -> Scan:
    first = stack.slices[0]
    affine = stack.layouts[0].affine if stack.layouts else None
    return Scan(
        name=name,
        files=stack.files,
        format="DICOM",
        shape=stack.shape,
        spacing_mm=() if affine is None else tuple(float(size) for size in nibabel.affines.voxel_sizes(affine)),
        orientation="" if affine is None else "".join(nibabel.aff2axcodes(affine)),
        modality=first.modality,
        series_uid=first.series_uid,
        stack=stack.digest,
        warnings=stack.warnings,
        refused=stack.refused,
        refused_kind=stack.refused_kind,
    )
