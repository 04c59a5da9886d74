# SPDX-License-Identifier: Apache-2.0
"""Frozen features of volumes: no weight of them is trained, so each volume is embedded once."""

from monai_llmboost.networks.features.choose import frozen_features
from monai_llmboost.networks.features.convolutions import UntrainedConvolutions
from monai_llmboost.networks.features.embedding import Embedding
from monai_llmboost.networks.features.encoder import EncoderFeatures
from monai_llmboost.networks.features.slices import SliceFeatures

__all__ = ["Embedding", "EncoderFeatures", "SliceFeatures", "UntrainedConvolutions", "frozen_features"]
