# SPDX-License-Identifier: Apache-2.0
"""A reader for NIfTI and DICOM, which selects the format by the content of files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import ensure_tuple

from monai_llmboost.data.scans.dicom.headers import looks_like_dicom
from monai_llmboost.data.scans.dicom.paths import get_reader_paths
from monai_llmboost.data.scans.dicom.reader import DicomSeriesReader
from monai_llmboost.data.scans.kinds import DICOM_SUFFIXES, identify_kind, read_first_bytes
from monai_llmboost.data.scans.nifti.reader import BoundedNiftiReader
from monai_llmboost.data.scans.scan import MAX_VOXELS, RefusedScan, Scan, choose_volume, to_refusal


class ScanReader(ImageReader):
    """Reader of one NIfTI or DICOM scan as (i, j, k) float32, or refusal; for ``LoadImaged(reader=...)``.

    Takes a file, a folder with one DICOM series, the files of one series, or ``"path::SeriesInstanceUID"``.

    Args:
        volume: index of the volume in a NIfTI file or DICOM series with several volumes.
        max_voxels: maximum number of voxels of a NIfTI volume; each takes 4 bytes of memory.
        min_slices: minimum number of slices of a DICOM series.
        gantry_tilt: what to do with a tilted DICOM series, see :class:`DicomSeriesReader`.

    Raises:
        ValueError: an invalid option.
        RefusedScan: from ``get_data``, with what was expected and what was found.

    Example:
        >>> import tempfile, nibabel, numpy as np
        >>> path = f"{tempfile.mkdtemp()}/scan.nii"
        >>> nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4)), path)
        >>> from monai.transforms import LoadImaged
        >>> LoadImaged("image", reader="monai_llmboost.data.ScanReader")({"image": path})["image"].shape
        torch.Size([4, 5, 6])
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

    def for_label_maps(self) -> ScanReader:
        """Return a reader with the same options but ``volume``, which chooses one of the image's volumes."""
        return ScanReader(None, self.nifti.max_voxels, self.dicom.min_slices, self.dicom.gantry_tilt)

    def verify_suffix(self, filename: Sequence[str | os.PathLike] | str | os.PathLike) -> bool:
        """Return True, because the reader checks the content of files instead of their names."""
        return True

    def check_header(self, scan: Scan) -> None:
        """Apply the checks of reading that need only the header and were not applied in the search.

        Raises:
            RefusedScan: reading would refuse the scan.
        """
        choose_volume(self.nifti.volume, scan.shape)
        if scan.format == "DICOM" and self.dicom.is_stricter_than_finding:
            result = self.dicom.read(get_reader_paths(scan))
            if isinstance(result, RefusedScan):
                raise result

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Any:
        """Return the volume, or the refusal, for ``get_data``."""
        try:
            files = ensure_tuple(data)
            if not files:
                raise RefusedScan(
                    "expected the files of a scan, got none: give a path, or the paths of one series", kind="incomplete"
                )
            reader = self.dicom if _is_dicom(files) else self.nifti
            return reader, reader.read(files)
        except Exception as error:  # LoadImage would ignore it and try other readers
            return self.nifti, to_refusal(error)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Return voxels (i, j, k) float32, and meta: affine (voxel -> RAS+ mm), shape, ``"warnings"`` one per line.

        Raises:
            RefusedScan: the scan cannot be read correctly.
        """
        reader, result = img
        return reader.get_data(result)


def _is_dicom(files: Sequence[Any]) -> bool:
    """Return whether the input is for the DICOM reader: a folder, a series by its UID, or DICOM files by content."""
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
