# SPDX-License-Identifier: Apache-2.0
"""The choice of frozen features by one word, as bundles name them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from monai_llmboost.arguments import check_choice
from monai_llmboost.networks.features.convolutions import UntrainedConvolutions
from monai_llmboost.networks.features.embedding import Embedding
from monai_llmboost.networks.features.encoder import EncoderFeatures
from monai_llmboost.networks.features.slices import SliceFeatures

CONVOLUTIONS, SLICES, ENCODER = "convolutions", "slices", "encoder"
KINDS = (CONVOLUTIONS, SLICES, ENCODER)


def frozen_features(
    features: str,
    image_shape: Sequence[int],
    source: str | Path | None = None,
    projection: int = 10,
    seed: int = 0,
    network: Callable[[], nn.Module] | None = None,
) -> Embedding:
    """Make the frozen features that a bundle's ``--features`` names.

    Args:
        features: ``"convolutions"``, :class:`UntrainedConvolutions`; ``"slices"``, :class:`SliceFeatures`; or
            ``"encoder"``, :class:`EncoderFeatures`.
        image_shape: (C, S0, S1, S2) of a volume.
        source: folder of the transformer, or file of the encoder's weights; ``None`` for convolutions.
        projection: numbers per patch and axis of ``"slices"``.
        seed: seed of the convolutions, or of the projection.
        network: makes the network of ``"encoder"``.

    Raises:
        ValueError: unknown features; a source for convolutions, or none for the others; what the three raise.

    Example:
        >>> frozen_features("convolutions", (1, 28, 28, 28)).num_features
        3024
    """
    check_choice("features", features, KINDS)
    if features == CONVOLUTIONS:
        if source is not None:
            raise ValueError(f"untrained convolutions have no weights to load from {source}: leave out features_from")
        return UntrainedConvolutions(image_shape, seed)
    if source is None:
        what = "folder of a 2D vision transformer" if features == SLICES else "file of the encoder's weights"
        raise ValueError(f"features {features} need a {what}: give --features_from")
    if features == SLICES:
        return SliceFeatures(source, image_shape, projection, seed)
    if network is None:
        raise ValueError("features encoder need a network: give one, such as MONAI's resnet10")
    return EncoderFeatures(network, source, image_shape)
