# SPDX-License-Identifier: Apache-2.0
"""Collection of a study's results from the files of its runs."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from monai_llmboost.artifacts.files import plain_cell
from monai_llmboost.bundle import BundleJob, Option
from monai_llmboost.data.labels import patients_of
from monai_llmboost.studies.cost.measure import device_name
from monai_llmboost.studies.datasets import key_metric, open_job
from monai_llmboost.studies.floors.shortcuts import shortcut_warning
from monai_llmboost.studies.plan import TEST_SPLIT, Plan, Run
from monai_llmboost.studies.rates import ChosenRate
from monai_llmboost.studies.results import (
    ArmResults,
    Curves,
    DatasetResults,
    FailedRun,
    FloorResults,
    MetricName,
    StudyResults,
)
from monai_llmboost.studies.run_folder import OTHER_WEIGHTS, TEST, RunFolder
from monai_llmboost.studies.statistics.compare import arm_summary, compare_arms, compare_with_floors
from monai_llmboost.studies.statistics.influence import can_be_compared
from monai_llmboost.studies.statistics.records import Summary
from monai_llmboost.studies.statistics.roc import roc_curves
from monai_llmboost.studies.statistics.treatment import with_treatment
from monai_llmboost.studies.statistics.verdict import floor_caveat, with_caveats
from monai_llmboost.tasks.task import Task

SOFTWARE = ("monai-llmboost", "monai", "torch", "numpy", "scikit-learn", "scipy")
CHOSEN_BY = {"best": "epoch of the best validation {}", "last": "last epoch"}


@dataclass(frozen=True)
class Finished:
    """The completed runs of a study.

    Args:
        folders: run folders, by run.
        rates: for each data set, the learning rate of each arm; a missing arm has failed.
        failed: reason of each failure, by name of the run.
        cost: result of :func:`monai_llmboost.studies.cost_of_arms`.
        tasks: tasks, by data set.
        no_floors: reason why a data set has no floors, by data set.
    """

    folders: Mapping[Run, RunFolder]
    rates: Mapping[str, Mapping[str, ChosenRate]]
    failed: Mapping[str, str]
    cost: Mapping[str, Any]
    tasks: Mapping[str, Task]
    no_floors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tested:
    """What the runs of a data set say about its test cases.

    Args:
        scores: by arm (runs, cases, values).
        labels: (cases,).
        patients: patient of each case (cases,), if the data set knows them.
    """

    scores: Mapping[str, np.ndarray]
    labels: np.ndarray
    patients: np.ndarray | None = None


def collect(plan: Plan, finished: Finished) -> StudyResults:
    """Return all results of a study."""
    jobs = {dataset: open_job(plan, dataset) for dataset in plan.sets}
    first = next(iter(plan.sets))
    task = finished.tasks[first]
    return StudyResults(
        study={**plan.as_dict(), "chosen_by": chosen_by(plan.weights, task)},
        metrics={name: MetricName(metric.label, metric.larger_is_better) for name, metric in task.metrics.items()},
        software={name: version(name) for name in SOFTWARE},
        device=device_and_precision(jobs[first]),
        command=shlex.join(["monai-llmboost", *sys.argv[1:]]),
        model_card=jobs[first].intended_use,
        datasets={name: _of_dataset(plan, name, job, finished) for name, job in jobs.items()},
    )


def device_and_precision(job: BundleJob) -> str:
    """Return the name of a job's device, and its precision if that is not float32."""
    name = device_name(job.device)
    return name if job.amp_dtype is None else f"{name}, {str(job.amp_dtype).removeprefix('torch.')}"


def chosen_by(weights: str, task: Task) -> str:
    """Return as text how the weights were chosen."""
    return CHOSEN_BY[weights].format(key_metric(task).label)


