# SPDX-License-Identifier: Apache-2.0
"""Adapters: trained updates of a frozen block's weights."""

from monai_llmboost.adapters.adapter import Adapter, adapt_
from monai_llmboost.adapters.lora import LowRankLinear, lora_block

__all__ = ["Adapter", "LowRankLinear", "adapt_", "lora_block"]
