# SPDX-License-Identifier: Apache-2.0
"""The steps of a study: choose learning rates on validation, train, predict the test split, run floors, compare."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monai_llmboost.bundle import Option
from monai_llmboost.studies.collect import Finished, collect
from monai_llmboost.studies.cost.arms import cost_of_arms
from monai_llmboost.studies.datasets import check_datasets, key_metric
from monai_llmboost.studies.floors.names import SHAPE_FLOORS
from monai_llmboost.studies.floors.run import run_floor, why_impossible
from monai_llmboost.studies.halving import halve
from monai_llmboost.studies.jobs import Job, run_locally
from monai_llmboost.studies.one_run import evaluate, train
from monai_llmboost.studies.outcome import ALL_GOOD, COSTS, NOTHING_DONE, PLAN, PREPARED, REPORT, RESULTS, SOME_FAILED
from monai_llmboost.studies.page import write_study_report
from monai_llmboost.studies.plan import Plan, Run
from monai_llmboost.studies.plan_checks import check_start
from monai_llmboost.studies.plan_file import keep_plan
from monai_llmboost.studies.progress import StudyConsole
from monai_llmboost.studies.rates import ChosenRate, choose_rates
from monai_llmboost.studies.ray_jobs import run_on_ray
from monai_llmboost.studies.run_folder import RunFolder, write_json
from monai_llmboost.tasks.task import Task

SEARCH, TRAINING, EVALUATION, FLOORS = "choosing learning rates", "training", "predicting the test split", "floors"


def run_study(
    plan: Plan, output: Path, engine: str = "local", jobs: int = 1, address: str | None = None, cost_rounds: int = 5
) -> int:
    """Run a study, or resume it if it was interrupted, or let it grow: a plan with more seeds, arms or data sets.

    Writes into ``output``: ``study.json`` (the plan), ``runs/DATASET/ARM/...`` (a folder for each run, with its log),
    ``cost.json``, ``results.json`` and ``report.html``. Completed runs are not repeated; failed runs are repeated
    unless they diverged. A diverged learning rate is not a failure if the arm has another learning rate.

    Args:
        plan: the plan of the study.
        output: the study's folder.
        engine: ``"local"``, processes on this machine, or ``"ray"``, a cluster whose machines share ``output``.
        jobs: number of parallel runs on one machine.
        address: address of the Ray cluster; ``None`` starts a cluster on this machine.
        cost_rounds: rounds of timing.

    Returns:
        0 if every run was trained and evaluated, 1 if some were not, 2 if there is nothing to compare.

    Raises:
        ValueError: a wrong engine or number of jobs; an option without effect; the folder contains a study of other
            options, or of more arms, data sets or seeds; another process runs a study there; a data set with too few
            test cases.
        FileNotFoundError, ConnectionError: a data set is missing or cannot be downloaded; no Ray at the address.
    """
    check_start(plan, engine, jobs)
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(output / "lock").acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another study runs in {output}: give another --output") from error
    with held:
        tasks = check_datasets(plan)
        keep_plan(plan, output / PLAN, output / COSTS)

        def run_jobs(waiting: list[Job]) -> Iterator[dict[str, str] | None]:
            return run_on_ray(waiting, jobs, address) if engine == "ray" else run_locally(waiting, jobs)

        return _Study(plan, output, tasks, run_jobs).run(cost_rounds)


class _RunFolders(dict[Run, RunFolder]):
    """The folder of each run, created on first use and cached, so that its files are read only once."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, run: Run) -> RunFolder:
        return self.setdefault(run, RunFolder(self.root / run.name))


