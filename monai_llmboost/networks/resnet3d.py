# SPDX-License-Identifier: Apache-2.0
"""ResNet3D: MONAI's residual network of 3D convolutions, with a booster on its pooled features or its last map."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from monai.networks.nets import ResNet
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from monai_llmboost.arguments import check_whole
from monai_llmboost.networks.boosted_network import BoostedNetwork
from monai_llmboost.networks.class_names import ClassNames, Preprocessing, TrainingCases

# The parts of MONAI's network that are used.
PARTS = ("conv1", "bn1", "act", "layer1", "layer2", "layer3", "layer4")
# Strides of the four stages, as in MONAI's network.
STAGE_STRIDES = (1, 2, 2, 2)


class ResNet3D(BoostedNetwork):
    """A small 3D residual network from volumes to class logits: MONAI's ``ResNet`` of basic blocks, without max pool.

    A 3x3x3 convolution, four stages of blocks, the mean over the last feature map, the booster, dropout and a linear
    head. Each stage after the first halves the resolution and doubles the features. ``features`` has the names of the
    weights of MONAI's ``ResNet``.

    Args:
        in_channels: channels of the volume.
        num_classes: number of logits.
        img_size: size of the volume along its three axes, voxels; one number for a cube.
        hidden_size: features of the last stage, C; a multiple of 8, because the first stage has C / 8.
        num_blocks: residual blocks of each stage, of two convolutions each.
        stem_stride: stride of the first convolution, voxels; half of it costs 8 times as much.
        dropout_rate: dropout before the head, 0 to below 1.
        booster: maps tokens (B, N, C) to tokens (B, N, C), such as :class:`monai_llmboost.boosters.ResidualBooster`;
            ``None`` for the plain network.
        class_names: names of the classes in the order of the logits, as in :class:`monai_llmboost.networks.ViT3D`.
        position: position of the booster. ``"head"``: on the pooled features as one token, (B, 1, C), so the block's
            attention returns the value of that token. ``"last"``: on the voxels of the last feature map, (B, N, C),
            before they are pooled.

    Raises:
        ValueError: an unknown position, or a volume whose last feature map would have a single voxel, which batch
            normalization cannot use in a batch of one case; in ``forward``, a volume of another size.

    Example:
        >>> from monai_llmboost.boosters import ResidualBooster
        >>> from monai_llmboost.llm import load_block
        >>> network = ResNet3D(1, 2, img_size=28, booster=ResidualBooster(128, load_block("embedded")))
        >>> network(torch.zeros(4, 1, 28, 28, 28)).shape
        torch.Size([4, 2])
    """

    booster_positions = ("head", "last")
    unnamed_position = ""  # its checkpoints have always named it

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        img_size: Sequence[int] | int,
        hidden_size: int = 128,
        num_blocks: int = 1,
        stem_stride: int = 3,
        dropout_rate: float = 0.0,
        booster: nn.Module | None = None,
        class_names: Sequence[str] | None = None,
        position: str = "head",
    ) -> None:
        super().__init__()
        for name, number in (("in_channels", in_channels), ("num_classes", num_classes), ("num_blocks", num_blocks)):
            check_whole(name, number, 1)
        check_whole("stem_stride", stem_stride, 1)
        check_whole("hidden_size", hidden_size, 8)
        if hidden_size % 8:
            raise ValueError(
                f"hidden_size must be a multiple of 8, not {hidden_size}: each earlier stage has half of it"
            )
        self.shape = [in_channels, *_checked_size(img_size, stem_stride)]
        body = ResNet(
            "basic",
            layers=[num_blocks] * 4,
            block_inplanes=[hidden_size // 8, hidden_size // 4, hidden_size // 2, hidden_size],
            n_input_channels=in_channels,
            conv1_t_size=3,
            conv1_t_stride=stem_stride,
            feed_forward=False,
            bias_downsample=False,
        )
        # Without max pool and head. In this memory format, convolutions on a CPU are a quarter faster.
        self.features = nn.Sequential(OrderedDict((name, getattr(body, name)) for name in PARTS))
        self.features.to(memory_format=torch.channels_last_3d)
        self.drop = nn.Dropout(dropout_rate)
        self.head = nn.Linear(hidden_size, num_classes)
        self.make_joint(f"{type(self).__name__}, stem of stride {stem_stride}", hidden_size, 0, pool="mean")
        self.place_booster(booster, position)
        self.class_names = ClassNames(num_classes, class_names)
        self.preprocessing = Preprocessing()
        self.training_cases = TrainingCases()

    def forward_features(self, x: Tensor) -> Tensor:
        """Map volumes (B, channels, S0, S1, S2) to the tokens of the booster.

        With position "head" the pooled features, (B, 1, C); with "last" the last feature map, (B, voxels, C).
        """
        if list(x.shape[1:]) != self.shape:
            raise ValueError(
                f"volumes of shape {list(x.shape)} do not fit a network for (batch, {self.shape}): resize the volumes, "
                "or build the network with their img_size"
            )
        x = self.features(x).flatten(2).transpose(1, 2)  # (B, voxels, C)
        return x.mean(dim=1, keepdim=True) if self.boosts_pooled else x

    def forward_head(self, x: Tensor) -> Tensor:
        """Map tokens after the booster, (B, N, C), to logits (B, num_classes)."""
        return self.head(self.drop(self.pool_tokens(x)))


def _checked_size(img_size: Sequence[int] | int, stem_stride: int) -> tuple[int, ...]:
    """Return the size of the volume along each axis.

    Raises:
        ValueError: a wrong number of sizes, or a last feature map of a single voxel.
    """
    try:
        size = ensure_tuple_rep(img_size, 3)
    except ValueError as error:
        raise ValueError(f"img_size {img_size} has another number of axes: give one number or 3") from error
    last = []
    for number in size:
        check_whole("each number of img_size", number, 1)
        for stride in (stem_stride, *STAGE_STRIDES):
            number = -(-number // stride)  # as a convolution of kernel size 3 and padding 1
        last.append(number)
    if last == [1, 1, 1]:
        raise ValueError(
            f"img_size {size} is too small: the last feature map of a ResNet3D with stem_stride {stem_stride} would "
            f"have a single voxel; give volumes of more than {8 * stem_stride} voxels along an axis, or a smaller "
            "stem_stride"
        )
    return size
