# SPDX-License-Identifier: Apache-2.0
"""Groups of slices by series: slices whose headers show one patient, study and series.

SeriesInstanceUID is not enough: anonymisers give one UID to several patients, or a new UID to every file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from monai_llmboost.data.scans.dicom.geometry import are_nearly_parallel, is_evenly_spaced, number_positions
from monai_llmboost.data.scans.dicom.slices import Identity, SliceHeader

# Fields that are equal in all images of one series, and their names in messages.
SERIES_FIELDS = {
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "study_uid": "StudyInstanceUID",
    "series_number": "SeriesNumber",
}
# From this number of files on, a value that differs in every file is ignored.
MIN_FILES = 3


@dataclass(frozen=True)
class Series:
    """Slices of one patient, study and series, in any number of volumes.

    Args:
        slices: slices in any order.
        separated_by: keywords that separated them from others with the same SeriesInstanceUID.
        lacks_uid: whether they have no SeriesInstanceUID.
        warnings: oddities of their identity.
        refused: why the patient or study is ambiguous; empty if it is not.
    """

    slices: tuple[SliceHeader, ...]
    separated_by: tuple[str, ...] = ()
    lacks_uid: bool = False
    warnings: tuple[str, ...] = ()
    refused: str = ""


def group_by_series(slices: Iterable[SliceHeader]) -> list[Series]:
    """Group slices by series; each slice is in exactly one group."""
    named: dict[str, list[SliceHeader]] = {}
    without_uid: list[SliceHeader] = []
    for header in slices:
        if header.series_uid:
            named.setdefault(header.series_uid, []).append(header)
        else:
            without_uid.append(header)
    pools = [Series(tuple(pool)) for pool in _group_by_uid(named)]
    pools = _assign_blank_uids(pools, without_uid)
    return [series for pool in pools for series in _separate_by_identity(pool)]


def _group_by_uid(named: dict[str, list[SliceHeader]]) -> list[list[SliceHeader]]:
    """Group slices by SeriesInstanceUID; files with different UIDs that agree in everything else form one group."""
    pools: dict[tuple, list[SliceHeader]] = {}
    for uid, pool in named.items():
        first = pool[0]
        alone = len(pool) == 1 and first.is_placed and bool(first.identity.series_number)
        key = (replace(first.identity, series_uid="", frame_of_reference=""), first.modality, first.rows, first.columns)
        folder = "" if first.identity.study_uid else str(first.path.parent)
        pools.setdefault((*key, folder) if alone else (uid,), []).extend(pool)
    found: list[list[SliceHeader]] = []
    for pool in pools.values():
        apart = len({header.series_uid for header in pool}) > 1
        parallel = all(are_nearly_parallel(pool[0], header) for header in pool) if apart else True
        if apart and (len(pool) < MIN_FILES or not parallel or len(set(number_positions(pool))) < len(pool)):
            found += [[header] for header in pool]
        else:
            found.append(pool)
    return found


def _assign_blank_uids(pools: list[Series], without_uid: Sequence[SliceHeader]) -> list[Series]:
    """Add slices without SeriesInstanceUID to the only series that they fit; group the others by identity."""
    near = _list_pools_by_folder(pools)
    values = [_collect_values(pool.slices) for pool in pools] if without_uid else []
    fitting: dict[int, list[SliceHeader]] = {}
    others: dict[tuple, list[SliceHeader]] = {}
    for header in without_uid:
        fits = list(
            islice((i for i in near.get(header.path.parent, ()) if _fits(header, pools[i].slices[0], values[i])), 2)
        )
        if len(fits) == 1:
            fitting.setdefault(fits[0], []).append(header)
        else:
            folder = "" if header.is_placed else str(header.path.parent)
            others.setdefault((replace(header.identity, frame_of_reference=""), folder), []).append(header)
    found = list(pools)
    for i, blank in fitting.items():
        together = (*pools[i].slices, *blank)
        both_even = len(blank) > 1 and is_evenly_spaced(blank) and is_evenly_spaced(pools[i].slices)
        if both_even and not is_evenly_spaced(together):
            found.append(_make_series_without_uid(blank))
        else:
            found[i] = Series(together, warnings=(f"some of its files have no SeriesInstanceUID: {len(blank)}",))
    return found + [_make_series_without_uid(pool) for pool in others.values()]


def _list_pools_by_folder(pools: Sequence[Series]) -> dict[Path, set[int]]:
    """Return the indices of the series with files in each folder."""
    near: dict[Path, set[int]] = {}
    for i, pool in enumerate(pools):
        for header in pool.slices:
            near.setdefault(header.path.parent, set()).add(i)
    return near


def find_contradictions(one: Identity, other: Identity) -> list[str]:
    """Return the fields in which two identities differ, not counting empty ones."""
    values = ((field, getattr(one, field), getattr(other, field)) for field in (*SERIES_FIELDS, "series_uid"))
    return [field for field, first, second in values if first and second and first != second]


def _make_series_without_uid(slices: Sequence[SliceHeader]) -> Series:
    return Series(tuple(slices), lacks_uid=True, warnings=("it has no SeriesInstanceUID",))


def _collect_values(slices: Sequence[SliceHeader]) -> dict[str, set[str]]:
    """Return the values of the fields of identity that occur in the slices of a series."""
    return {
        field: {value for header in slices if (value := getattr(header.identity, field))} for field in SERIES_FIELDS
    }


def _fits(header: SliceHeader, first: SliceHeader, values: dict[str, set[str]]) -> bool:
    """Return whether a slice agrees with the slices of a series in geometry, modality and identity."""
    if (header.rows, header.columns) != (first.rows, first.columns) or not (header.is_placed and first.is_placed):
        return False
    agree = all(
        not getattr(header.identity, field) or own <= {getattr(header.identity, field)} for field, own in values.items()
    )
    return agree and header.modality in (first.modality, "") and are_nearly_parallel(header, first)


def _separate_by_identity(series: Series) -> Iterator[Series]:
    """Yield a series, or its groups by patient, study and number; refused as a whole if a slice fits no group."""
    files: dict[Path, Identity] = {header.path: header.identity for header in series.slices}
    varying, own_warnings = _find_varying_fields(files, single=len(files) == len(series.slices))
    warnings = (*series.warnings, *own_warnings)
    if not varying:
        yield replace(series, warnings=warnings)
        return
    groups = _group_by_fields(series.slices, files, varying)
    keywords = " and ".join(SERIES_FIELDS[field] for field in varying)
    if None in groups or any(len(group) == 1 for group in groups.values()):
        refused = (
            f"expected images of one {keywords} under one SeriesInstanceUID, got "
            f"{len(groups.keys() - {None}) or 'several'} among {len(files)} files: separate them, by patient and study"
        )
        yield Series(series.slices, warnings=warnings, refused=refused)
        return
    for slices in groups.values():
        separated_by = tuple(SERIES_FIELDS[field] for field in varying)
        yield Series(tuple(slices), separated_by, series.lacks_uid, warnings)


def _find_varying_fields(files: dict[Path, Identity], single: bool) -> tuple[list[str], list[str]]:
    """Return the fields that separate files, and warnings for values of which each file has its own.

    Args:
        files: the identity of each file.
        single: whether each file is one slice.
    """
    varying, warnings = [], []
    new_uids = len({identity.series_uid for identity in files.values()} - {""})
    if new_uids > 1:
        warnings.append(f"each of its {new_uids} files has a SeriesInstanceUID of its own: taken as one series")
    for field, keyword in SERIES_FIELDS.items():
        values = [value for identity in files.values() if (value := getattr(identity, field))]
        if len(set(values)) < 2:
            continue
        if single and len(set(values)) == len(values) >= MIN_FILES and not field.startswith("patient"):
            warnings.append(f"each of its {len(values)} files has a {keyword} of its own: taken as one series")
            continue
        varying.append(field)
    return varying, warnings


def _group_by_fields(
    slices: Sequence[SliceHeader], files: dict[Path, Identity], varying: Sequence[str]
) -> dict[tuple[str, ...] | None, list[SliceHeader]]:
    """Group slices by the values of fields; a slice that lacks values and fits no or several groups is under None."""
    groups: dict[tuple[str, ...] | None, list[SliceHeader]] = {}
    keys = {path: tuple(getattr(identity, field) for field in varying) for path, identity in files.items()}
    whole = {key for key in keys.values() if all(key)}
    for header in slices:
        own = keys[header.path]
        fits = [own] if own in whole else [key for key in whole if all(a in ("", b) for a, b in zip(own, key))]
        groups.setdefault(fits[0] if len(fits) == 1 else None, []).append(header)
    return groups
