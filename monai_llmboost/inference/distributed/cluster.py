# SPDX-License-Identifier: Apache-2.0
"""Connections to a Ray cluster, and the actors that fit on it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from monai_llmboost.arguments import check_choice, check_whole
from monai_llmboost.ray_address import check_answer, check_installed

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class RayOptions:
    """How a prediction is shared over a Ray cluster.

    Args:
        address: address of the cluster, such as ``"auto"`` or ``"ray://head:10001"``; ``None`` starts a cluster on this
            machine for this run.
        actors: maximum number of actors, processes that each load the network; ``None``: all that fit.
        cpus_per_actor: CPUs of an actor; ``None``: one, and one for each process that reads scans.
        gpus_per_actor: GPUs of an actor; ``None``: one if the cluster has GPUs, else none.

    Example:
        >>> RayOptions(actors=2).check()
    """

    address: str | None = None
    actors: int | None = None
    cpus_per_actor: int | None = None
    gpus_per_actor: float | None = None

    def check(self, device: Any = None) -> None:
        """Check the options, that Ray is installed, and that a cluster answers at the address.

        Args:
            device: the device that was chosen, if one was.

        Raises:
            ValueError: a value out of range, a GPU as the device, or a process of ``torchrun``.
            ImportError: Ray is not installed.
            ConnectionError: no Ray cluster answers at the address.
        """
        for name, value in (("--actors", self.actors), ("--cpus-per-actor", self.cpus_per_actor)):
            if value is not None:
                check_whole(name, value, 1)
        if self.gpus_per_actor is not None and not self.gpus_per_actor >= 0:
            raise ValueError(f"--gpus-per-actor must be 0 or more, not {self.gpus_per_actor}: correct it")
        if device is not None and str(device) != "cpu":
            raise ValueError(f"--device {device} has no effect with --engine ray: give --gpus-per-actor instead")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("--engine ray distributes the scans itself: start one process, without torchrun")
        check_installed()
        check_answer(self.address or os.environ.get("RAY_ADDRESS", ""))


def ray_options(
    engine: str, address: str | None, actors: int | None, cpus_per_actor: int | None, gpus_per_actor: float | None
) -> RayOptions | None:
    """Return the options of an engine; ``None`` for the engine ``local``, which has none.

    Raises:
        ValueError: an unknown engine, or an option that it does not have.
    """
    check_choice("engine", engine, ENGINES)
    if engine == "ray":
        return RayOptions(address, actors, cpus_per_actor, gpus_per_actor)
    given = {
        "--address": address,
        "--actors": actors,
        "--cpus-per-actor": cpus_per_actor,
        "--gpus-per-actor": gpus_per_actor,
    }
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is for --engine ray, not for --engine {engine}: leave out {name}")
    return None


@contextmanager
def open_cluster(address: str | None) -> Iterator[Any]:
    """Connect to a Ray cluster, and yield the module ``ray``; a connection made here is closed at the end.

    Args:
        address: as in :class:`RayOptions`. A connection that is already open is used as it is.

    Raises:
        ConnectionError: no Ray cluster answers at the address.
    """
    import ray

    own = not ray.is_initialized()
    if own:
        # Output of actors is not sent here, because it may contain names of patients.
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


@dataclass(frozen=True)
class ActorSize:
    """The resources of an actor, and how many of them the cluster has room for.

    Args:
        cpus: CPUs of an actor.
        gpus: GPUs of an actor.
        actors: number of actors.
    """

    cpus: int
    gpus: float
    actors: int


def size_actors(options: RayOptions, nodes: list[Mapping[str, Any]], num_workers: int, on_cpu: bool) -> ActorSize:
    """Return the size and the number of actors on a cluster.

    Args:
        options: what was chosen.
        nodes: machines of the cluster, as ``ray.nodes()`` returns them.
        num_workers: processes that read scans for each actor.
        on_cpu: whether the CPU was chosen as the device.

    Raises:
        ValueError: no machine is large enough for one actor.

    Example:
        >>> machine = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}
        >>> size_actors(RayOptions(), [machine], num_workers=3, on_cpu=False)
        ActorSize(cpus=4, gpus=1, actors=2)
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    has_gpus = any(machine.get("GPU") for machine in machines)
    gpus = options.gpus_per_actor
    if gpus is None:
        gpus = 1 if has_gpus and not on_cpu else 0
    cpus = options.cpus_per_actor or 1 + num_workers
    wanted = {name: number for name, number in (("CPU", cpus), ("GPU", gpus)) if number}
    fitting = sum(min(int(machine.get(name, 0) // number) for name, number in wanted.items()) for machine in machines)
    if not fitting:
        needs = " and ".join(f"{number:g} {name}s" for name, number in wanted.items())
        raise ValueError(
            f"no machine of the Ray cluster has {needs} for an actor: give fewer --workers, --cpus-per-actor or "
            "--gpus-per-actor"
        )
    return ActorSize(cpus, gpus, min(fitting, options.actors or fitting))
