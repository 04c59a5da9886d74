# SPDX-License-Identifier: Apache-2.0
"""Each epoch's random numbers follow from the seed and the epoch, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.transforms import Randomizable
from monai.utils import set_determinism

from monai_llmboost.arguments import check_whole


class SeededEpochs:
    """Seeds torch, numpy, random and the training transforms at the beginning of each epoch.

    Ignite makes the data iterator of the first epoch before ``EPOCH_STARTED``, those of later epochs after it. So the
    first epoch of a run, or of a resumed run, is seeded at ``STARTED``, each later one at its ``EPOCH_STARTED``: in
    both cases just before its iterator is made. Attach it after the handler that restores the epoch.

    Args:
        seed: of the whole run, a whole number from 0 to 2**32 - 1.

    Raises:
        ValueError: another seed, which torch would round.

    Example:
        >>> handlers = [SeededEpochs(seed=0)]  # of a trainer
    """

    def __init__(self, seed: int) -> None:
        check_whole("seed", seed, 0, 2**32 - 1, "give --seed 0, say")
        self.seed = seed
        self.seeded_epoch = 0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self.epoch_started)

    def start(self, engine: Engine) -> None:
        """Seed the first epoch of this run."""
        self._seed_epoch(engine, engine.state.epoch + 1)

    def epoch_started(self, engine: Engine) -> None:
        """Seed an epoch that is not seeded yet."""
        if engine.state.epoch != self.seeded_epoch:
            self._seed_epoch(engine, engine.state.epoch)

    def _seed_epoch(self, engine: Engine, epoch: int) -> None:
        self.seeded_epoch = epoch
        # A prime between epochs and one between ranks keep the streams of neighbouring seeds apart.
        seed = (self.seed + 7_919 * epoch + 104_729 * idist.get_rank()) % 2**32
        deterministic = torch.are_deterministic_algorithms_enabled()
        set_determinism(seed=seed)
        torch.use_deterministic_algorithms(deterministic)
        loader: Any = getattr(engine, "data_loader", engine.state.dataloader)
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, torch.utils.data.distributed.DistributedSampler):
            sampler.set_epoch(epoch)  # as MONAI's trainer does, but before the iterator is made
        for owner in (loader, loader.dataset):  # of batches (BatchedVolumes), or of single items (DataLoader)
            transform = getattr(owner, "transform", None)
            if isinstance(transform, Randomizable):
                transform.set_random_state(seed=seed)
