# SPDX-License-Identifier: Apache-2.0
"""A classifier from the encoder of a segmentation network, without the decoder."""

from __future__ import annotations

from collections.abc import Sequence

from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from monai_llmboost.arguments import check_whole


class EncoderClassifier(nn.Module):
    """An encoder of feature maps with a classification head: ``head(dropout(norm(mean(deepest map))))``.

    The encoder is that of a segmentation network, such as ``SwinTransformer`` of MONAI's SwinUNETR or ``SegResEncoder``
    of its SegResNetDS, whose weights :func:`monai_llmboost.networks.load_encoder_weights` finds in a checkpoint of the
    whole network, or of a self-supervised training. :func:`monai_llmboost.networks.boost` places a booster at
    ``"pooled"``, the mean, or at ``"deepest"``, the map before it.

    Args:
        encoder: maps volumes (B, channels, S0, S1, S2) to a list of feature maps, the deepest one last.
        channels: features of the deepest map, C.
        num_classes: number of logits.
        multiple_of: the encoder halves a volume so often that each axis must be a multiple of this number.
        img_size: size of the volume along its three axes, voxels, or one number for a cube, to check before the first
            volume; ``None`` to check in ``forward`` only.
        dropout_rate: dropout before the head, 0 to below 1.

    Raises:
        ValueError: a size that is no multiple; in ``forward`` also an encoder that returns no list of maps, or a
            deepest map of other channels.

    Example:
        >>> from monai.networks.nets.segresnet_ds import SegResEncoder
        >>> encoder = SegResEncoder(init_filters=8, in_channels=1, blocks_down=(1, 1, 1))
        >>> EncoderClassifier(encoder, channels=32, num_classes=2, multiple_of=4)(torch.zeros(2, 1, 16, 16, 8)).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        encoder: nn.Module,
        channels: int,
        num_classes: int,
        multiple_of: int = 1,
        img_size: Sequence[int] | int | None = None,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        for name, number in (("channels", channels), ("num_classes", num_classes), ("multiple_of", multiple_of)):
            check_whole(name, number, 1)
        self.multiple_of, self.channels = multiple_of, channels
        if img_size is not None:
            self._check_size(_three(img_size))
        self.encoder = encoder
        # The names of the two modules are those that boost takes for its argument at.
        self.deepest = nn.Identity()
        self.pooled = nn.AdaptiveAvgPool3d(1)
        self.norm = nn.LayerNorm(channels)
        self.drop = nn.Dropout(dropout_rate)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map volumes (B, channels, S0, S1, S2) to raw logits (B, num_classes)."""
        self._check_size(list(x.shape[2:]))
        deepest = self.encoder(x)[-1]  # (B, C, S0 / multiple, S1 / multiple, S2 / multiple)
        if deepest.dim() != x.dim() or deepest.shape[1] != self.channels:
            raise ValueError(
                f"the deepest features of the encoder have shape {list(deepest.shape)}, not (B, {self.channels}, S0, "
                "S1, S2): give an encoder that returns a list of maps, and the channels of the last one"
            )
        x = self.pooled(self.deepest(deepest)).flatten(1)  # (B, C)
        return self.head(self.drop(self.norm(x)))

    def _check_size(self, size: list[int]) -> None:
        """Raise ValueError for a size along an axis that is no multiple, with the next ones that are."""
        nearest = [max(1, (number + self.multiple_of // 2) // self.multiple_of) * self.multiple_of for number in size]
        for number in size:
            if number < 1 or number % self.multiple_of != 0:
                raise ValueError(
                    f"volumes of size {list(size)} do not fit this encoder, which needs multiples of "
                    f"{self.multiple_of} along each axis: resize or pad them, such as to {nearest}"
                )


def _three(img_size: Sequence[int] | int) -> list[int]:
    try:
        size = list(ensure_tuple_rep(img_size, 3))
    except ValueError as error:
        raise ValueError(f"img_size {img_size} has another number of axes: give one number or 3") from error
    for number in size:
        check_whole("each number of img_size", number, 1)
    return size
