# SPDX-License-Identifier: Apache-2.0
"""A classifier of frozen features: standardisation, a joint for a booster, and a linear head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import check_whole
from monai_llmboost.networks.boosted_network import BoostedNetwork
from monai_llmboost.networks.class_names import ClassNames, Preprocessing, TrainingCases


class FeatureClassifier(BoostedNetwork):
    """A linear classifier of standardised features, ``head(booster((x - mean) / deviation))``.

    Mean and deviation are those of the training cases, which :class:`monai_llmboost.engines.LogisticStart` sets
    together with the head. :func:`monai_llmboost.networks.boost` places a booster at ``"pooled"``.

    Args:
        num_features: features of a case, F.
        num_classes: number of logits.
        class_names: names of the classes in the order of the logits, as in :class:`monai_llmboost.networks.ViT3D`.

    Raises:
        ValueError: features or classes below 1; class names that do not fit.

    Example:
        >>> FeatureClassifier(3024, 2)(torch.rand(4, 3024, 1, 1, 1)).shape
        torch.Size([4, 2])
    """

    booster_positions = ("head",)
    unnamed_position = "head"

    def __init__(self, num_features: int, num_classes: int, class_names: Sequence[str] | None = None) -> None:
        super().__init__()
        check_whole("num_features", num_features, 1)
        check_whole("num_classes", num_classes, 1)
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))
        self.register_buffer("standardised_on", torch.tensor(0))  # number of cases of these statistics
        self.head = nn.Linear(num_features, num_classes)
        self.make_joint(type(self).__name__, num_features, 0, pool="mean")
        self.place_booster(None, "head")
        self.class_names = ClassNames(num_classes, class_names)
        self.preprocessing, self.training_cases = Preprocessing(), TrainingCases()

    def start_from(self, mean: Tensor, deviation: Tensor, cases: int, weight: Tensor, bias: Tensor) -> None:
        """Set the statistics (F,) of so many cases, and the head: weight (classes, F) and bias (classes,)."""
        with torch.no_grad():
            self.get_buffer("mean").copy_(mean)
            self.get_buffer("deviation").copy_(deviation)
            self.get_buffer("standardised_on").fill_(cases)
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map features (B, F) or (B, F, 1, 1, 1) to one standardised token per case, (B, 1, F)."""
        return ((x.flatten(1) - self.get_buffer("mean")) / self.get_buffer("deviation"))[:, None]

    def forward_head(self, x: Tensor) -> Tensor:
        """Map tokens (B, 1, F) to logits (B, num_classes)."""
        return self.head(self.pool_tokens(x))
