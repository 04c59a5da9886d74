# SPDX-License-Identifier: Apache-2.0
"""Volumes in the slices of one plane, and functions shared by both methods of separation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

from monai_llmboost.data.scans.dicom.geometry import is_evenly_spaced
from monai_llmboost.data.scans.dicom.slices import SliceHeader

# A tag that leaves fewer slices than this in a group numbers slices rather than volumes.
MIN_SLICES = 2


@dataclass(frozen=True)
class Volumes:
    """One volume, several volumes in time, or slices that cannot be separated.

    Args:
        slices: slices; volume by volume if there are several.
        count: number of volumes in time, each with the same number of slices.
        separated_by: tags that separated it from others at the same positions.
        warnings: oddities.
        refused: why the slices are ambiguous; empty if they are not.
    """

    slices: tuple[SliceHeader, ...]
    count: int = 1
    separated_by: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    refused: str = ""


def refuse_unclear(plane: Sequence[SliceHeader], what: str) -> Volumes:
    """Return slices as refused, because they are ``what`` instead of the slices of one scan."""
    refused = f"expected the slices of one scan, got {what}: keep those of one scan, or correct the headers"
    return Volumes(tuple(plane), refused=refused)


def group_by_folder(plane: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Group slices by the folder of their files."""
    folders: dict[Path, list[SliceHeader]] = {}
    for header in plane:
        folders.setdefault(header.path.parent, []).append(header)
    return list(folders.values())


def separate_by_folder(plane: Sequence[SliceHeader], same_positions: bool = False) -> list[Volumes]:
    """Return one volume for each folder if each is evenly spaced and instance numbers agree; else an empty list.

    Args:
        plane: the slices.
        same_positions: whether folders have slices at the same positions; numbers may then also be in blocks or absent.
    """
    folders = group_by_folder(plane)
    if len(folders) < 2 or not all(len(slices) >= MIN_SLICES and is_evenly_spaced(slices) for slices in folders):
        return []
    if not _do_numbers_agree(folders, same_positions):
        return []
    return [Volumes(tuple(slices), separated_by=("folder",)) for slices in folders]


def _do_numbers_agree(folders: Sequence[list[SliceHeader]], same_positions: bool) -> bool:
    """Return whether instance numbers start again in each folder; at the same positions, also in blocks or absent."""
    sets = [{header.instance_number for header in slices if header.instance_number is not None} for slices in folders]
    numbered = all(len(numbers) == len(slices) for numbers, slices in zip(sets, folders))
    restart = numbered and all(2 * len(a & b) >= min(len(a), len(b)) for a, b in combinations(sets, 2))
    in_blocks = numbered and all(max(a) < min(b) for a, b in pairwise(sorted(sets, key=min)))
    unnumbered = all(len(numbers) < 2 for numbers in sets)
    return restart or (same_positions and (in_blocks or unnumbered))
