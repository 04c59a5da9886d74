# SPDX-License-Identifier: Apache-2.0
"""Successive halving of the learning rates of an arm, on validation only (Jamieson & Talwalkar 2016, arXiv:1502.07943).

All rates are trained for a few epochs, the worse half is dropped, the others are resumed, and so on until one is left,
which is trained to its end. Every decision waits for all runs that it compares, so it depends neither on their order
nor on the number of processes. Optuna's SuccessiveHalvingPruner decides as results arrive, so that their order changes
what it chooses; and it compares single runs, not means over seeds and folds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from monai_llmboost.bundle import Option
from monai_llmboost.studies.plan import Plan, Run
from monai_llmboost.studies.run_folder import RunFolder, Trained


@dataclass(frozen=True)
class DroppedRate:
    """A learning rate that was dropped, and the mean validation metric by which it was.

    Args:
        epoch: the epoch after which it was dropped.
        validation: mean validation metric of the epochs until then.
    """

    epoch: int
    validation: float


@dataclass(frozen=True)
class Halving:
    """The state of the halving of an arm.

    Args:
        waiting: runs to train next, each to an epoch; ``None`` is its end. Empty if all decisions are made.
        left: the rates that are not dropped.
        dropped: the dropped rates.
    """

    waiting: Mapping[Run, int | None]
    left: Sequence[float]
    dropped: Mapping[float, DroppedRate] = field(default_factory=dict)


def halve(
    plan: Plan,
    arm: str,
    dataset: str,
    folders: Mapping[Run, RunFolder],
    failed: Collection[str] = (),
    larger_is_better: bool = True,
) -> Halving:
    """Return the state of the halving of an arm's learning rates, which follows from the records of its runs alone.

    A rate with which a run diverged or failed does not take part, not even in earlier decisions, so that another rate
    takes its place.

    Args:
        plan: the study.
        arm: name of the arm.
        dataset: name of the data set.
        folders: folders of its runs.
        failed: names of runs that failed now, and are not waited for.
        larger_is_better: whether the largest mean is the best one.
    """
    tried: dict[float, list[Run]] = {rate: [] for rate in plan.lr_grid}
    for run in plan.searched(dataset):
        if run.arm == arm and run.learning_rate is not None:
            tried[run.learning_rate].append(run)
    stable = [rate for rate in tried if not any(folders[run].diverged for run in tried[rate])]
    whole = [rate for rate in stable if not any(run.name in failed for run in tried[rate])]
    left = whole or stable  # if every rate has failed runs, the others count
    dropped: dict[float, DroppedRate] = {}

    def waiting(result: Callable[[RunFolder], Trained | None]) -> list[Run]:
        runs = (run for rate in left for run in tried[rate])
        return [run for run in runs if run.name not in failed and result(folders[run]) is None]

    for epoch in plan.halvings:
        if len(left) < 2:
            break

        def at_epoch(folder: RunFolder, epoch: int = epoch) -> Trained | None:
            # A run without a record of this epoch that is trained was stopped before it by its patience.
            return folder.paused(epoch) or folder.trained

        if runs := waiting(at_epoch):
            return Halving(dict.fromkeys(runs, epoch), left, dropped)
        means = mean_validation(plan, {rate: [at_epoch(folders[run]) for run in tried[rate]] for rate in left})
        ranked = sorted(means, key=means.__getitem__, reverse=larger_is_better)  # of equal rates, the first of the grid
        better = ranked[: math.ceil(len(ranked) / 2)]
        dropped |= {rate: DroppedRate(epoch, means[rate]) for rate in ranked[len(better) :]}
        left = [rate for rate in left if rate in better]
    return Halving(dict.fromkeys(waiting(lambda folder: folder.trained)), left, dropped)


def mean_validation(plan: Plan, results: Mapping[float, Sequence[Trained | None]]) -> dict[float, float]:
    """Return the mean validation metric of the learning rates that have the most results, by rate.

    A rate with failed runs is not compared by the mean of its successful runs. Values that are no number do not count.
    """
    values = {}
    for rate, ends in results.items():
        found = [each.of(plan.weights).validation for each in ends if each]
        values[rate] = [value for value in found if value is not None and math.isfinite(value)]
    most = max(map(len, values.values()), default=0)
    return {rate: statistics.fmean(found) for rate, found in values.items() if found and len(found) == most}


def saved_epochs(plan: Plan) -> tuple[int, int]:
    """Return how many epochs halving saves at most in the whole study, and the epochs of its search without halving."""
    rates, runs = len(plan.lr_grid), sum(len(plan.searched(name)) for name in plan.sets) // len(plan.lr_grid)
    epochs, before, trained = plan.value(Option.EPOCHS), 0, 0
    for epoch in (*plan.halvings, epochs):
        trained += rates * (epoch - before)
        rates, before = math.ceil(rates / 2), epoch
    return runs * (len(plan.lr_grid) * epochs - trained), runs * len(plan.lr_grid) * epochs
