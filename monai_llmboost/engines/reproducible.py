# SPDX-License-Identifier: Apache-2.0
"""Seeds for each epoch, derived from the run's seed, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.transforms import Randomizable
from monai.utils import set_determinism

from monai_llmboost.arguments import check_whole


class SeededEpochs:
    """Seeds torch, numpy, random and the training transforms at the start of each epoch.

    Ignite creates the data iterator of the first epoch before ``EPOCH_STARTED``, and of later epochs after it. So the
    first epoch of a new or resumed run is seeded at ``STARTED``, and each later epoch at ``EPOCH_STARTED``: in both
    cases just before its iterator is created. Attach this handler after the handler that restores the epoch.

    Args:
        seed: seed of the run, a whole number from 0 to 2**32 - 1.

    Raises:
        ValueError: any other seed.

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
        # Transforms of batches (BatchedVolumes, ScanLoader), of items (DataLoader), and crops of items (ScanLoader).
        for owner, name in ((loader, "transform"), (loader.dataset, "transform"), (loader, "crop")):
            transform = getattr(owner, name, None)
            if isinstance(transform, Randomizable):
                transform.set_random_state(seed=seed)
