# SPDX-License-Identifier: Apache-2.0
"""A folder of scans -> predictions, maps of what the network looked at, a page to read."""

from monai_llmboost.inference.cases import PendingBatches, ScanCases
from monai_llmboost.inference.dicom.objects import DicomObjects
from monai_llmboost.inference.figures import figures_of, weights_digest
from monai_llmboost.inference.inferer import HalvingInferer
from monai_llmboost.inference.journal import Journal
from monai_llmboost.inference.maps.saliency import SaliencyMaps, on_input_grid, relevance_maps
from monai_llmboost.inference.page.report import write_report
from monai_llmboost.inference.predictions import Predictions
from monai_llmboost.inference.provenance import run_facts, run_provenance

__all__ = [
    "DicomObjects",
    "HalvingInferer",
    "Journal",
    "PendingBatches",
    "Predictions",
    "SaliencyMaps",
    "ScanCases",
    "figures_of",
    "on_input_grid",
    "relevance_maps",
    "run_facts",
    "run_provenance",
    "weights_digest",
    "write_report",
]
