# SPDX-License-Identifier: Apache-2.0
"""Users' own labelled scans: lists, their division into training, validation and test, and their data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_llmboost.lazy import lazy_names

if TYPE_CHECKING:
    from monai_llmboost.data.labelled.case import SPLITS, CaseList, LabelledCase, Source
    from monai_llmboost.data.labelled.dataset import LabelledScanDataset
    from monai_llmboost.data.labelled.divide import Division
    from monai_llmboost.data.labelled.lists.read import is_for_segmentation, read_cases
    from monai_llmboost.data.labelled.lists.rows import Columns, channel_names
    from monai_llmboost.data.labelled.loader import ScanLoader
    from monai_llmboost.data.labelled.scans import LabelledScans
    from monai_llmboost.data.labelled.segmented import SegmentedScans
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "SPLITS",
    "CaseList",
    "Columns",
    "Division",
    "LabelledCase",
    "LabelledScanDataset",
    "LabelledScans",
    "ScanLoader",
    "SegmentedScans",
    "Source",
    "channel_names",
    "is_for_segmentation",
    "read_cases",
]
