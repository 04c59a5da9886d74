# SPDX-License-Identifier: Apache-2.0
"""Scans as the cases of a run: each read or refused on its own, and the batches that are still to be predicted."""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset, ImageReader, MetaTensor
from torch.utils.data import Sampler

from monai_llmboost.artifacts.digests import files_digest, text_digest
from monai_llmboost.data import RefusedScan, Scan, SkippedFile, find_scans
from monai_llmboost.data.scans.dicom.reader import get_reader_paths
from monai_llmboost.data.scans.scan import get_refused_kind, to_refusal
from monai_llmboost.inference.hidden import HiddenNames, hashed
from monai_llmboost.inference.journal import Journal


class ScanCases(Dataset):
    """Scans found on disk as items, one for each that can be read as far as its header tells.

    An item is ``{"image": (channels, S0, S1, S2) float32, "index": int, "refused": reason or "", "refused_kind": short
    word or "", "may_pass": whether the reason may be gone the next time, "warnings": sentences by line, "seconds":
    float, "input_sha256": str, "affine": (4, 4) of the image, "input_affine": (4, 4) of the volume as it was read,
    "input_shape": (3,)}``; affines map voxels to RAS+ mm in float64, and are NaN where the transform leaves none. A
    scan that cannot be read rightly becomes an item with its reason and an empty image, so that one bad scan among many
    costs one case and not the run.

    Args:
        where: a folder, a file, a pattern or a list file, or several of them; see
            :func:`monai_llmboost.data.find_scans`.
        transform: MONAI transform from ``{"image": path or paths}`` to ``{"image": (channels, S0, S1, S2)}``.
        image_shape: shape of the transformed images.
        reader: what reads the volumes in ``transform``, to read one again for a picture.
        follow_links: also follow links to folders, and links that lead out of the folder.
        leave_out: folders that are not searched, such as the one that is written into.
        salt: a secret word; if given, cases are named by their salted hashes instead of their paths, and no path and no
            UID is kept.
        only: names of cases, or patterns of names such as ``"site-1/*"``, of which one must fit; ``None`` takes all.
            With ``salt`` the name before and the one after count.

    Raises:
        FileNotFoundError: nothing found.
        ValueError: an empty salt; a name or pattern that fits no case.
    """

    def __init__(
        self,
        where: str | Path | Sequence[str | Path],
        transform: Callable,
        image_shape: Sequence[int],
        reader: ImageReader | None = None,
        follow_links: bool = False,
        leave_out: Sequence[str | Path] | str | Path = (),
        salt: str | None = None,
        only: Sequence[str] | str | None = None,
    ) -> None:
        if not isinstance(follow_links, bool):  # the word "false" on a command line would be true
            raise ValueError(f"expected follow_links to be True or False, got {follow_links!r}")
        if salt is not None and not str(salt).strip():
            raise ValueError("expected a secret word as salt, got an empty one: give one that nobody can guess")
        scans, skipped = _found(where, follow_links, leave_out, hide=salt is not None)
        self.hidden = None if salt is None else HiddenNames(str(salt), scans, skipped)
        if only is not None:
            scans = _chosen(scans, _several(only), salt)
        checks = [getattr(reader, "check_header", None), _shape_check(transform)]
        scans = [_checked(scan, checks) for scan in scans]
        if self.hidden is not None:
            scans = list(map(self.hidden.scan, scans))
            skipped = list(map(self.hidden.skipped, skipped))
        self.scans: list[Scan] = [scan for scan in scans if not scan.refused]
        self.refused: list[Scan] = [scan for scan in scans if scan.refused]
        self.skipped: list[SkippedFile] = skipped
        self.image_shape = tuple(image_shape)
        self.reader = reader
        super().__init__(self.scans, transform)

    @property
    def hides_names(self) -> bool:
        """Whether cases are named by hashes, and no file by its name."""
        return self.hidden is not None

    def reason(self, error: BaseException) -> str:
        """Return why something went wrong, as :func:`reason_of`, without names of files if they are hidden."""
        return reason_of(error, None if self.hidden is None else self.hidden.text)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        """One case, read or refused."""
        start = time.perf_counter()
        scan = self.scans[index]
        item: dict[str, Any] = {
            "image": torch.zeros(self.image_shape),
            "index": index,
            "refused": "",
            "refused_kind": "",
            "may_pass": False,
            "warnings": "\n".join(scan.warnings),
            "input_sha256": "",
            "affine": torch.full((4, 4), torch.nan, dtype=torch.float64),
            "input_affine": torch.full((4, 4), torch.nan, dtype=torch.float64),
            "input_shape": torch.zeros(3, dtype=torch.int64),
        }
        try:
            item["input_sha256"] = _digest_of(scan)
            image = self.transform({"image": _source(scan)})["image"]
            if tuple(image.shape) != self.image_shape:
                wrong = f"expected the transforms to give {self.image_shape}, got {tuple(image.shape)}"
                raise RefusedScan(wrong, kind="transforms")
            if not torch.isfinite(torch.as_tensor(image)).all():
                wrong = "expected finite voxels behind the transforms, got NaN or infinite ones"
                raise RefusedScan(wrong, kind="not-finite")
            if isinstance(image, MetaTensor):
                warnings = [*scan.warnings, *image.meta.get("warnings", "").splitlines()]
                item["warnings"] = "\n".join(dict.fromkeys(warnings))
                item["affine"] = torch.as_tensor(image.affine, dtype=torch.float64).cpu()
                item["input_affine"] = torch.as_tensor(image.meta["original_affine"], dtype=torch.float64).cpu()
                item["input_shape"] = torch.as_tensor(np.asarray(image.meta["spatial_shape"])[:3], dtype=torch.int64)
                image = image.as_tensor()
            item["image"] = torch.as_tensor(image, dtype=torch.float32)
        except Exception as error:  # whatever a reader or a transform raises concerns this case alone
            item |= {"refused": self.reason(error), **_kind_of(error)}
        if self.hidden is not None:
            item["warnings"] = self.hidden.text(item["warnings"])
        return {**item, "seconds": time.perf_counter() - start}

    def volume(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A case's voxels on its own grid, (i, j, k) float32, read again, and their affine to RAS+ mm.

        Raises:
            ValueError: no reader was given.
            RefusedScan: the scan is refused, or cannot be read.
        """
        if self.reader is None:
            raise ValueError("expected a reader to read a volume again, got none: give ScanCases its reader")
        try:
            array, meta = self.reader.get_data(self.reader.read(_source(self.scans[index])))
        except (OSError, MemoryError) as error:
            raise to_refusal(error) from error
        return np.asarray(array, dtype=np.float32), np.asarray(meta["affine"])


class PendingBatches(Sampler):
    """Batches of a run that are not yet in its journal, as lists of indices, for ``DataLoader(batch_sampler=...)``.

    The cut into batches depends on the cases alone, and a batch of which any case is missing is predicted as a whole:
    so a resumed run, and one of several processes, gives exactly the numbers of one that ran through.

    Args:
        cases: the cases.
        journal: what is done; a case counts as done if it was predicted from the same bytes, and its maps and DICOM
            objects are still there.
        batch_size: cases in a batch.
        rank: which of the processes this is: it takes every ``world_size``-th batch.
        world_size: number of processes.

    Raises:
        ValueError: a wrong batch size.
    """

    def __init__(self, cases: ScanCases, journal: Journal, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"expected batch_size to be a whole number from 1, got {batch_size!r}: give --batch_size")
        super().__init__()
        done = journal.rows()
        missing = [not _is_done(scan, done, journal) for scan in cases.scans]
        batches = [range(start, min(start + batch_size, len(missing))) for start in range(0, len(missing), batch_size)]
        self.batches = [list(batch) for batch in batches[rank::world_size] if any(missing[i] for i in batch)]
        self.num_done = len(missing) - sum(missing)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _is_done(scan: Scan, done: dict[str, dict[str, Any]], journal: Journal) -> bool:
    row = done.get(scan.name)
    # A refusal in a journal of earlier versions does not say whether it may pass.
    if row is None or row.get("may_pass", bool(row.get("refused"))):
        return False
    try:
        return row["input_sha256"] == _digest_of(scan) and journal.has_files(row)
    except OSError:
        return False  # it will be refused, with the reason, when it is read


def _found(where: Any, follow_links: bool, leave_out: Any, hide: bool) -> tuple[list[Scan], list[SkippedFile]]:
    """Return the scans and the other files; where nothing is found, ``hide`` says so without a file's name."""
    try:
        return find_scans(_several(where), follow_links, [Path(path).absolute() for path in _several(leave_out)])
    except FileNotFoundError:
        if not hide:
            raise
        raise FileNotFoundError("no NIfTI or DICOM scans at one of the inputs: see --dry-run without --salt") from None


def _chosen(scans: Sequence[Scan], patterns: Sequence[str], salt: str | None) -> list[Scan]:
    """Return the scans whose name, or salted name, is one of the patterns or fits one.

    Raises:
        ValueError: a pattern that fits none.
    """
    names = [{scan.name} if salt is None else {scan.name, hashed(scan.name, str(salt))} for scan in scans]
    chosen: set[int] = set()
    for pattern in patterns:
        fits = re.compile(fnmatch.translate(pattern)).match
        found = {number for number, of in enumerate(names) if pattern in of or any(map(fits, of))}
        if not found:
            near = "" if salt else "".join(f", such as {scan.name}" for scan in scans[:1])
            raise ValueError(f"expected --only to fit a case, {pattern!r} fits none of {len(scans)}{near}: correct it")
        chosen |= found
    return [scan for number, scan in enumerate(scans) if number in chosen]


def _shape_check(transform: Any) -> Callable[[Scan], None] | None:
    """Return what the first transform that can check a shape does with that of a scan."""
    check = next(
        filter(None, (getattr(one, "check_shape", None) for one in getattr(transform, "transforms", ()))), None
    )
    return None if check is None else lambda scan: check(scan.shape[:3]) if scan.shape else None


def _checked(scan: Scan, checks: Sequence[Callable[[Scan], None] | None]) -> Scan:
    """Return a scan, refused if its header alone says that reading it would refuse it."""
    try:
        for check in checks:
            if check is not None and not scan.refused:
                check(scan)
    except RefusedScan as error:
        return replace(scan, refused=reason_of(error), refused_kind=get_refused_kind(error))
    return scan


def _digest_of(scan: Scan) -> str:
    """Of the bytes of its files, and of which volume in them it is."""
    digest = files_digest(scan.files)
    return text_digest([digest, scan.stack]) if scan.stack else digest


def _several(where: Any) -> list[Any]:
    return [where] if isinstance(where, (str, Path)) else list(where)


def _source(scan: Scan) -> Any:
    """What the reader is given for a scan."""
    return str(scan.files[0]) if scan.format == "NIfTI" else get_reader_paths(scan)


def _cause(error: BaseException) -> BaseException:
    """Return what MONAI wraps ("applying transform ...")."""
    while error.__cause__ is not None and str(error).startswith("applying transform"):
        error = error.__cause__
    return error


def _kind_of(error: BaseException) -> dict[str, Any]:
    """Return the kind of a refusal, and whether it may pass, as fields of an item."""
    error = _cause(error)
    kind = "memory" if isinstance(error, torch.OutOfMemoryError) else get_refused_kind(error, "transforms")
    return {"refused_kind": kind, "may_pass": may_pass(error)}


def may_pass(error: BaseException) -> bool:
    """Whether what went wrong may be gone when the same is tried again: no memory, or an error of the system.

    A scan that is refused for such a reason is not remembered as done, so that the same command tries it again.
    """
    error = _cause(error)
    if isinstance(error, RefusedScan):
        return error.may_pass
    if isinstance(error, OSError):
        return error.errno is not None  # a library's own, such as gzip's of a damaged file, have none
    # torch has no class of its own for a CPU that has no memory left.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def reason_of(error: BaseException, hide: Callable[[str], str] | None = None) -> str:
    """The message at the root of what MONAI wraps ("applying transform ..."), on one line, ``hide`` applied to it."""
    error = _cause(error)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)  # a path may name a patient
    text = " ".join((text or type(error).__name__).split())
    return (text if hide is None else hide(text))[:300]
