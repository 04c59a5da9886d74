# SPDX-License-Identifier: Apache-2.0
"""A pool of Ray actors: they are started, given units of work, and replaced when they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from monai_llmboost import __version__
from monai_llmboost.inference.distributed.actor import actor_class
from monai_llmboost.inference.distributed.cluster import ActorSize
from monai_llmboost.inference.distributed.units import Unit
from monai_llmboost.inference.distributed.worker import Setup
from monai_llmboost.inference.rows import Row

# Units that an actor has at once, so that it never waits for the next one. This bounds the memory of this process.
AHEAD = 2
# Actors that may end one after another while they start.
MOST_FAILED_STARTS = 3
# Seconds between looks at the answers.
INTERVAL = 1.0


@dataclass(eq=False)
class _Actor:
    """An actor and its units in the order of their calls; ``start`` is None once it has loaded the network."""

    handle: Any
    start: Any
    node: str = ""
    calls: deque[tuple[Any, Unit]] = field(default_factory=deque)

    @property
    def next_answer(self) -> Any:
        return self.start or (self.calls[0][0] if self.calls else None)


class ActorPool:
    """Actors that predict units; one that ends is replaced as long as there is work.

    Args:
        ray: the module, connected to a cluster.
        size: resources and number of the actors.
        setup: what an actor needs to know.
        content: function from a unit to the arguments of :meth:`BatchWorker.predict`.
    """

    def __init__(self, ray: Any, size: ActorSize, setup: Setup, content: Any) -> None:
        self.ray = ray
        self.size = size
        self.content = content
        # As bytes, which the actor reads after it has compared the versions.
        self.setup = ray.put(ray.cloudpickle.dumps(setup))
        self.remote = ray.remote(num_cpus=size.cpus, num_gpus=size.gpus, max_restarts=0, max_task_retries=0)(
            actor_class()
        )
        self.actors: list[_Actor] = []
        self.devices: set[str] = set()
        self.waiting: deque[Unit] = deque()
        self._failed_starts = 0

    @property
    def num_ready(self) -> int:
        """The number of actors that have loaded the network."""
        return sum(actor.start is None for actor in self.actors)

    def add(self, units: Iterable[Unit]) -> None:
        """Add units before all others that wait."""
        self.waiting.extendleft(reversed(list(units)))

    def run(self) -> Iterator[tuple[Unit, list[Row] | None]]:
        """Yield each unit with its rows, or with ``None`` if its actor ended; units may be added meanwhile.

        Raises:
            ValueError: an actor cannot start.
            RuntimeError: actors end while they start.
            Exception: an error that does not concern a single case, such as a full disk.
        """
        while self.waiting or any(actor.calls for actor in self.actors):
            self._start_actors()
            self._submit()
            answers = [actor.next_answer for actor in self.actors if actor.next_answer is not None]
            done = set(self.ray.wait(answers, timeout=INTERVAL)[0])
            for actor in list(self.actors):
                if actor.start in done:
                    self._started(actor)
                elif actor.next_answer in done:
                    yield self._answered(actor)

    def _start_actors(self) -> None:
        idle = sum(not actor.calls for actor in self.actors)
        for _ in range(min(self.size.actors - len(self.actors), len(self.waiting) - idle)):
            handle = self.remote.remote()
            self.actors.append(_Actor(handle, handle.start.remote(__version__, self.setup)))

    def _submit(self) -> None:
        """Give units to the actors, first to those that have none."""
        for taken in range(AHEAD):
            for actor in self.actors:
                if self.waiting and actor.start is None and len(actor.calls) == taken:
                    unit = self.waiting.popleft()
                    actor.calls.append((actor.handle.predict.remote(*self.content(unit)), unit))

    def _started(self, actor: _Actor) -> None:
        try:
            answer = self.ray.get(actor.start)
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as error:
            self.actors.remove(actor)
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise RuntimeError(
                    f"{self._failed_starts} actors in a row ended while they loaded the network "
                    f"({type(error).__name__}): give fewer --actors, or machines with more memory"
                ) from None
            return
        if isinstance(answer, str):
            raise ValueError(answer)
        device, actor.node = answer
        self.devices.add(device)
        actor.start = None
        self._failed_starts = 0

    def _answered(self, actor: _Actor) -> tuple[Unit, list[Row] | None]:
        """Return the next unit of an actor with its rows; ``None`` if the actor ended with it.

        A unit is not to blame, and gets no rows, if its machine or its answer was lost.
        """
        errors = self.ray.exceptions
        call, unit = actor.calls.popleft()
        try:
            answer = self.ray.get(call)
        except errors.RayTaskError:
            raise
        except errors.RayError as error:
            self.actors.remove(actor)
            self.ray.kill(actor.handle)  # if it is only out of reach, its answers would come too late
            self.add(unit for _, unit in actor.calls)
            lost = isinstance(error, (errors.ObjectLostError, errors.ActorUnavailableError))
            if not lost and self._is_alive(actor.node):
                return unit, None
            self.add([unit])
            return unit, []
        if isinstance(answer, Exception):
            raise answer
        return unit, answer

    def _is_alive(self, node: str) -> bool:
        return any(each["NodeID"] == node and each["Alive"] for each in self.ray.nodes())

    def end(self) -> None:
        """End all actors at once; a file that one was writing does not appear."""
        for actor in self.actors:
            self.ray.kill(actor.handle)
        self.actors.clear()