def paired_runs(plan: Plan, dataset: str, finished: Finished) -> dict[str, list[Run]]:
    """Return for each arm the runs of the seeds that every arm has completed; arms without any run are left out.

    A pair is two runs with the same seed: if one arm has failed with a seed, the other arms' runs have no partner.
    """
    rates = {arm: rate.chosen for arm, rate in finished.rates[dataset].items()}
    done: dict[str, list[Run]] = {}
    for run in plan.runs(dataset, rates):
        if finished.folders[run].evaluated:
            done.setdefault(run.arm, []).append(run)
    counts = [Counter(run.seed for run in runs) for runs in done.values()]
    paired = {seed for seed in range(plan.seeds) if all(count[seed] == (plan.folds or 1) for count in counts)}
    return {arm: [run for run in done[arm] if run.seed in paired] for arm in plan.arms if arm in done and paired}


def floor_runs(plan: Plan, dataset: str, finished: Finished, seeds: set[int]) -> dict[str, list[Run]]:
    """Return for each floor its runs with the given seeds; a floor that has not completed them is left out."""
    runs: dict[str, list[Run]] = {floor: [] for floor in plan.floors if seeds}
    for run in plan.floor_runs(dataset):
        if run.seed in seeds:
            runs[run.arm].append(run)
    return {floor: own for floor, own in runs.items() if all(finished.folders[run].evaluated for run in own)}


def _of_dataset(plan: Plan, dataset: str, job: BundleJob, finished: Finished) -> DatasetResults:
    task = finished.tasks[dataset]
    runs = paired_runs(plan, dataset, finished)
    folders = {arm: [finished.folders[run] for run in several] for arm, several in runs.items()}
    of_floors = floor_runs(plan, dataset, finished, {run.seed for several in runs.values() for run in several})
    floor_folders = {floor: [finished.folders[run] for run in several] for floor, several in of_floors.items()}
    patients = patients_of(open_job(plan, dataset, "evaluate", **{Option.SPLIT: TEST_SPLIT}).validation_data)
    test = read_test({**folders, **floor_folders}, TEST, task, patients)
    others = read_test(folders, OTHER_WEIGHTS, task, patients)
    scores = {arm: test.scores[arm] for arm in folders}
    references = [arm for arm in plan.compared_with if arm in scores]
    compared = references and len(scores) > 1
    arms = {arm: ArmResults(_failed_runs(dataset, arm, finished)) for arm in (*plan.arms, *plan.floors)}
    for arm, of_arm in folders.items():
        ends = [end.of(plan.weights) for folder in of_arm if (end := folder.trained)]
        arms[arm] = ArmResults(
            arms[arm].failed,
            metrics=_summaries(plan, task, test, arm),
            validation=_validation(plan, of_arm),
            epochs=[end.epoch for end in ends],
            other_weights=_summaries(plan, task, others, arm),
            other_chosen_by=chosen_by(plan.other_weights, task),
        )
    diagnostics = {arm: _diagnostics(of_arm) for arm, of_arm in folders.items()}
    for floor, of_floor in floor_folders.items():
        summaries = _summaries(plan, task, test, floor)
        arms[floor] = ArmResults(arms[floor].failed, summaries, _validation(plan, of_floor))
    floors, caveats = compare_floors(plan, task, arms, floor_folders, test)
    comparisons = []
    if compared:
        comparisons = compare_arms(
            scores, test.labels, references, plan.folds or 1, task, plan.compares, patients=test.patients
        )
    roc = {arm: roc_curves(task.metrics, of_arm, test.labels) for arm, of_arm in test.scores.items()}
    return DatasetResults(
        cases={
            "train": getattr(job.training_data, "num_cases", len(job.training_data)),
            "val": len(job.validation_data),
            "test": len(test.labels),
            **({} if test.patients is None else {"test_patients": len(np.unique(test.patients))}),
        },
        class_names=list(getattr(task, "class_names", ())),
        learning_rates=finished.rates[dataset],
        arms=arms,
        comparisons=with_caveats([with_treatment(each, diagnostics) for each in comparisons], caveats),
        curves={arm: _curves(task, of_arm) for arm, of_arm in folders.items()},
        roc={arm: curves for arm, curves in roc.items() if curves},
        cost=finished.cost,
        diagnostics=diagnostics,
        floors=replace(floors, left_out=finished.no_floors.get(dataset, "")),
        caveats=caveats,
    )


