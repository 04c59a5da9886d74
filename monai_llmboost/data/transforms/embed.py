# SPDX-License-Identifier: Apache-2.0
"""Frozen features of a volume in place of the volume, so that a cache keeps them and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends
from torch import Tensor, nn


class EmbedScand(MapTransform):
    """Replace volumes (channels, i, j, k) by their frozen features (F, 1, 1, 1); the metadata stays.

    A volume is embedded by itself, so its features do not depend on a batch.

    Args:
        keys: keys of volumes.
        embedding: maps volumes (1, channels, i, j, k) to features (1, F); its text identifies its weights, as that of
            :class:`monai_llmboost.networks.features.Embedding`.
        device: device to compute on, in the main process; worker processes compute on the CPU.

    Example:
        >>> embed = EmbedScand("image", torch.nn.Flatten())
        >>> embed({"image": torch.rand(1, 2, 2, 2)})["image"].shape
        torch.Size([8, 1, 1, 1])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (as in every transform of MONAI)

    def __init__(self, keys: KeysCollection, embedding: nn.Module, device: torch.device | str = "cpu") -> None:
        super().__init__(keys)
        self.embedding = str(embedding)  # stored with the weights of a training
        self._embedding, self._device = embedding, torch.device(device)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the item with features in place of volumes."""
        embedded = dict(data)
        for key in self.key_iterator(embedded):
            embedded[key] = self._embed(embedded[key])
        return embedded

    def _embed(self, volume: Tensor) -> Tensor:
        device = torch.device("cpu") if torch.utils.data.get_worker_info() else self._device
        whole = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
        with torch.no_grad():
            features = self._embedding.to(device)(whole[None].to(device))[0].cpu()[:, None, None, None]
        return MetaTensor(features, meta=dict(volume.meta)) if isinstance(volume, MetaTensor) else features
