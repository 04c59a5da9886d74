# SPDX-License-Identifier: Apache-2.0
"""Units of work: batches that an actor predicts in one call, and what is done again if it ends in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

# Batches in a unit if processes read scans ahead, which they do only within a unit.
BATCHES_OF_READERS = 16
# An actor that ends this often with the same work ends because of this work.
MOST_DEATHS = 2


@dataclass(frozen=True)
class Unit:
    """Batches that an actor predicts in one call.

    The composition of a batch never changes, so that its numbers are those of one process: to predict a single case,
    the other cases of its batch keep their places, and are not read.

    Args:
        batches: indices of the cases of each batch.
        only: index of the only case that is read; ``None`` for all.
        deaths: how many actors ended while they did this work.

    Example:
        >>> Unit([[0, 1], [2]]).cases
        [0, 1, 2]
        >>> Unit([[0, 1]], deaths=1).after_death()
        [Unit(batches=[[0, 1]], only=0, deaths=1), Unit(batches=[[0, 1]], only=1, deaths=1)]
        >>> Unit([[0, 1]], only=1, deaths=1).after_death()
        []
    """

    batches: Sequence[Sequence[int]]
    only: int | None = None
    deaths: int = 0

    @property
    def cases(self) -> list[int]:
        """The cases that are predicted."""
        return [case for batch in self.batches for case in batch] if self.only is None else [self.only]

    def after_death(self) -> list[Unit]:
        """Return what is done again after an actor ended with this unit; nothing if its only case is to blame."""
        deaths = self.deaths + 1
        if len(self.batches) > 1:
            return [Unit([batch], deaths=deaths) for batch in self.batches]
        if deaths < MOST_DEATHS:
            return [replace(self, deaths=deaths)]
        if len(self.cases) == 1:
            return []
        return [Unit(self.batches, case, deaths - 1) for case in self.cases]


def make_units(batches: Sequence[Sequence[int]], actors: int, num_workers: int) -> list[Unit]:
    """Divide batches into units, at least two for each actor where there are enough batches.

    Args:
        batches: indices of the cases of each batch.
        actors: number of actors.
        num_workers: processes that read scans for each actor.

    Example:
        >>> make_units([[0, 1], [2, 3], [4]], actors=2, num_workers=0)[-1]
        Unit(batches=[[4]], only=None, deaths=0)
    """
    size = max(1, min(BATCHES_OF_READERS, len(batches) // (2 * actors))) if num_workers else 1
    return [Unit(batches[start : start + size]) for start in range(0, len(batches), size)]
