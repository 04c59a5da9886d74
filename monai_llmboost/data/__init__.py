# SPDX-License-Identifier: Apache-2.0
"""Data: named sets (MedMNIST3D, phantoms), users' labelled scans, NIfTI and DICOM, and batches on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_llmboost.lazy import lazy_names

if TYPE_CHECKING:
    from monai_llmboost.data.augment import RandAffineBatchd
    from monai_llmboost.data.batches import BatchedVolumes
    from monai_llmboost.data.datasets.medmnist import medmnist3d_file, medmnist3d_names
    from monai_llmboost.data.datasets.named import LabelledVolumes, check_source, class_names, reads_files
    from monai_llmboost.data.datasets.phantoms import PHANTOM_CLASSES, phantom_arrays
    from monai_llmboost.data.labelled import (
        CaseList,
        Columns,
        Division,
        LabelledCase,
        LabelledScanDataset,
        LabelledScans,
        ScanLoader,
        SegmentedScans,
        channel_names,
        read_cases,
    )
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
    from monai_llmboost.data.transforms import (
        CropPatchd,
        CropScand,
        EmbedScand,
        LoadLabelMapd,
        LoadScansd,
        OrientScand,
        ResampleLabelsd,
        ResampleScand,
        ScaleScand,
        WarnIfUnusuald,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "PHANTOM_CLASSES",
    "BatchedVolumes",
    "BoundedNiftiReader",
    "CaseList",
    "CheckVolumed",
    "Columns",
    "CropPatchd",
    "CropScand",
    "DicomSeriesReader",
    "Division",
    "EmbedScand",
    "LabelledCase",
    "LabelledScanDataset",
    "LabelledScans",
    "LabelledVolumes",
    "LoadLabelMapd",
    "LoadScansd",
    "OrientScand",
    "RandAffineBatchd",
    "RefusedScan",
    "ResampleLabelsd",
    "ResampleScand",
    "ScaleScand",
    "Scan",
    "ScanLoader",
    "ScanReader",
    "SegmentedScans",
    "SkippedFile",
    "WarnIfUnusuald",
    "channel_names",
    "check_source",
    "class_names",
    "find_scans",
    "medmnist3d_file",
    "medmnist3d_names",
    "phantom_arrays",
    "read_cases",
    "reads_files",
]
