# SPDX-License-Identifier: Apache-2.0
"""Frozen blocks cut out of LLM checkpoints; hub code and transformers are imported only if needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_llmboost.deprecated import moved
from monai_llmboost.lazy import lazy_names

if TYPE_CHECKING:
    from monai_llmboost.artifacts.signature import Signature
    from monai_llmboost.llm.block import DecoderBlock
    from monai_llmboost.llm.block_file import read_block, read_header, write_block
    from monai_llmboost.llm.donor.checkpoint import read_geometry, read_layers
    from monai_llmboost.llm.donor.families import NATIVE
    from monai_llmboost.llm.extract import extract_block
    from monai_llmboost.llm.frozen import SMALL_GEOMETRY, FrozenBlock, TrainedBlock, freeze_
    from monai_llmboost.llm.geometry import BlockGeometry
    from monai_llmboost.llm.layers import DonorLayers, Layer, random_layer
    from monai_llmboost.llm.quantise import QuantisedLayers, quantise_layers
    from monai_llmboost.llm.self_tests import self_test
    from monai_llmboost.llm.sources import block_width, frozen_block, load_block, random_block, trained_block
    from monai_llmboost.llm.stream_size import find_h_rms
else:
    _get, __dir__ = lazy_names(__name__)
    __getattr__ = moved(
        __name__,
        {
            "LowRankLinear": "monai_llmboost.adapters.LowRankLinear",
            "lora_block": "monai_llmboost.adapters.lora_block",
        },
        _get,
    )

__all__ = [
    "NATIVE",
    "SMALL_GEOMETRY",
    "BlockGeometry",
    "DecoderBlock",
    "DonorLayers",
    "FrozenBlock",
    "Layer",
    "QuantisedLayers",
    "Signature",
    "TrainedBlock",
    "block_width",
    "extract_block",
    "find_h_rms",
    "freeze_",
    "frozen_block",
    "load_block",
    "quantise_layers",
    "random_block",
    "random_layer",
    "read_block",
    "read_geometry",
    "read_header",
    "read_layers",
    "self_test",
    "trained_block",
    "write_block",
]
