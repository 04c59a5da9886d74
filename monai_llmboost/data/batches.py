# SPDX-License-Identifier: Apache-2.0
"""Labelled volumes as batches made on the device: a set of small volumes lives there whole and is copied once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Randomizable
from torch import Tensor
from torch.utils.data import Sampler

from monai_llmboost.data.datasets.named import LabelledVolumes


class BatchedVolumes:
    """A loader of batches ``{"image": (B, 1, S, S, S), "label": (B,) int64, "case": B names}``, all on one device.

    The volumes lie there as uint8, S * S * S bytes each (a set at 28 voxels is 30 MB, at 64 voxels 350 MB); a batch
    is picked from them in one operation, with no Python per case. It takes the place of a ``DataLoader`` in MONAI's
    engines; seeding torch and ``transform`` at an epoch's beginning, as ``SeededEpochs`` does, repeats the epoch.

    Args:
        dataset: the volumes, without a transform of their own.
        batch_size: cases in a batch; the last one of an epoch may hold fewer.
        device: where the volumes and the batches are.
        shuffle: a new order each epoch, from torch's CPU generator.
        sampler: gives the order instead, such as a ``DistributedSampler``; whoever trains sets its epoch.
        transform: MONAI transform on the dictionary of a batch (B before the channel), applied once per batch. Images
            come out as plain tensors: they have no geometry, and a ``MetaTensor`` costs Python time at each operation.
        drop_last: leave out the last batch if it holds fewer cases.

    Raises:
        TypeError: another kind of dataset.
        ValueError: a dataset with a transform; a wrong batch size or switch; shuffle beside a sampler; no whole batch.
    """

    def __init__(
        self,
        dataset: LabelledVolumes,
        batch_size: int,
        device: torch.device | str,
        shuffle: bool = False,
        sampler: Sampler | None = None,
        transform: Callable | None = None,
        drop_last: bool = False,
    ) -> None:
        if not isinstance(dataset, LabelledVolumes):
            raise TypeError(
                f"expected dataset to be LabelledVolumes, got {type(dataset).__name__}: use monai.data.DataLoader"
            )
        if dataset.transform.transforms:
            raise ValueError(
                f"expected a dataset without a transform, got {len(dataset.transform.transforms)} of single volumes: "
                "give BatchedVolumes the transform, on whole batches"
            )
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"expected batch_size to be a whole number from 1, got {batch_size!r}: give --batch_size")
        for name, value in (("shuffle", shuffle), ("drop_last", drop_last)):
            if not isinstance(value, bool):  # the word "false" on a command line would be true
                raise ValueError(f"expected {name} to be True or False, got {value!r}: write it without quotes")
        if shuffle and sampler is not None:
            raise ValueError("expected shuffle or a sampler, got both: let the sampler shuffle")
        self.dataset = dataset
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.shuffle = shuffle
        self.sampler: Any = sampler
        self.transform = transform
        self.drop_last = drop_last
        if not len(self):
            raise ValueError(
                f"expected cases for at least one batch, got {self._cases()} for batches of {batch_size}, drop_last "
                f"{drop_last}: lower batch_size, or keep the last batch"
            )
        if isinstance(transform, Randomizable):  # as MONAI's DataLoader does, so that set_determinism repeats a run
            transform.set_random_state(seed=torch.initial_seed() % 2**32)
        self.images = torch.from_numpy(dataset.images).unsqueeze(1).to(self.device)  # (cases, 1, S, S, S) uint8
        self.labels = torch.from_numpy(dataset.labels).to(self.device)  # (cases,) int64
        self.cases = np.array(dataset.cases)

    def _cases(self) -> int:
        """Cases in an epoch of this process."""
        return len(self.dataset if self.sampler is None else self.sampler)

    def __len__(self) -> int:
        whole, rest = divmod(self._cases(), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Drawn here and not at the first batch: SeededEpochs seeds just before the iterator is made.
        if self.sampler is not None:
            order = torch.tensor(list(self.sampler), dtype=torch.int64)
        else:
            order = torch.randperm(len(self.dataset)) if self.shuffle else torch.arange(len(self.dataset))
        return self._batches(order)

    def _batches(self, order: Tensor) -> Iterator[dict[str, Any]]:
        there = order.to(self.device, non_blocking=True)  # once an epoch
        for index in range(len(self)):
            part = slice(index * self.batch_size, (index + 1) * self.batch_size)
            batch = {
                "image": self.images.index_select(0, there[part]),
                "label": self.labels.index_select(0, there[part]),
                "case": self.cases[order[part].numpy()].tolist(),
            }
            if self.transform is not None:
                batch = self.transform(batch)
            yield {key: value.as_tensor() if isinstance(value, MetaTensor) else value for key, value in batch.items()}
