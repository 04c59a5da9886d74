# SPDX-License-Identifier: Apache-2.0
"""The run of a floor in a study: read the splits of a data set, choose on validation, write the test predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_llmboost.bundle.contract import IMAGE, LABEL
from monai_llmboost.engines.results import PREDICTIONS_FILE, prediction_row, write_predictions
from monai_llmboost.studies.datasets import key_metric, task_of
from monai_llmboost.studies.floors.features import plain, single_numbers
from monai_llmboost.studies.floors.names import SHAPE_FLOORS
from monai_llmboost.studies.floors.predictors import FLOORS, fit_floor
from monai_llmboost.studies.floors.shape_run import run_shape_floor, shapes_impossible
from monai_llmboost.studies.floors.shortcuts import auc_of_single_numbers
from monai_llmboost.studies.floors.splits import (
    TRAINING_SPLIT,
    VALIDATION_SPLIT,
    has_embedding,
    open_split,
    training_data,
)
from monai_llmboost.studies.plan import TEST_SPLIT, Plan, Run
from monai_llmboost.studies.run_folder import TEST, EpochResult, Evaluated, RunFolder, Trained

SPLITS = (TRAINING_SPLIT, VALIDATION_SPLIT, TEST_SPLIT)
CASE = "case"


@dataclass(frozen=True)
class Split:
    """The features of a split.

    Args:
        cases: names.
        labels: (cases,).
        features: (cases, F).
        numbers: the single numbers of each case, by name (cases,).
    """

    cases: list[str]
    labels: np.ndarray
    features: np.ndarray
    numbers: Mapping[str, np.ndarray]


def run_floor(plan: Plan, run: Run, folder: RunFolder) -> None:
    """Fit a floor to the training cases of a run, choose on validation, and write its predictions of the test cases."""
    if run.arm in SHAPE_FLOORS:
        run_shape_floor(plan, run, folder)
        return
    splits = {split: _read_split(plan, run, split) for split in SPLITS}
    task = task_of(open_split(plan, run, TEST_SPLIT))
    cases = {name: (split.features, split.labels) for name, split in splits.items()}
    chosen = fit_floor(FLOORS[run.arm], run.seed, cases, len(getattr(task, "class_names", ())), key_metric(task))
    for name, value in chosen.validation.items():
        print(f"{name}: validation {key_metric(task).label} {value:.4f}{' (chosen)' if name == chosen.name else ''}")
    test = splits[TEST_SPLIT]
    rows = [prediction_row(task, {CASE: case, "pred": pred, LABEL: label})
            for case, pred, label in zip(test.cases, chosen.scores, test.labels)]  # fmt: skip
    write_predictions(folder.path / TEST / PREDICTIONS_FILE, rows)
    end = EpochResult(0, chosen.validation[chosen.name])
    folder.write_trained(Trained(end, end))
    training = splits[TRAINING_SPLIT]
    alone = auc_of_single_numbers((training.numbers, training.labels), (test.numbers, test.labels))
    folder.write_evaluated(Evaluated(alone or None))


def why_impossible(plan: Plan, run: Run) -> str:
    """Return why a floor, the arm of a run, cannot be run on its data set, or ``""``."""
    if run.arm in SHAPE_FLOORS:
        return shapes_impossible(plan, run)
    task = task_of(open_split(plan, run, TEST_SPLIT))
    if not getattr(task, "class_names", None):
        return f"Floors are left out: they classify, and the task of the bundle is {task.name}."
    try:
        there, _ = (open_split(plan, run, split).validation_data for split in (TRAINING_SPLIT, VALIDATION_SPLIT))
    except (LookupError, OSError, RuntimeError, TypeError, ValueError) as error:  # of a user's data set
        return f"Floors are left out: the bundle's evaluation cannot open its training or validation cases ({error})."
    wanted = training_data(plan, run)
    names, of_training = _names(there), _names(wanted)
    found, needed = len(there), len(wanted)
    if names is not None and of_training is not None:  # few labels are repeated, see select_labelled
        found, needed = len({*names} & {*of_training}), len({*of_training})
    if found != needed:
        return (
            f"Floors are left out: with the split {TRAINING_SPLIT} the bundle's evaluation has {found} of the {needed} "
            "training cases."
        )
    return ""


def _names(data: Any) -> list[str] | None:
    names = getattr(data, "cases", None)
    return None if names is None else list(map(str, names))


def _read_split(plan: Plan, run: Run, split: str) -> Split:
    """Return the features of the cases of a split; of the training cases, only those that networks are trained on."""
    floor = FLOORS[run.arm]
    embedded = floor.takes_embedding and has_embedding(plan)
    names: list[str] = []
    labels, features = [], []
    numbers: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for batch in open_split(plan, run, split, embedded).validation_batches:
            images = batch[IMAGE].cpu()
            images = images[..., None] if images.ndim == 4 else images  # flat images
            names += map(str, batch[CASE])
            labels.append(torch.as_tensor(batch[LABEL]).reshape(-1).cpu())
            features.append(plain(images).flatten(1) if embedded else floor.features(plain(images), run.seed))
            for name, values in single_numbers(images).items() if floor.tests_shortcuts else ():
                numbers.setdefault(name, []).append(values)
    trained = _names(training_data(plan, run)) if split == TRAINING_SPLIT else None
    known = set(names if trained is None else trained)
    first = {name: index for index, name in reversed(list(enumerate(names)))}  # few labels are repeated
    kept = sorted(index for name, index in first.items() if name in known)
    return Split(
        [names[index] for index in kept],
        torch.cat(labels).numpy()[kept].astype(int),
        torch.cat(features).numpy()[kept],
        {name: torch.cat(values).numpy()[kept] for name, values in numbers.items()},
    )
