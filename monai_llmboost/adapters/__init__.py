# SPDX-License-Identifier: Apache-2.0
"""Frozen block -> block with a trained update of its weights."""

from monai_llmboost.adapters.lora import LowRankLinear, lora_block

__all__ = ["LowRankLinear", "lora_block"]
