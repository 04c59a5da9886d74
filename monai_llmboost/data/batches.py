# SPDX-License-Identifier: Apache-2.0
"""Batches of a data set of small volumes that is kept completely on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Randomizable
from torch import Tensor
from torch.utils.data import Sampler

from monai_llmboost.arguments import check_switch, check_whole
from monai_llmboost.data.steps import flatten_transforms


@runtime_checkable
class VolumeArrays(Protocol):
    """The interface of a data set for :class:`BatchedVolumes`.

    Args:
        images: volumes (cases, S, S, S) uint8.
        labels: labels (cases,) int64.
        cases: names.
    """

    images: np.ndarray
    labels: np.ndarray
    cases: Sequence[str]

    def __len__(self) -> int:
        """Return the number of cases."""


class BatchedVolumes:
    """Loader of batches ``{"image": (B, 1, S, S, S), "label": (B,) int64, "case": B names}``, all on one device.

    The volumes are kept there as uint8, S * S * S bytes each (a set at 28 voxels is 30 MB, at 64 voxels 350 MB); a
    batch is selected from them in one operation, without Python per case. It replaces a ``DataLoader`` in MONAI's
    engines; seeding torch and ``transform`` at the start of an epoch, as ``SeededEpochs`` does, repeats the epoch.

    Args:
        dataset: the volumes, without a transform; any data set with the arrays of :class:`VolumeArrays`.
        batch_size: cases in a batch; the last one of an epoch may have fewer.
        device: device of the volumes and the batches.
        shuffle: whether to draw a new order for each epoch, from torch's CPU generator.
        sampler: sampler that gives the order instead, such as a ``DistributedSampler``; the caller sets its epoch.
        transform: MONAI transform of the dictionary of a batch (B before the channel), applied once per batch. Images
            are returned as plain tensors: they have no geometry, and a ``MetaTensor`` slows each operation down.
        drop_last: whether to leave out the last batch if it has fewer cases.

    Raises:
        TypeError: the dataset does not have these arrays.
        ValueError: a dataset with a transform; an invalid batch size or switch; shuffle with a sampler; no full batch.

    Example:
        >>> from monai_llmboost.data import LabelledVolumes
        >>> loader = BatchedVolumes(LabelledVolumes("phantom", "val", size=8), batch_size=50, device="cpu")
        >>> [len(batch["label"]) for batch in loader]
        [50, 50, 20]
    """

    def __init__(
        self,
        dataset: VolumeArrays,
        batch_size: int,
        device: torch.device | str,
        shuffle: bool = False,
        sampler: Sampler | None = None,
        transform: Callable | None = None,
        drop_last: bool = False,
    ) -> None:
        if not isinstance(dataset, VolumeArrays):
            raise TypeError(
                f"dataset must have the arrays images, labels and cases, which {type(dataset).__name__} has not: use "
                "monai.data.DataLoader"
            )
        if transforms := flatten_transforms(getattr(dataset, "transform", None)):
            raise ValueError(
                f"the dataset has {len(transforms)} transforms of single volumes: give BatchedVolumes a transform of "
                "whole batches instead"
            )
        check_whole("batch_size", batch_size, 1)
        check_switch("shuffle", shuffle)
        check_switch("drop_last", drop_last)
        if shuffle and sampler is not None:
            raise ValueError("shuffle and sampler are both given: leave shuffle out, and let the sampler shuffle")
        self.dataset = dataset
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.shuffle = shuffle
        self.sampler: Any = sampler
        self.transform = transform
        self.drop_last = drop_last
        if not len(self):
            raise ValueError(
                f"{self._count_cases()} cases make no batch of {batch_size} (drop_last is {drop_last}): lower "
                "batch_size, or keep the last batch"
            )
        if isinstance(transform, Randomizable):  # as in MONAI's DataLoader, so that set_determinism repeats a run
            transform.set_random_state(seed=torch.initial_seed() % 2**32)
        self.images = torch.from_numpy(dataset.images).unsqueeze(1).to(self.device)  # (cases, 1, S, S, S) uint8
        self.labels = torch.from_numpy(dataset.labels).to(self.device)  # (cases,) int64
        self.cases = np.array(dataset.cases)

    def _count_cases(self) -> int:
        """Return the number of cases in an epoch of this process."""
        return len(self.dataset if self.sampler is None else self.sampler)

    def __len__(self) -> int:
        whole, rest = divmod(self._count_cases(), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # The order is drawn here and not at the first batch: SeededEpochs seeds just before the iterator is made.
        if self.sampler is not None:
            order = torch.tensor(list(self.sampler), dtype=torch.int64)
        else:
            order = torch.randperm(len(self.dataset)) if self.shuffle else torch.arange(len(self.dataset))
        return self._iterate_batches(order)

    def _iterate_batches(self, order: Tensor) -> Iterator[dict[str, Any]]:
        on_device = order.to(self.device, non_blocking=True)  # once an epoch
        for index in range(len(self)):
            batch_slice = slice(index * self.batch_size, (index + 1) * self.batch_size)
            batch = {
                "image": self.images.index_select(0, on_device[batch_slice]),
                "label": self.labels.index_select(0, on_device[batch_slice]),
                "case": self.cases[order[batch_slice].numpy()].tolist(),
            }
            if self.transform is not None:
                batch = self.transform(batch)
            yield {key: value.as_tensor() if isinstance(value, MetaTensor) else value for key, value in batch.items()}
