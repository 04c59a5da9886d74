# SPDX-License-Identifier: Apache-2.0
"""Users' own labelled scans: lists, their division into training, validation and test, and their data sets."""

from monai_llmboost.data.labelled.case import SPLITS, CaseList, LabelledCase, Source
from monai_llmboost.data.labelled.dataset import LabelledScanDataset
from monai_llmboost.data.labelled.divide import Division
from monai_llmboost.data.labelled.lists.read import is_for_segmentation, read_cases
from monai_llmboost.data.labelled.lists.rows import Columns, channel_names
from monai_llmboost.data.labelled.loader import ScanLoader
from monai_llmboost.data.labelled.scans import LabelledScans
from monai_llmboost.data.labelled.segmented import SegmentedScans

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
