# SPDX-License-Identifier: Apache-2.0
"""Predictions for a folder of scans, with saliency maps and a report page.

Names are imported on first use, so that errors in command-line options are reported without delay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_llmboost.lazy import lazy_names

if TYPE_CHECKING:
    from monai_llmboost.inference.batches import PendingBatches
    from monai_llmboost.inference.cases import ScanCases
    from monai_llmboost.inference.dicom.objects import DicomMasks, DicomObjects
    from monai_llmboost.inference.figures import figures_of, weights_digest
    from monai_llmboost.inference.handler import Predictions
    from monai_llmboost.inference.hub import load_from_hub, push_to_hub
    from monai_llmboost.inference.inferer import HalvingInferer
    from monai_llmboost.inference.journal import Journal
    from monai_llmboost.inference.maps.grid import on_input_grid
    from monai_llmboost.inference.maps.relevance import relevance_maps
    from monai_llmboost.inference.maps.saliency import SaliencyMaps
    from monai_llmboost.inference.masks.own_grid import on_own_grid, to_own_grid
    from monai_llmboost.inference.masks.structure_masks import StructureMasks
    from monai_llmboost.inference.masks.transform import ToOwnGridd
    from monai_llmboost.inference.masks.windows import WindowInferer
    from monai_llmboost.inference.page.report import write_report
    from monai_llmboost.inference.provenance import run_facts, run_provenance
    from monai_llmboost.inference.trained_network import TrainedNetwork, load_network
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "DicomMasks",
    "DicomObjects",
    "HalvingInferer",
    "Journal",
    "PendingBatches",
    "Predictions",
    "SaliencyMaps",
    "ScanCases",
    "StructureMasks",
    "ToOwnGridd",
    "TrainedNetwork",
    "WindowInferer",
    "figures_of",
    "load_from_hub",
    "load_network",
    "on_input_grid",
    "on_own_grid",
    "push_to_hub",
    "relevance_maps",
    "run_facts",
    "run_provenance",
    "to_own_grid",
    "weights_digest",
    "write_report",
]
