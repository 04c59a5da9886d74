# SPDX-License-Identifier: Apache-2.0
"""The run of a shape floor in a study: the mean of the training label maps, compared with those of the test cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from monai_llmboost.bundle import BundleJob
from monai_llmboost.bundle.contract import IMAGE, LABEL
from monai_llmboost.data.labelled.label_maps import class_numbers, read_label_map
from monai_llmboost.data.transforms import LoadScansd
from monai_llmboost.engines.evaluation.mask_numbers import MeasuredCase
from monai_llmboost.engines.results import PREDICTIONS_FILE, write_predictions
from monai_llmboost.studies.datasets import task_of
from monai_llmboost.studies.floors.names import REGISTERED_SHAPE
from monai_llmboost.studies.floors.shapes import (
    atlas_shape,
    choose_threshold,
    from_ras,
    make_atlas,
    normalized,
    to_ras,
)
from monai_llmboost.studies.floors.splits import VALIDATION_SPLIT, open_split, training_data
from monai_llmboost.studies.plan import TEST_SPLIT, Plan, Run
from monai_llmboost.studies.run_folder import TEST, EpochResult, Evaluated, RunFolder, Trained
from monai_llmboost.tasks import measure_mask

CASE = "case"
Item = Mapping[str, Any]


@dataclass(frozen=True)
class Files:
    """Reads the cases of a bundle for segmentation from their files.

    Args:
        reader: reader of scans and label maps.
        values: value of each structure in the label maps.
    """

    reader: Any
    values: Sequence[int]

    @classmethod
    def of(cls, job: BundleJob) -> Files:
        """Return the files of a job."""
        return cls(job.item("reader", "study"), list(job.item("label_values", "study")))

    def label(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """Return the class numbers of a case (i, j, k), and its affine."""
        values, affine = read_label_map(item[LABEL], self.reader)
        return class_numbers(values, self.values), affine

    def labels(self, items: Sequence[Item]) -> Iterator[np.ndarray]:
        """Yield the class numbers of cases along R, A and S."""
        return (to_ras(*self.label(item)) for item in items)

    def image(self, item: Item, shape: Sequence[int]) -> Tensor:
        """Return the first channel of the scan of a case along R, A and S, scaled to a box."""
        given = item[IMAGE]
        first = next(path for path in ([given] if isinstance(given, (str, Path)) else given) if path)
        volume = LoadScansd(IMAGE, self.reader)({IMAGE: first})[IMAGE]
        return normalized(to_ras(volume.as_tensor()[0].numpy(), volume.affine.numpy()), shape)


def run_shape_floor(plan: Plan, run: Run, folder: RunFolder) -> None:
    """Take the mean of the training label maps, choose its threshold on validation, and evaluate it on the test cases.

    Each scan is evaluated on its own grid, as the networks are.
    """
    job = open_split(plan, run, TEST_SPLIT)
    task, files = task_of(job), Files.of(job)
    structures = task.structures  # type: ignore[attr-defined]  # why_impossible asks for it
    training = one_of_each(items_of(training_data(plan, run)))
    validation = items_of(open_split(plan, run, VALIDATION_SPLIT).validation_data)
    shape = atlas_shape(label.shape for label in files.labels(training))
    registered = run.arm == REGISTERED_SHAPE

    def image(item: Item) -> Tensor | None:
        return files.image(item, shape) if registered else None

    images = (files.image(item, shape) for item in training) if registered else None
    atlas = make_atlas(files.labels(training), len(structures), shape, images)
    pairs = ((label, image(item)) for label, item in zip(files.labels(validation), validation))
    threshold, dice = choose_threshold(atlas, pairs)
    print(f"{run.arm}: threshold {threshold:g}, validation Dice {dice:.4f} on {' x '.join(map(str, shape))} voxels")
    cases = []
    for item in items_of(job.validation_data):
        label, affine = files.label(item)
        mask = from_ras(atlas.predict(to_ras(label, affine).shape, threshold, image(item)), affine)
        cases.append(MeasuredCase(str(item[CASE]), measure_mask(mask, label, affine, len(structures))))
    write_predictions(folder.path / TEST / PREDICTIONS_FILE, [case.row(task) for case in cases])  # type: ignore[arg-type]
    end = EpochResult(0, dice)
    folder.write_trained(Trained(end, end))
    folder.write_evaluated(Evaluated(None))


def items_of(data: Any) -> list[Item]:
    """Return the items of a data set that have a case and the path of a label map."""
    items = getattr(data, "data", None)
    items = items if isinstance(items, Sequence) else ()
    return [item for item in items if CASE in item and isinstance(item.get(LABEL), (str, Path))]


def one_of_each(items: Sequence[Item]) -> list[Item]:
    """Return the items without repetitions of a case: few labels are repeated in training."""
    return list({item[CASE]: item for item in items}.values())


def shapes_impossible(plan: Plan, run: Run) -> str:
    """Return why shape floors cannot be run on the data set of a run, or ``""``."""
    task = task_of(open_split(plan, run, TEST_SPLIT))
    if not getattr(task, "structures", None):
        return f"Floors are left out: they need label maps, and the task of the bundle is {task.name}."
    try:
        found = [items_of(open_split(plan, run, split).validation_data) for split in (VALIDATION_SPLIT, TEST_SPLIT)]
        found.append(items_of(training_data(plan, run)))
    except (LookupError, OSError, RuntimeError, TypeError, ValueError) as error:  # of a user's data set
        return f"Floors are left out: the bundle's evaluation cannot open its validation or test cases ({error})."
    return "" if all(found) else "Floors are left out: the data set does not know the files of its label maps."
