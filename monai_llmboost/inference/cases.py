# SPDX-License-Identifier: Apache-2.0
"""Scans as the cases of a run: found, selected, checked by their headers, then read or refused one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from operator import ge
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset, ImageReader, MetaTensor
from monai.transforms import Compose, LoadImaged

from monai_llmboost.artifacts.digests import files_digest, text_digest
from monai_llmboost.data import LoadScansd, RefusedScan, Scan, SkippedFile
from monai_llmboost.data.labelled.listed import (
    ListedScan,
    first_channel,
    first_channel_index,
    item_of,
    reader_source,
)
from monai_llmboost.data.labelled.lists.rows import Columns
from monai_llmboost.data.scans.scan import to_refusal
from monai_llmboost.inference.case import Case
from monai_llmboost.inference.case_search import CaseSearch, with_parts
from monai_llmboost.inference.hidden import HiddenNames
from monai_llmboost.inference.reasons import kind_of, may_pass, reason_of


class ScanCases(Dataset):
    """Data set of scans on disk, with one item for each scan that its header does not exclude.

    An item contains the fields of :class:`monai_llmboost.inference.case.Case`. A scan that cannot be read correctly
    becomes an item with the reason and an empty image, so that one bad scan does not stop the run.

    Args:
        where: a folder, a file, a pattern or a list file, or several of them; see
            :func:`monai_llmboost.data.find_scans`. ``None`` searches for nothing: :meth:`take` gives the scans.
        transform: MONAI transform from ``{"image": path or paths}`` to ``{"image": (channels, S0, S1, S2)}``.
        image_shape: shape of the transformed images.
        reader: the reader in ``transform``; also used to read a volume again for a picture.
        follow_links: also follow links to folders, and links that lead out of the folder.
        leave_out: folders that are not searched, such as the output folder.
        salt: a secret text; if given, cases are named by their salted hashes instead of their paths, and no path and no
            UID is kept.
        columns: columns of a list of cases; a list of several channels, or with a mask or a point to crop around, needs
            them. ``None``: lists have one scan for each case.
        only: names of cases, or patterns of names such as ``"site-1/*"``; cases that match one are taken, ``None``
            takes all. With ``salt``, both the original and the hashed name can match.
        channels: channels of a scan, if the transform gives an image of others, such as features.
        any_size: images may be larger than ``image_shape`` along (S0, S1, S2), as for sliding windows.
        num_workers: processes that read headers in a search; 0 reads them in this process.

    Raises:
        FileNotFoundError: no scans were found.
        ValueError: an empty salt; a name or pattern that matches no case.

    Example:
        >>> cases = ScanCases("scans", preprocessing, (1, 28, 28, 28))  # doctest: +SKIP
        >>> cases[0]["image"].shape, cases[0]["refused"]  # doctest: +SKIP
        (torch.Size([1, 28, 28, 28]), '')
    """

    def __init__(
        self,
        where: str | Path | Sequence[str | Path] | None,
        transform: Callable,
        image_shape: Sequence[int],
        reader: ImageReader | None = None,
        follow_links: bool = False,
        leave_out: Sequence[str | Path] | str | Path = (),
        salt: str | None = None,
        only: Sequence[str] | str | None = None,
        columns: Columns | None = None,
        channels: int | None = None,
        any_size: bool = False,
        num_workers: int = 0,
    ) -> None:
        shape_checks = (getattr(one, "check_shape", None) for one in getattr(transform, "transforms", ()))
        search = CaseSearch(
            where, channels or image_shape[0], follow_links, leave_out, salt, only, columns, num_workers
        )
        found = search.run(getattr(reader, "check_header", None), next(filter(None, shape_checks), None))
        self.refused: list[Scan] = found.refused
        self.skipped: list[SkippedFile] = found.skipped
        self.hidden = found.hidden
        self.image_shape = tuple(image_shape)
        self.any_size = any_size
        self.reader = reader
        self._kept: Collection[str] = ()
        self._most_bytes = 0
        super().__init__((), transform)
        self._set(found.scans)

    def take(self, scans: Sequence[Scan]) -> None:
        """Replace the scans by some that were found and checked elsewhere; names that must be hidden are hidden.

        A refused scan keeps its place in a batch: it is not read, and its case is refused.
        """
        if self.hidden is not None:
            self.hidden = HiddenNames(self.hidden.salt, with_parts(scans), [])
        self._set(list(scans))

    def _set(self, scans: list[Scan]) -> None:
        self.scans: list[Scan] = scans
        self.data = scans
        self.indices = {scan.name: index for index, scan in enumerate(scans)}

    @property
    def hides_names(self) -> bool:
        """Whether cases are named by hashes and file names are hidden."""
        return self.hidden is not None

    def reason(self, error: BaseException) -> str:
        """Return the reason of an error, see :func:`reason_of`, without file names if they are hidden."""
        return reason_of(error, None if self.hidden is None else self.hidden.text)

    def keep_volumes(self, cases: Collection[str], most_bytes: int) -> None:
        """Keep the original volumes of these cases, by name, in addition to their images.

        Volumes larger than ``most_bytes`` in float32 are not kept.
        """
        self._kept, self._most_bytes = frozenset(cases), most_bytes

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        """Return one case, read or refused, as an item."""
        return self.read(index).to_item()

    def read(self, index: int) -> Case:
        """Return one case, read or refused."""
        start = time.perf_counter()
        scan = self.scans[index]
        case = Case(torch.zeros(self.image_shape), index, warnings=list(scan.warnings))
        if scan.refused:
            case.refused, case.refused_kind = scan.refused, scan.refused_kind
            return case
        try:
            case.input_sha256 = scan_digest(scan)
            image, case.voxels = self._load(scan)
            self._check(image)
            if isinstance(image, MetaTensor):
                case.warnings = list(dict.fromkeys([*scan.warnings, *image.meta.get("warnings", "").splitlines()]))
                case.affine = torch.as_tensor(image.affine, dtype=torch.float64).cpu()
                case.input_affine = torch.as_tensor(image.meta["original_affine"], dtype=torch.float64).cpu()
                case.input_shape = torch.as_tensor(np.asarray(image.meta["spatial_shape"])[:3], dtype=torch.int64)
                image = image.as_tensor()
            case.image = torch.as_tensor(image, dtype=torch.float32)
        except Exception as error:  # any error of a reader or a transform concerns only this case
            case.refused, case.refused_kind, case.may_pass = self.reason(error), kind_of(error), may_pass(error)
            case.voxels = b""
        if self.hidden is not None:
            case.warnings = list(map(self.hidden.text, case.warnings))
        case.seconds = time.perf_counter() - start
        return case

    def _load(self, scan: Scan) -> tuple[Any, bytes]:
        """Return the image, and the volume before other transforms if it is to be kept."""
        item, transform = item_of(scan), self.transform
        if scan.name not in self._kept or not _begins_with_loading(transform):
            return transform(item)["image"], b""
        loaded = transform(item, end=1)
        volume = np.asarray(loaded["image"], dtype=np.float32)
        volume = volume[first_channel_index(scan)] if volume.ndim == 4 else volume  # as `volume` reads it again
        fits = volume.ndim == 3 and volume.nbytes <= self._most_bytes
        voxels = volume.tobytes(order="F") if fits else b""
        return transform(loaded, start=1)["image"], voxels

    def _check(self, image: Any) -> None:
        shape = tuple(image.shape)
        if not (self._is_larger(shape) if self.any_size else shape == self.image_shape):
            wanted = f"{self.image_shape} or larger" if self.any_size else f"{self.image_shape}"
            raise RefusedScan(
                f"the transforms give an image of shape {shape}, not {wanted}: correct them", kind="transforms"
            )
        if not torch.isfinite(torch.as_tensor(image)).all():
            raise RefusedScan("voxels are NaN or infinite after the transforms: correct them", kind="not-finite")

    def _is_larger(self, shape: tuple[int, ...]) -> bool:
        """Return whether an image has the wanted channels and at least the wanted size."""
        (channels, *sides), (wanted, *least) = shape, self.image_shape
        return channels == wanted and len(sides) == len(least) and all(map(ge, sides, least))

    def volume(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the original volume of a case again.

        Returns:
            Voxels (i, j, k) float32, and their affine to RAS+ mm.

        Raises:
            ValueError: no reader was given.
            RefusedScan: the scan cannot be read, or is refused.
        """
        if self.reader is None:
            raise ValueError("there is no reader to read a volume again: give ScanCases its reader")
        try:
            array, meta = self.reader.get_data(self.reader.read(reader_source(first_channel(self.scans[index]))))
        except (OSError, MemoryError) as error:
            raise to_refusal(error) from error
        return np.asarray(array, dtype=np.float32), np.asarray(meta["affine"])


def scan_digest(scan: Scan) -> str:
    """Return the digest of the bytes of a scan's files, combined with the stack if there is one.

    The digest of a listed case depends on the order of its channels, its mask, and the point to crop around, too.
    """
    if isinstance(scan, ListedScan) and (len(scan.channels) > 1 or scan.mask or scan.centre_mm):
        parts = ["" if part is None else scan_digest(part) for part in (*scan.channels, scan.mask)]
        return text_digest([parts, scan.centre_mm])
    digest = files_digest(scan.files)
    return text_digest([digest, scan.stack]) if scan.stack else digest


def _begins_with_loading(transform: Any) -> bool:
    """Return whether the first transform reads the volume."""
    first = next(iter(transform.transforms), None) if isinstance(transform, Compose) else None
    return isinstance(first, (LoadImaged, LoadScansd))
