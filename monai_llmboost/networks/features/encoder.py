# SPDX-License-Identifier: Apache-2.0
"""The pooled features of a network with given weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_llmboost.networks.boosted_network import BoostedNetwork
from monai_llmboost.networks.features.embedding import Embedding
from monai_llmboost.networks.joints import POOLED, find_joint
from monai_llmboost.networks.pretrained import load_encoder_weights


class EncoderFeatures(Embedding):
    """The pooled features of a network whose weights come from a file: (B, C, S0, S1, S2) -> (B, F).

    Args:
        network: makes the network, such as MONAI's ResNet, or ``EncoderClassifier`` around an encoder: one with a
            pooled joint, see :data:`monai_llmboost.networks.joints.JOINTS`.
        weights: file with its weights, see :func:`monai_llmboost.networks.load_encoder_weights`.
        image_shape: (C, S0, S1, S2) of a volume.

    Raises:
        ValueError: a file that does not fit, a network without pooled features, or one that refuses such volumes.

    Example:
        >>> make = partial(resnet10, spatial_dims=3, n_input_channels=1)  # doctest: +SKIP
        >>> EncoderFeatures(make, "resnet_10_23dataset.pth", (1, 64, 64, 64)).num_features  # doctest: +SKIP
        512
    """

    def __init__(self, network: Callable[[], nn.Module], weights: str | Path, image_shape: Sequence[int]) -> None:
        super().__init__(image_shape)
        with torch.random.fork_rng(devices=[]):  # so that layers without weights in the file are the same each time
            torch.manual_seed(0)
            made = network()
        self.network = load_encoder_weights(made, weights)
        # Each thread that embeds has its own entry.
        self._pooled: dict[int, Tensor] = {}
        if not isinstance(made, BoostedNetwork):
            modules = dict(made.named_modules())
            joint = find_joint(made, modules, POOLED, before=False)
            hook = self._keep_input if joint.before else self._keep_output
            modules[joint.name].register_forward_hook(hook)
        self.finish()

    def embed(self, x: Tensor) -> Tensor:
        """Map volumes (B, C, S0, S1, S2) to pooled features (B, F)."""
        if isinstance(self.network, BoostedNetwork):
            return self.network.pool_tokens(self.network.forward_features(x))
        self.network(x)
        return self._pooled.pop(threading.get_ident()).flatten(1)

    def _keep_output(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._pooled[threading.get_ident()] = output

    def _keep_input(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._pooled[threading.get_ident()] = inputs[0]
