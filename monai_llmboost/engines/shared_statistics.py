# SPDX-License-Identifier: Apache-2.0
"""A handler for batch normalization in a training on several processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class SharedStatistics:
    """Averages the running statistics of batch normalization over the processes of a parallel training.

    DistributedDataParallel keeps weights equal; the bundles do not let it send buffers, see
    :func:`monai_llmboost.networks.parallel_network`. Without this handler, each process would validate with its own
    statistics, and a checkpoint would have those of the first one. It runs after each step, so before handlers that
    copy the network.

    Args:
        network: the network, wrapped or not.

    Example:
        >>> from ignite.engine import Engine
        >>> from monai.engines import IterationEvents
        >>> trainer = Engine(lambda engine, batch: engine.fire_event(IterationEvents.MODEL_COMPLETED))
        >>> _ = trainer.register_events(*IterationEvents)
        >>> SharedStatistics(nn.BatchNorm3d(3)).attach(trainer)
        >>> trainer.run([0]).iteration
        1
    """

    def __init__(self, network: nn.Module) -> None:
        layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
        both = [statistic for layer in layers for statistic in (layer.running_mean, layer.running_var)]
        self.statistics = [statistic for statistic in both if statistic is not None]

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer of MONAI."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.average)

    def average(self) -> None:
        """Replace each statistic by its mean over the processes."""
        if not self.statistics or not dist.is_initialized():
            return
        together = torch.cat([statistic.flatten() for statistic in self.statistics])
        dist.all_reduce(together)
        together /= dist.get_world_size()
        for statistic, mean in zip(self.statistics, together.split([s.numel() for s in self.statistics])):
            statistic.copy_(mean)
