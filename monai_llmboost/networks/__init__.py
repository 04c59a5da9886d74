# SPDX-License-Identifier: Apache-2.0
"""Networks with boosters, which map volumes to logits of cases or voxels, and boosters in any other network."""

from monai_llmboost.networks.classifier import scan_classifier
from monai_llmboost.networks.encoders import EncoderClassifier
from monai_llmboost.networks.feature_classifier import FeatureClassifier
from monai_llmboost.networks.insertion import boost, load_plain_weights, unboost
from monai_llmboost.networks.parallel import ignore_frozen_in_ddp, parallel_if_distributed, parallel_network
from monai_llmboost.networks.pretrained import load_encoder_weights
from monai_llmboost.networks.published import from_published
from monai_llmboost.networks.resnet3d import ResNet3D
from monai_llmboost.networks.segmenter import scan_segmenter
from monai_llmboost.networks.unet import planned_unet
from monai_llmboost.networks.vit3d import ViT3D
from monai_llmboost.networks.vivit import ViViT

__all__ = [
    "EncoderClassifier",
    "FeatureClassifier",
    "ResNet3D",
    "ViT3D",
    "ViViT",
    "boost",
    "from_published",
    "ignore_frozen_in_ddp",
    "load_encoder_weights",
    "load_plain_weights",
    "parallel_if_distributed",
    "parallel_network",
    "planned_unet",
    "scan_classifier",
    "scan_segmenter",
    "unboost",
]
