# SPDX-License-Identifier: Apache-2.0
"""Batches of labelled scans on the device, with random transforms of whole batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import Randomizable
from torch import Tensor
from torch.utils.data import Sampler, default_collate

from monai_llmboost.data.labelled.dataset import LabelledScanDataset


class ScanLoader(DataLoader):
    """MONAI's ``DataLoader`` that moves batches to a device and applies random transforms to them there.

    The transforms draw in the main process, so an epoch is the same with any number of workers; seeding torch and
    ``transform`` at its start, as ``SeededEpochs`` does, repeats it.

    Args:
        dataset: data set of items ``"image"``, ``"label"`` and ``"case"``.
        batch_size: cases in a batch; the last one of an epoch may have fewer.
        device: device of the batches.
        shuffle: whether to draw a new order for each epoch, from torch's generator.
        sampler: sampler that gives the order instead.
        transform: MONAI transform of the dictionary of a batch (B before the channels).
        crop: random transform of each item before the items become a batch, which makes volumes of one size, such as
            :class:`monai_llmboost.data.CropPatchd`; ``None`` for volumes of one size.
        keep_affine: add ``"affine"``, of the images' voxels to RAS+ mm (B, 4, 4), to the batches.
        num_workers: processes that read scans; 0 for none, which suffices for scans kept in memory.

    Example:
        >>> data = [{"image": torch.zeros(1, 4, 4, 4), "label": 0, "case": str(n)} for n in range(3)]
        >>> [len(batch["case"]) for batch in ScanLoader(LabelledScanDataset(data, dict), 2, "cpu")]
        [2, 1]
    """

    def __init__(
        self,
        dataset: LabelledScanDataset,
        batch_size: int,
        device: torch.device | str,
        shuffle: bool = False,
        sampler: Sampler | None = None,
        transform: Callable | None = None,
        num_workers: int = 0,
        crop: Callable | None = None,
        keep_affine: bool = False,
    ) -> None:
        # Items of different sizes travel one by one, and become a batch after the crop, in the main process.
        collate = list if crop is not None else partial(collate_plain, keep_affine=keep_affine)
        super().__init__(
            dataset, num_workers, batch_size=batch_size, shuffle=shuffle, sampler=sampler, collate_fn=collate
        )
        self.device = torch.device(device)
        self.transform = transform
        self.crop = crop
        self.keep_affine = keep_affine
        for random in (transform, crop):
            if isinstance(random, Randomizable):  # as in MONAI's DataLoader, so that set_determinism repeats a run
                random.set_random_state(seed=torch.initial_seed() % 2**32)

    def __iter__(self) -> Any:
        if isinstance(self.dataset, LabelledScanDataset):
            self.dataset.prepare()  # before worker processes are made, which share it

        return self._iterate(super().__iter__())

    def _iterate(self, batches: Iterator[Any]) -> Iterator[Any]:
        for found in batches:
            batch = found if self.crop is None else collate_plain(_crop(self.crop, found), self.keep_affine)
            on_device = {
                key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
                for key, value in batch.items()
            }
            changed = on_device if self.transform is None else self.transform(on_device)
            yield {key: value.as_tensor() if isinstance(value, MetaTensor) else value for key, value in changed.items()}


def collate_plain(items: Sequence[Mapping[str, Any]], keep_affine: bool = False) -> Any:
    """Return a batch of items whose images are plain tensors; collating their metadata would take most of the time."""
    plain = [
        {key: value.as_tensor() if isinstance(value, MetaTensor) else value for key, value in item.items()}
        for item in items
    ]
    if keep_affine:
        plain = [{**one, "affine": item["image"].affine} for one, item in zip(plain, items)]
    return default_collate(plain)


def _crop(crop: Callable, items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the crops of items; MONAI's transforms return one or several of each."""
    found: list[Mapping[str, Any]] = []
    for item in items:
        crops = crop(item)
        found += [crops] if isinstance(crops, Mapping) else crops
    return found
