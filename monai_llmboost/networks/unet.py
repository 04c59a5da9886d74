# SPDX-License-Identifier: Apache-2.0
"""MONAI's DynUNet with stages chosen from the size and the spacing of a patch, as nnU-Net chooses them."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import DynUNet
from monai.networks.nets.dynunet import DynUNetSkipLayer
from torch import Tensor, nn

from monai_llmboost.arguments import check_whole

# An axis is halved while half of it has this many voxels, and its spacing is less than so many times the finest.
LEAST_SIDE, COARSE = 4, 2.0
MOST_STAGES, FEWEST_STAGES = 6, 3
MOST_FILTERS = 320
# Heads at lower resolutions whose errors count in training.
HEADS = 2


def planned_unet(
    in_channels: int,
    num_classes: int,
    patch_size: Sequence[int],
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    filters: int = 32,
    deep_supervision: bool = True,
) -> DynUNet:
    """Return a U-Net for patches of a size (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).

    Axes are halved while their size is even and half of it is at least 4 voxels; an axis whose spacing is twice that of
    the finest or more is not halved, nor convolved along, until the others are as coarse.

    Args:
        in_channels: channels of a volume.
        num_classes: number of logits of each voxel, with the background.
        patch_size: voxels along each axis.
        spacing_mm: spacing along each axis, mm.
        filters: features of the first stage; each further stage has twice as many, at most 320.
        deep_supervision: return logits (B, heads, classes, S0, S1, S2) in training, of which the first are those of the
            full resolution, and the others come from lower ones.

    Raises:
        ValueError: a patch that cannot be halved twice.

    Example:
        >>> [list(stride) for stride in planned_unet(1, 3, [40, 56, 40], filters=8).strides]
        [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
        >>> list(planned_unet(1, 2, [64, 64, 16], [1, 1, 5], filters=8).strides[1])
        [2, 2, 1]
    """
    check_whole("filters", filters, 1)
    kernels, strides = plan_stages(patch_size, spacing_mm)
    network = DynUNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=num_classes,
        kernel_size=kernels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[min(filters * 2**stage, MOST_FILTERS) for stage in range(len(strides))],
        deep_supervision=deep_supervision,
        deep_supr_num=min(HEADS, len(strides) - 2),
    )
    network.skip_layers = _with_heads_in_training(network.skip_layers)
    return network


class _SkipLayer(DynUNetSkipLayer):
    """MONAI's layer, which computes its head in training only, and whose script compiles with one (torch 2.14)."""

    def forward(self, x: Tensor) -> Tensor:
        below = self.downsample(x)
        above: Tensor = self.upsample(self.next_layer(below), below)
        heads = self.heads
        if self.training and self.super_head is not None and heads is not None and self.index > 0:
            heads[self.index - 1] = self.super_head(above)
        return above


def _with_heads_in_training(layer: nn.Module) -> nn.Module:
    """Return a layer, with those below it, as :class:`_SkipLayer`; names and weights stay."""
    if not isinstance(layer, DynUNetSkipLayer):
        return layer
    rest = _with_heads_in_training(layer.next_layer)
    return _SkipLayer(layer.index, layer.downsample, layer.upsample, rest, layer.heads, layer.super_head)


def plan_stages(patch_size: Sequence[int], spacing_mm: Sequence[float]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the kernel sizes and the strides of the stages, the first one at the full resolution.

    Raises:
        ValueError: sizes that are not three whole numbers; a patch that cannot be halved twice.

    Example:
        >>> plan_stages([32, 32, 8], [1, 1, 4])[0][0]
        [3, 3, 1]
    """
    for side in patch_size:
        check_whole("each side of a patch", side, 1)
    sides, spacing = list(patch_size), [float(step) for step in spacing_mm]
    kernels, strides = [], [[1] * len(sides)]
    while True:
        finest = min(spacing)
        is_fine = [step < COARSE * finest for step in spacing]
        kernels.append([3 if fine else 1 for fine in is_fine])
        halved = [fine and side % 2 == 0 and side // 2 >= LEAST_SIDE for fine, side in zip(is_fine, sides)]
        if not any(halved) or len(strides) == MOST_STAGES:
            break
        strides.append([2 if half else 1 for half in halved])
        sides = [side // stride for side, stride in zip(sides, strides[-1])]
        spacing = [step * stride for step, stride in zip(spacing, strides[-1])]
    if len(strides) < FEWEST_STAGES:
        raise ValueError(
            f"a patch of {' x '.join(map(str, patch_size))} voxels can be halved {len(strides) - 1} time(s), and the "
            "U-Net needs two: give an --image_shape with more voxels, whose sides are multiples of 4"
        )
    return kernels, strides