def compare_floors(
    plan: Plan,
    task: Task,
    arms: Mapping[str, ArmResults],
    folders: Mapping[str, Sequence[RunFolder]],
    test: Tested,
) -> tuple[FloorResults, list[str]]:
    """Return the comparison of the base with the floors, and the sentences that verdicts must begin with."""
    alone = next((found for of_floor in folders.values() if (found := _diagnostics(of_floor))), {})
    numbers = {name: summary.mean for name, summary in alone.items()}
    reached = [arms[arm].metrics["auc"].mean for arm in plan.arms if "auc" in arms[arm].metrics]
    shortcut = shortcut_warning(numbers, max(reached, default=None))
    base = next(iter(plan.compared_with), None)
    if base is None or base not in test.scores or not folders:
        return FloorResults([], numbers, shortcut), []
    comparisons = compare_with_floors(
        test.scores, test.labels, base, list(folders), plan.folds or 1, task, test.patients
    )
    name, metric = next(iter(task.metrics.items()))
    by_first = [each for each in comparisons if each.metric == name]
    if name not in arms[base].metrics:
        return FloorResults(comparisons, numbers, shortcut), []
    caveat = floor_caveat((base, arms[base].metrics[name].mean), by_first, metric)
    return FloorResults(comparisons, numbers, shortcut), [caveat] if caveat else []


def _failed_runs(dataset: str, arm: str, finished: Finished) -> list[FailedRun]:
    return [FailedRun(*run) for run in finished.failed.items() if run[0].split("/")[:2] == [dataset, arm]]


def _validation(plan: Plan, folders: Sequence[RunFolder]) -> Summary:
    ends = [end.of(plan.weights).validation for folder in folders if (end := folder.trained)]
    return Summary.of([end for end in ends if end is not None])


def read_test(
    folders: Mapping[str, Sequence[RunFolder]], place: str, task: Task, patients: Mapping[str, str]
) -> Tested:
    """Return what the runs of all arms say about the test cases.

    Args:
        folders: folders of the runs, by arm.
        place: folder of the predictions in each.
        task: the task.
        patients: patient of each case, by name; empty if they are not known.

    Raises:
        ValueError: runs differ in their cases, or a case is not one of those with patients.
    """
    scores: dict[str, list[np.ndarray]] = {arm: [] for arm in folders}
    cases: list[tuple[str, str]] = []
    labels = np.empty(0)
    for arm, several in folders.items():
        for folder in several:
            rows = folder.predictions(place)
            own = [(plain_cell(row["case"]), plain_cell(row.get("label", ""))) for row in rows]
            if cases and own != cases:
                raise ValueError(f"{folder.path} has other test cases than the runs before it: remove its folder")
            if not cases:
                cases, labels = own, task.read_labels(rows)
            scores[arm].append(task.read_scores(rows))
    if patients and (unknown := [name for name, _ in cases if name not in patients]):
        raise ValueError(f"the data set has no patient for the predicted case {unknown[0]!r}: name its cases alike")
    of_cases = np.array([patients[name] for name, _ in cases]) if patients and cases else None
    return Tested({arm: np.stack(several) for arm, several in scores.items()}, labels, of_cases)


def _summaries(plan: Plan, task: Task, test: Tested, arm: str) -> dict[str, Summary]:
    """Return the metrics that enough test cases have."""
    return {
        name: arm_summary(name, test.scores[arm], test.labels, plan.folds or 1, task, test.patients)
        for name, metric in task.metrics.items()
        if can_be_compared(metric, test.scores[arm], test.labels)
    }


def _curves(task: Task, folders: Sequence[RunFolder]) -> Curves:
    key = key_metric(task).key
    runs = [folder.curves() for folder in folders]
    columns = ([[row.get(column) for row in run] for run in runs] for column in ("train_loss", key))
    return Curves([row["epoch"] for row in max(runs, key=len)], *columns)


def _diagnostics(folders: Sequence[RunFolder]) -> dict[str, Summary] | None:
    measured = [found for folder in folders if (found := folder.diagnostics()) is not None]
    return {name: Summary.of([run[name] for run in measured]) for name in measured[0]} if measured else None
