# SPDX-License-Identifier: Apache-2.0
"""Users' own labelled scans: lists, their division into training, validation and test, and their data sets."""

from monai_llmboost.data.labelled.case import SPLITS, CaseList, LabelledCase, Source
from monai_llmboost.data.labelled.divide import Division
from monai_llmboost.data.labelled.read import read_cases
from monai_llmboost.data.labelled.tables import Columns

__all__ = ["SPLITS", "CaseList", "Columns", "Division", "LabelledCase", "Source", "read_cases"]
