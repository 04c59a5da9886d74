# SPDX-License-Identifier: Apache-2.0
"""What all frozen features of volumes have: a shape, weights that nothing trains, and a text that identifies them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import check_whole
from monai_llmboost.artifacts.digests import tensors_digest


class Embedding(nn.Module):
    """Frozen features of volumes: (B, C, S0, S1, S2) -> (B, F), in ``eval()`` and without gradients.

    A subclass registers its weights as buffers, defines :meth:`embed`, and ends its constructor with :meth:`finish`.

    Args:
        image_shape: (C, S0, S1, S2) of a volume.

    Raises:
        ValueError: a shape that is not four whole numbers; in ``forward``, a volume of another shape.

    Example:
        >>> class Means(Embedding):
        ...     def __init__(self, image_shape):
        ...         super().__init__(image_shape)
        ...         self.finish()
        ...
        ...     def embed(self, x):
        ...         return x.mean(dim=(2, 3, 4))
        >>> means = Means((2, 8, 8, 8))
        >>> means(torch.ones(3, 2, 8, 8, 8)).shape, means.num_features
        (torch.Size([3, 2]), 2)
    """

    num_features: int

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__()
        if len(image_shape) != 4:
            raise ValueError(f"image_shape {list(image_shape)} must be [channels, S0, S1, S2]: give four numbers")
        for number in image_shape:
            check_whole("each number of image_shape", number, 1)
        self.image_shape = tuple(image_shape)

    def finish(self) -> None:
        """Freeze the weights, and embed a volume of zeros to learn the number of features."""
        weights_to_buffers(self)
        self.eval()
        self.num_features = self(torch.zeros(1, *self.image_shape)).shape[1]

    def embed(self, x: Tensor) -> Tensor:
        """Map volumes (B, C, S0, S1, S2) to features (B, F)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Embedding:
        """Stay in ``eval()``: a frozen batch norm or dropout must not depend on the batch."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map volumes (B, C, S0, S1, S2) to features (B, F) in float32."""
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(
                f"volumes of shape {list(x.shape[1:])} do not fit features of {list(self.image_shape)}: give the "
                "image_shape of the volumes"
            )
        with torch.no_grad():
            return self.embed(x.float())

    def __str__(self) -> str:
        """Return what identifies the features; model.json contains it, and a prediction must have the same."""
        fingerprint = tensors_digest(self.state_dict())[:16]
        shape = "x".join(map(str, self.image_shape))
        return " ".join(filter(None, (type(self).__name__, "of", shape, self.extra_repr(), fingerprint)))


def weights_to_buffers(module: nn.Module) -> None:
    """Replace each parameter of a module, and of the modules in it, by a buffer of the same name."""
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None:
                delattr(part, name)
                part.register_buffer(name, weight.detach())
