# SPDX-License-Identifier: Apache-2.0
"""DICOM files as scans: slices put into stacks, copies left out, and every stack one volume or refused."""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import nibabel
import numpy as np

from monai_llmboost.data.scans.dicom.geometry import Layout, lay_out, places
from monai_llmboost.data.scans.dicom.headers import read_header
from monai_llmboost.data.scans.dicom.pixels import same_content
from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.scan import RefusedScan, Scan, SkippedFile

# Slices belong to one stack if their directions, and relatively their pixel spacings, differ by no more.
ALIKE = 1e-4
# So many tags at most are taken together to tell volumes of a series apart, such as echo and time.
MOST_TAGS = 3
# A tag that leaves fewer slices than this together numbers slices rather than volumes.
FEWEST = 2


@dataclass(frozen=True)
class Stack:
    """Slices that belong together, laid out as one volume or refused.

    Args:
        slices: in the order of k, or as found if refused.
        layout: their geometry; None if refused.
        told_apart_by: tags by which it was separated from others at the same place.
        warnings: what is odd about it and does not keep it from being read.
        refused: why it is no volume; empty if it is.
    """

    slices: tuple[SliceHeader, ...]
    layout: Layout | None = None
    told_apart_by: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    refused: str = ""

    @property
    def digest(self) -> str:
        """Eight characters that stand for exactly these slices, wherever they are and whatever lies beside them."""
        parts = sorted((part.sop_uid or part.path.name, part.frame) for part in self.slices)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, in the order of their first slices."""
        return tuple(dict.fromkeys(part.path for part in self.slices))


def dicom_scans(
    files: Iterable[Path], name: Callable[[Path], str], min_slices: int = 2
) -> tuple[list[Scan], list[SkippedFile]]:
    """The scans among DICOM files, in the order of their names, and the files that are none.

    Args:
        files: DICOM files of any number of series, in any order.
        name: name of a file or folder. A scan is named by its file, or by the folder that holds all of its files; if
            several would get one name, followed by ``_`` and eight characters that stand for a scan's slices.
        min_slices: fewer are refused.
    """
    stacks, skipped = dicom_stacks(files, min_slices)
    bases = [_base(stack.files) for stack in stacks]
    shared = Counter(bases)
    scans = [
        _scan(stack, name(base) + (f"_{stack.digest}" if shared[base] > 1 else ""))
        for stack, base in zip(stacks, bases)
    ]
    return sorted(scans, key=lambda scan: scan.name), skipped


def dicom_stacks(files: Iterable[Path], min_slices: int = 2) -> tuple[list[Stack], list[SkippedFile]]:
    """The stacks among DICOM files, and the files that hold no slices or are copies of others.

    A stack has one series, frame of reference, size, spacing and direction. Where several volumes lie at one place
    they are told apart by echo, time, b-value and the like, never by the number of an image.
    """
    headers: list[tuple[SliceHeader, ...]] = []
    skipped: list[SkippedFile] = []
    for path in sorted({Path(file) for file in files}):
        found = read_header(path)
        if isinstance(found, SkippedFile):
            skipped.append(found)
        else:
            headers.append(found)
    originals = _copies(headers)
    skipped += [SkippedFile(copy, f"a copy of {original.name}") for copy, original in originals.items()]
    slices = [part for file in headers for part in file if part.path not in originals]
    stacks = [_laid_out(stack, min_slices) for group in _groups(slices) for stack in _volumes(group)]
    of_series = Counter(_series(stack.slices[0]) for stack in stacks)
    copied = Counter(originals.values())
    return [
        replace(stack, warnings=tuple(_oddities(stack, of_series[_series(stack.slices[0])], copied)))
        for stack in stacks
    ], sorted(skipped, key=lambda file: file.path)


def _copies(headers: Sequence[tuple[SliceHeader, ...]]) -> dict[Path, Path]:
    """Files that hold what another one holds under the same SOPInstanceUID: copy -> the one that is kept."""
    kept: dict[str, list[Path]] = {}
    copies = {}
    for path, uid in ((file[0].path, file[0].sop_uid) for file in headers):
        others = kept.setdefault(uid, []) if uid else []
        same = (one for one in others if filecmp.cmp(path, one, shallow=False) or same_content(path, one))
        original = next(same, None)
        if original is None:
            others.append(path)
        else:
            copies[path] = original
    return copies


def _series(part: SliceHeader) -> str:
    return part.series_uid or str(part.path.parent)


def _groups(slices: Iterable[SliceHeader]) -> Iterator[list[SliceHeader]]:
    """Slices of one series, size, spacing and direction."""
    exact: dict[tuple, list[list[SliceHeader]]] = {}
    for part in slices:
        key = (_series(part), part.frame_of_reference, part.rows, part.columns, _placed(part))
        groups = exact.setdefault(key, [])
        group = next((group for group in groups if not _placed(part) or _alike(part, group[0])), None)
        if group is None:
            groups.append([part])
        else:
            group.append(part)
    for groups in exact.values():
        yield from groups


def _placed(part: SliceHeader) -> bool:
    return part.position is not None and part.orientation is not None and part.pixel_spacing is not None


def _alike(one: SliceHeader, other: SliceHeader) -> bool:
    directions, spacings = (
        [np.array(getattr(part, attribute)) for part in (one, other)] for attribute in ("orientation", "pixel_spacing")
    )
    turned = np.abs(directions[0] - directions[1]).max() > ALIKE
    scaled = (np.abs(spacings[0] - spacings[1]) > ALIKE * np.abs(spacings[1])).any()
    return not turned and not scaled


def _volumes(group: list[SliceHeader]) -> Iterator[Stack]:
    """The volumes of a group that lie at one place, if the fewest tags tell them apart; else the whole of it."""
    number = places(group) if _placed(group[0]) else np.arange(len(group))
    if len(set(number)) == len(group):
        yield Stack(tuple(group))
        return
    tags = [dict(part.telling) for part in group]
    telling = [tag for tag in dict.fromkeys(tag for of in tags for tag in of) if len({of.get(tag) for of in tags}) > 1]
    for count in range(1, MOST_TAGS + 1):
        splits = []
        for chosen in combinations(telling, count):
            parts: dict[tuple, list[int]] = {}
            for i, of in enumerate(tags):
                parts.setdefault(tuple(of.get(tag) for tag in chosen), []).append(i)
            if all(len(part) >= FEWEST and len(set(number[part])) == len(part) for part in parts.values()):
                splits.append((chosen, parts))
        if splits:
            chosen, parts = min(splits, key=lambda split: len(split[1]))
            for part in parts.values():
                yield Stack(tuple(group[i] for i in part), told_apart_by=chosen)
            return
    yield Stack(tuple(group))


def _laid_out(stack: Stack, min_slices: int) -> Stack:
    try:
        bad = next((part for part in stack.slices if part.problem), None)
        if bad:
            raise RefusedScan(f"{bad.problem} ({bad.path.name})")
        for words, values in (
            ("modality", {part.modality for part in stack.slices}),
            ("photometric interpretation", {part.inverted for part in stack.slices}),
        ):
            if len(values) > 1:
                raise RefusedScan(f"expected slices of one {words}, got several: keep the slices of one volume")
        layout = lay_out(stack.slices, min_slices)
    except RefusedScan as refused:
        return replace(stack, refused=str(refused))
    return replace(stack, slices=layout.slices, layout=layout)


def _oddities(stack: Stack, of_series: int, copied: Counter[Path]) -> Iterator[str]:
    if of_series > 1:
        by = f", told apart by {' and '.join(stack.told_apart_by)}" if stack.told_apart_by else ""
        yield f"one of {of_series} stacks of its series{by}"
    if copies := sum(copied[path] for path in stack.files):
        yield f"copies of its files were left out: {copies}"
    if stack.slices[0].inverted:
        yield "stored with low values bright (MONOCHROME1): mirrored, so that bright is high"
    if stack.layout and stack.layout.tilt_deg:
        yield f"its slices are tilted by {stack.layout.tilt_deg:.1f} degrees (gantry tilt)"


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
    )
    if stack.layout is None:
        return scan
    affine = stack.layout.affine
    return replace(
        scan,
        shape=(first.columns, first.rows, len(stack.slices)),
        spacing_mm=tuple(float(size) for size in nibabel.affines.voxel_sizes(affine)),
        orientation="".join(nibabel.aff2axcodes(affine)),
    )
