# SPDX-License-Identifier: Apache-2.0
"""Labels that are none, or a class without a case, are refused in one sentence before anything is trained."""

import numpy as np
import pytest
import torch
from conftest import SMALL
from monai.data import DataLoader, Dataset
from monai.transforms import EnsureTyped, Lambdad

from monai_llmboost.data import BatchedVolumes, LabelledVolumes
from monai_llmboost.data.labels import check_labels

NAMES = ["shell", "ring"]


def loader(labels, *transforms):
    return DataLoader(
        Dataset([{"image": torch.zeros(1), "label": label} for label in labels], list(transforms) or None)
    )


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 0],
        [np.int64(1), np.int8(0)],
        [torch.tensor(1), torch.tensor([0])],
        [[0], [1]],
        [True, False],
        [np.array([0.0, 1.0]), np.array([1.0, 0.0])],  # left to whoever uses such
        [],
    ],
)
def test_labels_that_are_right(labels):
    check_labels(loader(labels), NAMES, "training")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["ring", "shell"],
            r"labels of the training cases to be whole numbers from 0 to 1 \(shell, ring\), got 'ring'",
        ),
        ([0, 1, "1"], "got '1': number the classes in this order"),
        ([0.0, 1.0], r"got 0\.0"),
        ([torch.tensor(1.0)], r"got 1\.0"),
        ([0, 1, 2], "whole numbers from 0 to 1 .*, got 2"),
        ([0, -1], "got -1"),
        ([None, 1], None),
        ([0, 0, 0], "expected training cases of every class, got none of ring: add some"),
        ([1], "got none of shell"),
    ],
)
def test_labels_that_are_none(labels, message):
    if message is None:
        check_labels(loader(labels), NAMES, "training")
        return
    with pytest.raises(ValueError, match=message):
        check_labels(loader(labels), NAMES, "training")


def test_labels_that_transforms_make():
    number = Lambdad("label", NAMES.index)
    check_labels(loader(["ring", "shell"], number), NAMES, "training")
    check_labels(loader(["ring"], lambda item: {**item, "label": 1}), NAMES, "training")
    with pytest.raises(ValueError, match=r"got 1\.0"):
        check_labels(loader([1, 0], EnsureTyped(["label"], dtype=torch.float32)), NAMES, "training")
    with pytest.raises(ValueError, match="got 5"):
        check_labels(loader(["ring"], Lambdad("label", lambda label: 5)), NAMES, "training")
    with pytest.raises(ValueError, match="got none of ring"):
        check_labels(loader([0, 0], EnsureTyped(["image"])), NAMES, "training")


def test_what_keeps_no_labels_is_left_alone(monkeypatch):
    for each in (None, [1, 2], DataLoader(Dataset([{"image": 1}])), object()):
        check_labels(each, NAMES, "training")
    check_labels(loader([7]), [], "training")
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 4, "val": 1, "test": 4})
    check_labels(BatchedVolumes(LabelledVolumes("phantom", "train", size=8), 2, "cpu"), NAMES, "training")
    with pytest.raises(ValueError, match="expected validation cases of every class, got none of ring"):
        check_labels(BatchedVolumes(LabelledVolumes("phantom", "val", size=8), 2, "cpu"), NAMES, "validation")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train#dataset#data": ["ring", "shell"]}, r"labels of the training cases .* got 'ring'"),
        ({"train#dataset#data": [0, 1, 3]}, "labels of the training cases .* got 3"),
        ({"train#dataset#data": [0.0, 1.0]}, r"labels of the training cases .* got 0\.0"),
        ({"train#dataset#data": [0, 0]}, "expected training cases of every class, got none of ring"),
        ({"validate#dataset#data": [1, 1]}, "expected validation cases of every class, got none of shell"),
        ({"validate#dataset#data": ["ring"]}, "labels of the validation cases .* got 'ring'"),
    ],
)
def test_a_training_is_refused_before_it_begins(run_job, tmp_path, changes, message):
    """With data sets of somebody's own, by MONAI's loaders."""
    own = {}
    for part in ("train", "validate"):
        labels = changes.get(f"{part}#dataset#data", [0, 1])
        items = f"$[dict(image=torch.zeros(1, 8, 8, 8), label=x, case=str(x)) for x in {labels}]"
        own[f"{part}#dataset"] = {"_target_": "Dataset", "data": items}
        own[f"{part}#dataloader"] = {"_target_": "DataLoader", "dataset": f"@{part}#dataset", "batch_size": 2}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pt").write_bytes(b"earlier")
    with pytest.raises(ValueError, match=message):
        run_job("train", "none", epochs=1, **{**SMALL, "size": 8, "patch_size": 4, **own})
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["model.pt"]


@pytest.mark.filterwarnings("ignore")
def test_an_evaluation_is_refused_before_it_predicts(run_job, monkeypatch):
    options = {**SMALL, "size": 8, "patch_size": 4}
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 4, "val": 4, "test": 1})
    run_job("train", "none", epochs=1, **options)
    with pytest.raises(ValueError, match="expected evaluated cases of every class, got none of ring"):
        run_job("evaluate", "none", **options)
