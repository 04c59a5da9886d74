# SPDX-License-Identifier: Apache-2.0
"""Scans on disk: each is found, checked, and read or refused with a reason, independently of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_llmboost.lazy import lazy_names

if TYPE_CHECKING:
    from monai_llmboost.data.scans.checks import CheckVolumed
    from monai_llmboost.data.scans.dicom.reader import DicomSeriesReader
    from monai_llmboost.data.scans.find import find_scans
    from monai_llmboost.data.scans.nifti.reader import BoundedNiftiReader
    from monai_llmboost.data.scans.reader import ScanReader
    from monai_llmboost.data.scans.scan import RefusedScan, Scan, SkippedFile
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "BoundedNiftiReader",
    "CheckVolumed",
    "DicomSeriesReader",
    "RefusedScan",
    "Scan",
    "ScanReader",
    "SkippedFile",
    "find_scans",
]
