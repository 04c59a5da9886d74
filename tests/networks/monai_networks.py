# SPDX-License-Identifier: Apache-2.0
"""MONAI's networks with known joints, small, in 2D and 3D: a row for each line of `networks.joints.JOINTS`."""

from collections.abc import Callable
from dataclasses import dataclass

import monai.networks.nets as nets
import torch
from torch import nn

UNETS = {"in_channels": 1, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2)}
SMALL_VIT = {"hidden_size": 48, "mlp_dim": 96, "num_heads": 4}


@dataclass(frozen=True)
class Row:
    """A network of `make(spatial_dims)` for images of `size`, its joints, and the form and channels of the deepest."""

    make: Callable[[int], nn.Module]
    size: int
    deepest: str
    channels: int
    form: str = "map"
    pooled: str = ""
    pooled_channels: int = 0
    unused: str = ""  # plain parameters that get no gradient, by the beginning of their names


ROWS = {
    "AttentionUnet": Row(lambda d: nets.AttentionUnet(d, **UNETS), 16, "model.1.submodule.1.submodule", 32),
    "BasicUNet": Row(lambda d: nets.BasicUNet(d, 1, 2, features=(8, 8, 8, 16, 32, 8)), 32, "down_4", 32),
    "DenseNet": Row(
        lambda d: nets.DenseNet(d, 1, 2, init_features=8, growth_rate=4, block_config=(1, 1, 1)), 32, "features", 9,
        pooled="class_layers.flatten", pooled_channels=9,
    ),
    "DynUNet": Row(
        lambda d: nets.DynUNet(d, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[8, 16, 32]), 16, "bottleneck", 32
    ),
    "EfficientNet": Row(
        lambda d: nets.EfficientNetBN("efficientnet-b0", False, spatial_dims=d, in_channels=1, num_classes=2),
        64, "_bn1", 1280, pooled="_avg_pooling", pooled_channels=1280,
    ),
    "ResNet": Row(
        lambda d: nets.ResNet("basic", [1] * 4, [8, 16, 32, 64], spatial_dims=d, n_input_channels=1, num_classes=2),
        64, "layer4", 64, pooled="avgpool", pooled_channels=64,
    ),
    "SegResNet": Row(lambda d: nets.SegResNet(d, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1)), 16,
                     "down_layers.2", 32),
    "SegResNetDS": Row(lambda d: nets.SegResNetDS(d, 8, 1, 2, blocks_down=(1, 1, 1)), 16,
                       "encoder.layers.2.blocks", 32),
    "SENet": Row(
        lambda d: nets.SENet(d, 1, "se_resnet_bottleneck", [1] * 4, 1, 16, inplanes=64, input_3x3=False, num_classes=2),
        64, "layer4", 2048, pooled="adaptive_avg_pool", pooled_channels=2048,
    ),
    "SwinUNETR": Row(
        lambda d: nets.SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), window_size=2, spatial_dims=d), 64,
        "encoder10", 192,
    ),
    "UNet": Row(lambda d: nets.UNet(d, **UNETS), 16, "model.1.submodule.1.submodule", 32),
    "UNETR": Row(
        lambda d: nets.UNETR(1, 2, (32,) * d, feature_size=4, spatial_dims=d, **SMALL_VIT), 32, "vit.norm", 48,
        "tokens", unused="vit.",
    ),
    "ViT": Row(
        lambda d: nets.ViT(1, (16,) * d, (8,) * d, num_layers=2, classification=True, spatial_dims=d, **SMALL_VIT), 16,
        "norm", 48, "tokens", pooled="classification_head", pooled_channels=48, unused="blocks.",
    ),
    "VNet": Row(lambda d: nets.VNet(d, 1, 2, dropout_prob_down=0.0, dropout_prob_up=(0.0, 0.0)), 32, "down_tr256", 256),
}  # fmt: skip


def build(name, dims=2, seed=0):
    """Return a plain network of one seed, and two images for it."""
    torch.manual_seed(seed)
    row = ROWS[name]
    network = row.make(dims).eval()
    return network, torch.rand(2, 1, *[row.size] * dims, generator=torch.Generator().manual_seed(1))


def first(output):
    """Return the first tensor of a network's output; some return more than logits."""
    return output if isinstance(output, torch.Tensor) else first(output[0])
