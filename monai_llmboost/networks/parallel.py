# SPDX-License-Identifier: Apache-2.0
"""A network with frozen weights in DistributedDataParallel: no process sends them, and all have the same."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# DistributedDataParallel (DDP) looks for this attribute in the module that it wraps, and only there.
IGNORED = "_ddp_params_and_buffers_to_ignore"
# torch.compile adds this to the names in a network, and passes the attribute on as it is.
COMPILED = "_orig_mod."


class FrozenNames:
    """The names of a network's frozen weights at the time when they are read, for DDP.

    A list made earlier would be wrong after a change of the network: DDP does not average gradients of parameters in
    the list, so that a weight made trainable since then would differ between the processes.

    Args:
        network: the network, kept by a weak reference; copies of the network have one to themselves.
        others: names that the network's own author gave to DDP.
    """

    def __init__(self, network: nn.Module, others: Sequence[str] = ()) -> None:
        self.network: Any = weakref.ref(network)
        self.others = tuple(others)

    def __iter__(self) -> Iterator[str]:
        yield from self.others
        network = self.network()
        for name in () if network is None else frozen_names(network):
            yield name
            yield COMPILED + name

    def __getstate__(self) -> dict[str, Any]:
        return {"network": self.network(), "others": self.others}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["network"], state["others"])  # type: ignore[misc]


def frozen_names(network: nn.Module) -> list[str]:
    """Return the names of the tensors in a network that no training changes, as its ``named_buffers`` has them.

    They are those that its modules name in a method ``frozen_names``, such as a :class:`FrozenBlock`, whose fingerprint
    says what they are. Buffers of other modules may differ between processes until DDP makes them equal.
    """
    names = []
    for prefix, part in network.named_modules(remove_duplicate=False):
        if hasattr(part, "frozen_names"):
            names += [f"{prefix}.{name}" if prefix else name for name in part.frozen_names()]
    return names


def ignore_frozen_in_ddp(network: nn.Module) -> nn.Module:
    """Name a network's frozen weights to DistributedDataParallel, so that it does not send them; return the network.

    By default, DDP sends all buffers to all processes in each step, and frozen weights are buffers. :func:`boost` and
    the networks of this package call this themselves. A network of your own with a booster somewhere in it needs it,
    because DDP asks only the outermost module:

    ``network = DistributedDataParallel(ignore_frozen_in_ddp(MyNetwork()))``

    Each process must then read the same block, which :func:`parallel_network` checks.

    Args:
        network: the module to be wrapped; later changes of the modules in it are followed.

    Example:
        >>> from monai_llmboost.boosters import ResidualBooster
        >>> from monai_llmboost.llm import load_block
        >>> network = nn.Sequential(nn.Linear(4, 32), ResidualBooster(32, load_block("embedded")))
        >>> "1.block.layer.down.weight" in set(ignore_frozen_in_ddp(network)._ddp_params_and_buffers_to_ignore)
        True
    """
    before = getattr(network, IGNORED, ())
    others = before.others if isinstance(before, FrozenNames) else tuple(before)
    setattr(network, IGNORED, FrozenNames(network, others))
    return network


def parallel_network(
    module: nn.Module, device_ids: Sequence[Any] | None = None, **options: Any
) -> DistributedDataParallel:
    """Wrap a network in DistributedDataParallel for a training whose processes validate different numbers of batches.

    In its steps, only gradients are sent; DDP sends buffers in validation too, and waits for the other processes. So
    running statistics need :class:`monai_llmboost.engines.SharedStatistics`. All buffers but the frozen weights, which
    each process has read, are made equal once.

    Args:
        module: the network on its device.
        device_ids: as in ``DistributedDataParallel``.
        options: further ones of it, such as ``find_unused_parameters``.

    Raises:
        ValueError: the processes have different frozen blocks.
        RuntimeError: no process group is initialised.

    Example:
        >>> network = parallel_network(ViT3D(1, 2, 28, 7))  # doctest: +SKIP
    """
    check_same_blocks(module)
    parallel = DistributedDataParallel(ignore_frozen_in_ddp(module), device_ids=device_ids, **options)
    parallel.broadcast_buffers = False  # the argument of this name is deprecated, its successor not in all versions
    return parallel


def parallel_if_distributed(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a network as it is, or wrapped as in :func:`parallel_network` if several processes train it."""
    if not dist.is_available() or not dist.is_initialized():
        return module
    return parallel_network(module, [device] if device.type == "cuda" else None)


def check_same_blocks(network: nn.Module) -> None:
    """Raise ValueError unless all processes have the same frozen blocks, in the same dtype, in a network."""
    own = {
        name or "the network": (f"{part.signature.text} in {_largest_dtype(part)}", part.signature.digest)
        for name, part in network.named_modules()
        if hasattr(part, "frozen_names") and hasattr(part, "fingerprint")
    }
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    for rank, others in enumerate(every):
        for name in every[0].keys() | others.keys():
            first, other = every[0].get(name, ("missing",)), others.get(name, ("missing",))
            if first != other:
                raise ValueError(
                    f"the processes have different frozen blocks: {name} is {first[0]} in process 0, and {other[0]} in "
                    f"process {rank}; give all of them the same --block and --precision"
                )


def _largest_dtype(block: nn.Module) -> torch.dtype:
    return max((*block.parameters(), *block.buffers()), key=torch.numel).dtype