class _Study:
    def __init__(
        self, plan: Plan, output: Path, tasks: Mapping[str, Task], run_jobs: Callable[[list[Job]], Iterator[Any]]
    ) -> None:
        self.plan = plan
        self.job_plan = plan.with_shared_scans(output / PREPARED)
        self.output = output
        self.run_jobs = run_jobs
        self.folders = _RunFolders(output / "runs")
        self.failed: dict[str, str] = {}
        self.no_floors: dict[str, str] = {}
        self.console = StudyConsole()
        self.tasks = tasks
        self.metric = key_metric(next(iter(tasks.values())))

    def run(self, cost_rounds: int) -> int:
        plan, datasets = self.plan, self.plan.sets
        searched = [run for dataset in datasets for run in plan.searched(dataset)]
        self._search(searched)
        rates = {dataset: self._rates(dataset) for dataset in datasets}
        self._drop_divergence(searched, rates)
        chosen = {name: {arm: rate.chosen for arm, rate in found.items()} for name, found in rates.items()}
        runs = [run for dataset in datasets for run in plan.runs(dataset, chosen[dataset])]
        self._train(TRAINING, runs)
        trained = [run for run in runs if self.folders[run].trained]
        self._run(EVALUATION, [run for run in trained if not self.folders[run].evaluated], evaluate)
        if not any(self.folders[run].evaluated for run in trained):
            self.console.line(f"no run was finished: see the logs in {self.folders.root}")
            return NOTHING_DONE
        self._run_floors()
        return self._report(rates, cost_rounds)

    def _report(self, rates: Mapping[str, Mapping[str, ChosenRate]], cost_rounds: int) -> int:
        """Collect the results, write them and their page, and return the status of the study."""
        costs = self._costs(cost_rounds)
        finished = Finished(self.folders, rates, self.failed, costs, self.tasks, self.no_floors)
        results = collect(self.plan, finished)
        write_json(self.output / RESULTS, results.as_dict())
        write_study_report(results.as_dict(), self.output / REPORT)
        files = {"results": self.output / RESULTS, "to look at": self.output / REPORT}
        self.console.results(results, self.failed, files)
        compared = any(data.comparisons for data in results.datasets.values())
        if not self.failed:
            shutil.rmtree(self.output / PREPARED, ignore_errors=True)
        return NOTHING_DONE if not compared else SOME_FAILED if self.failed else ALL_GOOD

    def _search(self, runs: Sequence[Run]) -> None:
        """Train the runs that choose the learning rates, with halving only as far as they are compared."""
        if not self.plan.lr_halving:
            self._train(SEARCH, runs)
            return
        self.console.halving(self.plan)
        larger = self.metric.larger_is_better
        while waiting := {
            run: until
            for dataset in self.plan.sets
            for arm in self.plan.arms
            for run, until in halve(self.plan, arm, dataset, self.folders, self.failed, larger).waiting.items()
        }:
            self._train(SEARCH, waiting, waiting)
        for run in runs:
            if reason := self.folders[run].diverged:
                self.failed[run.name] = reason

    def _train(self, stage: str, runs: Iterable[Run], until: Mapping[Run, int | None] | None = None) -> None:
        waiting = []
        for run in runs:
            if self.folders[run].trained:
                continue
            if reason := self.folders[run].diverged:
                self.failed[run.name] = reason
            else:
                waiting.append(run)
        self._run(stage, waiting, partial(train, metric=self.metric.key), until or {})

    def _run_floors(self) -> None:
        """Run the floors of each data set, or note why it can have none."""
        waiting: list[Run] = []
        for dataset in self.plan.sets:
            left = [run for run in self.plan.floor_runs(dataset) if not self.folders[run].evaluated]
            of_shapes = [run for run in left if run.arm in SHAPE_FLOORS]
            of_classes = [run for run in left if run.arm not in SHAPE_FLOORS]
            for runs in filter(None, (of_shapes, of_classes)):
                if reason := why_impossible(self.plan, runs[0]):
                    self.no_floors[dataset] = reason
                else:
                    waiting += runs
        self._run(FLOORS, waiting, run_floor)

    def _run(
        self, stage: str, runs: list[Run], action: Callable[..., None], until: Mapping[Run, int | None] | None = None
    ) -> None:
        """Run jobs; ``until`` has the epochs after which trainings pause."""
        if not runs:
            return
        ends_at = until or {}
        arguments = {
            run: (self.job_plan, run, self.folders[run], *([ends_at[run]] if run in ends_at else [])) for run in runs
        }
        jobs = [Job(run.name, self.folders[run].path, action, arguments[run]) for run in runs]
        left = {run.name: self.folders[run] for run in runs}
        pauses = {run.name: epoch for run, epoch in ends_at.items()}
        # Closing on interruption ends the processes.
        with closing(self.run_jobs(jobs)) as ends, self.console.bar() as bar:  # type: ignore[type-var]
            task = bar.add_task(stage, total=len(jobs))
            for ended in ends:
                for name, reason in (ended or {}).items():
                    folder = left.pop(name)
                    self.failed.pop(name, None)  # from an earlier stage
                    if reason:
                        self.failed[name] = reason
                    end = reason or ("done" if stage == EVALUATION else self._end_of(folder, pauses.get(name)))
                    self.console.line(f"{stage} {len(jobs) - len(left)}/{len(jobs)} {name}: {end}")
                parts = (self._part_done(folder, pauses.get(name)) for name, folder in left.items())
                begun = 0 if stage in (EVALUATION, FLOORS) else sum(parts)
                bar.update(task, completed=len(jobs) - len(left) + begun)

    def _part_done(self, folder: RunFolder, until: int | None) -> float:
        """Return the completed fraction of a training to an epoch, from the rows of its learning curves."""
        epochs = self.plan.value(Option.EPOCHS) if until is None else until
        return min(0.99, folder.epochs_done() / epochs) if isinstance(epochs, int) else 0.0

    def _end_of(self, folder: RunFolder, until: int | None) -> str:
        trained = folder.trained or (None if until is None else folder.paused(until))
        end = trained and trained.of(self.plan.weights)
        if not end or end.validation is None:
            return "done"
        epoch = f" in epoch {end.epoch}" if end.epoch else ""  # a floor has no epochs
        return f"validation {self.metric.label} {end.validation:.3f}{epoch}"

    def _rates(self, dataset: str) -> dict[str, ChosenRate]:
        rates = choose_rates(self.plan, self.folders, dataset, self.metric.larger_is_better, self.failed)
        if len(self.plan.lr_grid) > 1:
            self.console.rates(dataset, rates)
        return rates

    def _drop_divergence(self, runs: Iterable[Run], rates: Mapping[str, Mapping[str, ChosenRate]]) -> None:
        """Do not count a diverged learning rate as a failure if the arm has another one."""
        for run in runs:
            if run.arm in rates[run.dataset] and self.folders[run].diverged:
                self.failed.pop(run.name, None)

    def _costs(self, rounds: int) -> dict[str, Any]:
        """Return the costs, measured once, so that a resumed study has the same numbers."""
        file = self.output / COSTS
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
        arms = {arm: self.plan.configs(arm) for arm in self.plan.arms}
        own = {arm: self.plan.own_options(arm) for arm in arms}
        costs = cost_of_arms(arms, self.plan.options_for(next(iter(self.plan.sets))), rounds, own)
        write_json(file, costs)
        return costs
