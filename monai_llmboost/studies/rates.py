# SPDX-License-Identifier: Apache-2.0
"""The learning rate of each arm, chosen on validation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from monai_llmboost.studies.halving import DroppedRate, halve, mean_validation
from monai_llmboost.studies.plan import Plan, Run
from monai_llmboost.studies.run_folder import RunFolder


@dataclass(frozen=True)
class ChosenRate:
    """The learning rate of an arm on a data set.

    Args:
        chosen: the rate; ``None`` is the bundle's own learning rate.
        validation: mean validation metric of each compared rate, by the rate as text.
        diverged: rates with which a run diverged.
        at_edge: whether the chosen rate is the smallest or the largest of the grid.
        dropped: rates that were dropped early; ``None`` without halving.

    Example:
        >>> ChosenRate(0.001, {"0.001": 0.8, "0.003": 0.7}, at_edge=True).as_dict("auc")["validation_auc"]
        {'0.001': 0.8, '0.003': 0.7}
    """

    chosen: float | None
    validation: Mapping[str, float] = field(default_factory=dict)
    diverged: list[float] = field(default_factory=list)
    at_edge: bool = False
    dropped: Mapping[float, DroppedRate] | None = None

    def as_dict(self, metric: str) -> dict[str, Any]:
        """Return the rate for ``results.json``."""
        return {
            "chosen": self.chosen,
            f"validation_{metric}": dict(self.validation),
            "diverged": self.diverged,
            "at_edge": self.at_edge,
            **({} if self.dropped is None else {"dropped": self._dropped(metric)}),
        }

    def _dropped(self, metric: str) -> dict[str, Any]:
        found = self.dropped or {}
        return {
            f"{rate:g}": {"epoch": each.epoch, f"validation_{metric}": each.validation} for rate, each in found.items()
        }


def choose_rates(
    plan: Plan,
    folders: Mapping[Run, RunFolder],
    dataset: str,
    larger_is_better: bool = True,
    failed: Collection[str] = (),
) -> dict[str, ChosenRate]:
    """Return for each arm the learning rate with the best mean validation metric; arms without runs are left out.

    The means use the weights that the study evaluates. A rate is not chosen if a run diverged with it, or if more runs
    failed with it than with another rate.

    Args:
        plan: the study.
        folders: folders of its runs.
        dataset: name of the data set.
        larger_is_better: whether the largest mean is the best one.
        failed: names of failed runs, used with halving only.
    """
    if len(plan.lr_grid) < 2:
        return {arm: ChosenRate(plan.lr_grid[0] if plan.lr_grid else None) for arm in plan.arms}
    runs: dict[tuple[str, float | None], list[RunFolder]] = {}
    for run in plan.searched(dataset):
        runs.setdefault((run.arm, run.learning_rate), []).append(folders[run])
    rates = {}
    for arm in plan.arms:
        of_arm = {rate: runs[arm, rate] for rate in plan.lr_grid}
        if not plan.lr_halving:
            best = _best_rate(plan, of_arm, larger_is_better)
        else:
            halved = halve(plan, arm, dataset, folders, failed, larger_is_better)
            # A diverged rate is reported, too.
            kept = {rate: of_arm[rate] for rate in of_arm if rate not in halved.dropped}
            best = _best_rate(plan, kept, larger_is_better)
            best = best and replace(best, dropped=halved.dropped)
        if best:
            rates[arm] = best
    return rates


def _best_rate(plan: Plan, tried: Mapping[float, list[RunFolder]], larger_is_better: bool) -> ChosenRate | None:
    """Return the best of the rates that an arm tried; ``None`` if none can be chosen."""
    diverged = [rate for rate, folders in tried.items() if any(folder.diverged for folder in folders)]
    ends = {rate: [each.trained for each in folders] for rate, folders in tried.items() if rate not in diverged}
    means = mean_validation(plan, ends)
    if not means:
        return None
    best = (max if larger_is_better else min)(means, key=means.__getitem__)
    at_edge = best in (min(plan.lr_grid), max(plan.lr_grid))
    return ChosenRate(best, {f"{rate:g}": mean for rate, mean in means.items()}, diverged, at_edge)
