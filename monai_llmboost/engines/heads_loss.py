# SPDX-License-Identifier: Apache-2.0
"""The loss of a segmentation network with several heads."""

from __future__ import annotations

from collections.abc import Sequence

from monai.losses import DeepSupervisionLoss
from torch import Tensor, nn


class HeadsLoss(nn.Module):
    """The sum of a loss over the heads of a network in training, weighted 1, 1/2, 1/4 ... by ``DeepSupervisionLoss``.

    Heads are a list of logits, as MONAI's ``SegResNetDS`` returns them, or one tensor (B, heads, classes, S0, S1, S2),
    as its ``DynUNet`` does; a network without further heads returns logits (B, classes, S0, S1, S2).

    Args:
        loss: logits (B, classes, S0, S1, S2) and class numbers (B, 1, S0, S1, S2) -> one number.

    Example:
        >>> import torch
        >>> from monai.losses import DiceCELoss
        >>> loss = HeadsLoss(DiceCELoss(softmax=True, to_onehot_y=True))
        >>> labels = torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8)
        >>> one, two = (float(loss(torch.zeros(1, *heads, 2, 4, 4, 4), labels)) for heads in ((), (2,)))
        >>> round(two / one, 4)
        1.5
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = DeepSupervisionLoss(loss)  # type: ignore[arg-type]  # any module will do

    def forward(self, logits: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return the loss of a batch."""
        if isinstance(logits, Tensor) and logits.dim() == labels.dim() + 1:
            logits = logits.unbind(dim=1)
        # Lower resolutions get the nearest label, for which interpolation needs real numbers.
        return self.loss(logits, labels.float())
