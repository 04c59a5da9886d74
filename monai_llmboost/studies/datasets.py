# SPDX-License-Identifier: Apache-2.0
"""The data sets and the task of a study, created by its bundle."""

from __future__ import annotations

from collections import Counter

from monai_llmboost.bundle import BundleJob, Option
from monai_llmboost.data.labels import labels_of, patients_of
from monai_llmboost.studies.plan import TEST_SPLIT, Plan
from monai_llmboost.studies.statistics.influence import FEWEST_CASES
from monai_llmboost.tasks import Classification
from monai_llmboost.tasks.task import Task, TaskMetric


def open_job(plan: Plan, dataset: str, job: str = "train", **more: str) -> BundleJob:
    """Return a job of the bundle on a data set with the first arm of a plan; ``more`` are further options."""
    folds = {Option.FOLDS: plan.folds} if plan.folds else {}
    return BundleJob.read(plan.configs(plan.arms[0], job), {**plan.options_for(dataset), **folds, **more})


def task_of(job: BundleJob) -> Task:
    """Return the task of a bundle: its item ``task``, or else a classification into its ``class_names``."""
    return job.item("task", "study") if "task" in job else Classification(job.class_names)


def key_metric(task: Task) -> TaskMetric:
    """Return the first metric of a task, the one that validation chooses by."""
    return next(iter(task.metrics.values()))


def check_datasets(plan: Plan) -> dict[str, Task]:
    """Check before training that every data set exists and has enough test cases; return the task of each.

    A download that the plan asks for happens here once, rather than in several runs at the same time. The test cases
    are not read except for counting their labels.

    Raises:
        ValueError: fewer than two test cases of a class, or fewer than two patients.
        Any error of the bundle if it cannot open a data set.
    """
    tasks = {}
    for dataset in plan.sets:
        job = open_job(plan, dataset, "evaluate", **{Option.SPLIT: TEST_SPLIT})
        task = tasks[dataset] = task_of(job)
        # If a data set does not list its labels, they are counted at the end of the study.
        labels = labels_of(job.validation_data)
        counts = Counter(map(task.label, labels))
        # Without classes, any cases will do.
        rare = [f"{counts[name]} of {name}" for name in getattr(task, "class_names", ()) if counts[name] < FEWEST_CASES]
        if labels and rare:
            raise ValueError(
                f"each class of {dataset} needs {FEWEST_CASES} test cases or more, not {', '.join(rare)}: give more "
                "test cases, or another data set"
            )
        if len(labels) == 1:
            raise ValueError(f"{dataset} has a single test case: give {FEWEST_CASES} or more")
        patients = set(patients_of(job.validation_data).values())
        if len(patients) == 1:
            raise ValueError(f"all test cases of {dataset} are of one patient: give test cases of other patients too")
    return tasks
