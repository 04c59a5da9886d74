# SPDX-License-Identifier: Apache-2.0
"""Transforms from the files of a case to the input of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_llmboost.lazy import lazy_names

if TYPE_CHECKING:
    from monai_llmboost.data.transforms.crop import CROPS, CropScand
    from monai_llmboost.data.transforms.embed import EmbedScand
    from monai_llmboost.data.transforms.expected import WarnIfUnusuald
    from monai_llmboost.data.transforms.intensity import SCHEMES, ScaleScand, percentiles_of
    from monai_llmboost.data.transforms.label_map import LoadLabelMapd
    from monai_llmboost.data.transforms.load import LoadScansd
    from monai_llmboost.data.transforms.orient import OrientScand
    from monai_llmboost.data.transforms.patch import CropPatchd
    from monai_llmboost.data.transforms.resample import ResampleLabelsd, ResampleScand
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "CROPS",
    "SCHEMES",
    "CropPatchd",
    "CropScand",
    "EmbedScand",
    "LoadLabelMapd",
    "LoadScansd",
    "OrientScand",
    "ResampleLabelsd",
    "ResampleScand",
    "ScaleScand",
    "WarnIfUnusuald",
    "percentiles_of",
]
