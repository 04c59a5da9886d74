# SPDX-License-Identifier: Apache-2.0
"""Which images are of one series: of one patient, study and series, as far as their headers say so.

A SeriesInstanceUID alone does not tell: anonymisers give one to several patients, or a new one to every file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from monai_llmboost.data.scans.dicom.geometry import are_nearly_parallel, is_evenly_spaced, number_positions
from monai_llmboost.data.scans.dicom.slices import Identity, SliceHeader

# Fields that no two images of one series differ in, and what they are called in messages.
STRONG = {
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "study_uid": "StudyInstanceUID",
    "series_number": "SeriesNumber",
}
# From this many files on, a value that is new in each of them says nothing of which belong together.
MANY = 3


@dataclass(frozen=True)
class Series:
    """Images that belong together by their identity, in any number of volumes.

    Args:
        slices: in any order.
        separated_by: by what they were separated from others under the same UID.
        lacks_uid: whether they have no SeriesInstanceUID that says that they are one series.
        warnings: what is odd about their identity.
        refused: why it is not clear whom they belong to; empty if it is.
    """

    slices: tuple[SliceHeader, ...]
    separated_by: tuple[str, ...] = ()
    lacks_uid: bool = False
    warnings: tuple[str, ...] = ()
    refused: str = ""


def group_by_series(slices: Iterable[SliceHeader]) -> list[Series]:
    """The series among slices; each slice is of exactly one."""
    named: dict[str, list[SliceHeader]] = {}
    lacks_uid: list[SliceHeader] = []
    for part in slices:
        if part.series_uid:
            named.setdefault(part.series_uid, []).append(part)
        else:
            lacks_uid.append(part)
    pools = [Series(tuple(pool)) for pool in _with_new_uids(named)]
    pools = _with_blank_uids(pools, lacks_uid)
    return [series for pool in pools for series in _of_one_identity(pool)]


def _with_new_uids(named: dict[str, list[SliceHeader]]) -> list[list[SliceHeader]]:
    """Slices by SeriesInstanceUID; those of single files that have one each but agree in all else together."""
    pools: dict[tuple, list[SliceHeader]] = {}
    for uid, pool in named.items():
        first = pool[0]
        alone = len(pool) == 1 and first.is_placed and bool(first.identity.series_number)
        key = (replace(first.identity, series_uid="", frame_of_reference=""), first.modality, first.rows, first.columns)
        folder = "" if first.identity.study_uid else str(first.path.parent)
        pools.setdefault((*key, folder) if alone else (uid,), []).extend(pool)
    found: list[list[SliceHeader]] = []
    for pool in pools.values():
        apart = len({part.series_uid for part in pool}) > 1
        parallel = all(are_nearly_parallel(pool[0], part) for part in pool) if apart else True
        if apart and (len(pool) < MANY or not parallel or len(set(number_positions(pool))) < len(pool)):
            found += [[part] for part in pool]
        else:
            found.append(pool)
    return found


def _with_blank_uids(pools: list[Series], lacks_uid: Sequence[SliceHeader]) -> list[Series]:
    """The series, each with slices that have no SeriesInstanceUID but otherwise fit it alone; the rest by identity."""
    near: dict[Path, set[int]] = {}
    for i, pool in enumerate(pools):
        for part in pool.slices:
            near.setdefault(part.path.parent, set()).add(i)
    values = [_values(pool.slices) for pool in pools] if lacks_uid else []
    fitting: dict[int, list[SliceHeader]] = {}
    others: dict[tuple, list[SliceHeader]] = {}
    for part in lacks_uid:
        fits = list(
            islice((i for i in near.get(part.path.parent, ()) if _fits(part, pools[i].slices[0], values[i])), 2)
        )
        if len(fits) == 1:
            fitting.setdefault(fits[0], []).append(part)
        else:
            folder = "" if part.is_placed else str(part.path.parent)
            others.setdefault((replace(part.identity, frame_of_reference=""), folder), []).append(part)
    found = list(pools)
    for i, blank in fitting.items():
        together = (*pools[i].slices, *blank)
        if (
            not is_evenly_spaced(together)
            and len(blank) > 1
            and is_evenly_spaced(blank)
            and is_evenly_spaced(pools[i].slices)
        ):
            found.append(_nameless(blank))
        else:
            found[i] = Series(together, warnings=(f"some of its files have no SeriesInstanceUID: {len(blank)}",))
    return found + [_nameless(pool) for pool in others.values()]


def find_contradictions(one: Identity, other: Identity) -> list[str]:
    """The fields in which two identities both say something, and not the same."""
    values = ((field, getattr(one, field), getattr(other, field)) for field in (*STRONG, "series_uid"))
    return [field for field, first, second in values if first and second and first != second]


def _nameless(slices: Sequence[SliceHeader]) -> Series:
    return Series(tuple(slices), lacks_uid=True, warnings=("it has no SeriesInstanceUID",))


def _values(slices: Sequence[SliceHeader]) -> dict[str, set[str]]:
    """What the slices of a series say of whom they belong to."""
    return {field: {value for part in slices if (value := getattr(part.identity, field))} for field in STRONG}


def _fits(part: SliceHeader, first: SliceHeader, values: dict[str, set[str]]) -> bool:
    """Whether a slice contradicts nothing that the slices of a series say."""
    if (part.rows, part.columns) != (first.rows, first.columns) or not (part.is_placed and first.is_placed):
        return False
    agree = all(
        not getattr(part.identity, field) or own <= {getattr(part.identity, field)} for field, own in values.items()
    )
    return agree and part.modality in (first.modality, "") and are_nearly_parallel(part, first)


def _of_one_identity(series: Series) -> Iterator[Series]:
    """The series, or its parts by patient, study and number; refused as a whole where slices cannot be assigned."""
    files: dict[Path, Identity] = {part.path: part.identity for part in series.slices}
    single = len(files) == len(series.slices)  # a file of several slices is more than nothing by itself
    warnings = list(series.warnings)
    new_uids = len({identity.series_uid for identity in files.values()} - {""})
    if new_uids > 1:
        warnings.append(f"each of its {new_uids} files has a SeriesInstanceUID of its own: taken as one series")
    varying = []
    for field, keyword in STRONG.items():
        values = [value for identity in files.values() if (value := getattr(identity, field))]
        if len(set(values)) < 2:
            continue
        if single and len(set(values)) == len(values) >= MANY and not field.startswith("patient"):
            warnings.append(f"each of its {len(values)} files has a {keyword} of its own: taken as one series")
            continue
        varying.append(field)
    if not varying:
        yield replace(series, warnings=tuple(warnings))
        return
    parts: dict[tuple[str, ...] | None, list[SliceHeader]] = {}
    keys = {path: tuple(getattr(identity, field) for field in varying) for path, identity in files.items()}
    whole = {key for key in keys.values() if all(key)}
    for part in series.slices:
        own = keys[part.path]
        fits = [own] if own in whole else [key for key in whole if all(a in ("", b) for a, b in zip(own, key))]
        parts.setdefault(fits[0] if len(fits) == 1 else None, []).append(part)
    words = " and ".join(STRONG[field] for field in varying)
    if None in parts or any(len(part) == 1 for part in parts.values()):
        refused = (
            f"expected images of one {words} under one SeriesInstanceUID, got {len(whole) or 'several'} among "
            f"{len(files)} files: separate them, by patient and study"
        )
        yield Series(series.slices, warnings=tuple(warnings), refused=refused)
        return
    for slices in parts.values():
        separated_by = tuple(STRONG[field] for field in varying)
        yield Series(tuple(slices), separated_by, series.lacks_uid, tuple(warnings))
