# SPDX-License-Identifier: Apache-2.0
"""One reader for whatever a scan is: it looks at the content and hands over."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import ensure_tuple

from monai_llmboost.data.scans.dicom.headers import looks_like_dicom
from monai_llmboost.data.scans.dicom.reader import DicomSeriesReader, get_reader_paths
from monai_llmboost.data.scans.kinds import DICOM_SUFFIXES, identify_kind, read_first_bytes
from monai_llmboost.data.scans.nifti.headers import MAX_VOXELS
from monai_llmboost.data.scans.nifti.reader import BoundedNiftiReader, to_refusal
from monai_llmboost.data.scans.scan import RefusedScan, Scan, choose_volume


class ScanReader(ImageReader):
    """Reads one scan, NIfTI or DICOM, as (i, j, k) float32, or refuses it; for ``LoadImaged(reader=...)``.

    Takes a file, a folder with one DICOM series, the files of one series, or ``"path::SeriesInstanceUID"``.

    Args:
        volume: which volume of a NIfTI file or DICOM series that holds several, from 0.
        max_voxels: largest NIfTI volume that is read; 4 bytes of memory each.
        min_slices: fewest slices of a DICOM series.
        gantry_tilt: what is done with a tilted DICOM series, see :class:`DicomSeriesReader`.

    Raises:
        ValueError: a wrong option.
        RefusedScan: from ``get_data``, with what was expected and what came.
    """

    def __init__(
        self,
        volume: int | None = None,
        max_voxels: int = MAX_VOXELS,
        min_slices: int = 2,
        gantry_tilt: str = "resample",
    ) -> None:
        super().__init__()
        self.nifti = BoundedNiftiReader(volume, max_voxels)
        self.dicom = DicomSeriesReader(min_slices, gantry_tilt, volume)

    def verify_suffix(self, filename: Sequence[str | os.PathLike] | str | os.PathLike) -> bool:
        """Whether it is for this reader, which tells by the content what it is."""
        return True

    def check_header(self, scan: Scan) -> None:
        """Refuse a scan as reading it would, as far as its header tells what finding it did not ask.

        Raises:
            RefusedScan: the scan would be refused.
        """
        choose_volume(self.nifti.volume, scan.shape)
        if scan.format == "DICOM" and self.dicom.is_stricter_than_finding:
            read = self.dicom.read(get_reader_paths(scan))
            if isinstance(read, RefusedScan):
                raise read

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Any:
        """The volume, or the refusal; for ``get_data`` only."""
        try:
            files = ensure_tuple(data)
            if not files:
                raise RefusedScan(
                    "expected the files of a scan, got none: give a path, or the paths of one series", kind="incomplete"
                )
            reader = self.dicom if _is_dicom(files) else self.nifti
            return reader, reader.read(files)
        except Exception as error:  # LoadImage would swallow it and try other readers
            return self.nifti, to_refusal(error)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Voxels (i, j, k) float32, and their meta: affine (voxel -> RAS+ mm), shape, and ``"warnings"``, a line each.

        Raises:
            RefusedScan: the scan cannot be read rightly.
        """
        reader, read = img
        return reader.get_data(read)


def _is_dicom(files: Sequence[Any]) -> bool:
    """Whether it is for the reader of DICOM: a folder, a series by its UID, or a file whose content says so."""
    first = Path(files[0])
    if "::" in str(files[0]) and not first.exists():
        return True
    if first.is_dir():
        return True
    head, packed = read_first_bytes(first)
    kind = identify_kind(head)
    if kind == "NIfTI":
        return False
    return (kind == "DICOM" and not packed) or looks_like_dicom(first) or first.name.lower().endswith(DICOM_SUFFIXES)
