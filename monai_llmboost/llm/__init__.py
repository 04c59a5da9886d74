# SPDX-License-Identifier: Apache-2.0
"""LLM checkpoint -> frozen block. Imports torch and safetensors only, hub code when a hub id is asked for."""

from monai_llmboost.llm.block import DecoderBlock
from monai_llmboost.llm.checkpoint import DonorLayer, read_geometry, read_layer
from monai_llmboost.llm.extract import block_width, extract_block, frozen_block, load_block, random_block, read_header
from monai_llmboost.llm.frozen import SMALL_GEOMETRY, FrozenBlock, freeze_
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.signature import Signature

__all__ = [
    "SMALL_GEOMETRY",
    "BlockGeometry",
    "DecoderBlock",
    "DonorLayer",
    "FrozenBlock",
    "Signature",
    "block_width",
    "extract_block",
    "freeze_",
    "frozen_block",
    "load_block",
    "random_block",
    "read_geometry",
    "read_header",
    "read_layer",
]
