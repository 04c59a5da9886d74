# SPDX-License-Identifier: Apache-2.0
"""Data: labelled sets (MedMNIST3D, phantoms), scans (NIfTI, DICOM), and batches on the device."""

from monai_llmboost.data.augment import RandAffineBatchd
from monai_llmboost.data.batches import BatchedVolumes
from monai_llmboost.data.datasets.medmnist import medmnist3d_file, medmnist3d_names
from monai_llmboost.data.datasets.named import LabelledVolumes, check_source, class_names, reads_files
from monai_llmboost.data.datasets.phantoms import PHANTOM_CLASSES, phantom_arrays
from monai_llmboost.data.scans import (
    BoundedNiftiReader,
    CheckVolumed,
    DicomSeriesReader,
    RefusedScan,
    Scan,
    ScanReader,
    SkippedFile,
    find_scans,
)

__all__ = [
    "PHANTOM_CLASSES",
    "BatchedVolumes",
    "BoundedNiftiReader",
    "CheckVolumed",
    "DicomSeriesReader",
    "LabelledVolumes",
    "RandAffineBatchd",
    "RefusedScan",
    "Scan",
    "ScanReader",
    "SkippedFile",
    "check_source",
    "class_names",
    "find_scans",
    "medmnist3d_file",
    "medmnist3d_names",
    "phantom_arrays",
    "reads_files",
]
