# SPDX-License-Identifier: Apache-2.0
"""Invalid labels, and classes without a case, are refused before training."""

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
        [np.array([0.0, 1.0]), np.array([1.0, 0.0])],  # vectors are not checked
        [],
    ],
)
def test_check_labels_accepts_class_numbers(labels):
    check_labels(loader(labels), NAMES, "training")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["ring", "shell"],
            r"labels of the training cases must be whole numbers from 0 to 1 \(shell, ring\), not 'ring'",
        ),
        ([0, 1, "1"], "not '1': number the classes in this order"),
        ([0.0, 1.0], r"not 0\.0"),
        ([torch.tensor(1.0)], r"not 1\.0"),
        ([0, 1, 2], "whole numbers from 0 to 1 .*, not 2"),
        ([0, -1], "not -1"),
        ([None, 1], None),
        ([0, 0, 0], "no training case has the class ring: add some"),
        ([1], "class shell"),
    ],
)
def test_check_labels_refuses_other_labels(labels, message):
    if message is None:
        check_labels(loader(labels), NAMES, "training")
        return
    with pytest.raises(ValueError, match=message):
        check_labels(loader(labels), NAMES, "training")


def test_check_labels_sees_labels_made_by_transforms():
    number = Lambdad("label", NAMES.index)
    check_labels(loader(["ring", "shell"], number), NAMES, "training")
    check_labels(loader(["ring"], lambda item: {**item, "label": 1}), NAMES, "training")
    with pytest.raises(ValueError, match=r"not 1\.0"):
        check_labels(loader([1, 0], EnsureTyped(["label"], dtype=torch.float32)), NAMES, "training")
    with pytest.raises(ValueError, match="not 5"):
        check_labels(loader(["ring"], Lambdad("label", lambda label: 5)), NAMES, "training")
    with pytest.raises(ValueError, match="class ring"):
        check_labels(loader([0, 0], EnsureTyped(["image"])), NAMES, "training")


def test_check_labels_ignores_data_without_labels(monkeypatch):
    for each in (None, [1, 2], DataLoader(Dataset([{"image": 1}])), object()):
        check_labels(each, NAMES, "training")
    check_labels(loader([7]), [], "training")
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 4, "val": 1, "test": 4})
    check_labels(BatchedVolumes(LabelledVolumes("phantom", "train", size=8), 2, "cpu"), NAMES, "training")
    with pytest.raises(ValueError, match="no validation case has the class ring"):
        check_labels(BatchedVolumes(LabelledVolumes("phantom", "val", size=8), 2, "cpu"), NAMES, "validation")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train#dataset#data": ["ring", "shell"]}, r"labels of the training cases .* not 'ring'"),
        ({"train#dataset#data": [0, 1, 3]}, "labels of the training cases .* not 3"),
        ({"train#dataset#data": [0.0, 1.0]}, r"labels of the training cases .* not 0\.0"),
        ({"train#dataset#data": [0, 0]}, "no training case has the class ring"),
        ({"validate#dataset#data": [1, 1]}, "no validation case has the class shell"),
        ({"validate#dataset#data": ["ring"]}, "labels of the validation cases .* not 'ring'"),
    ],
)
def test_training_with_wrong_labels_is_refused_before_it_starts(run_job, tmp_path, changes, message):
    """With data sets of users, in MONAI's loaders."""
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
def test_evaluation_without_a_class_is_refused_before_it_starts(run_job, monkeypatch):
    options = {**SMALL, "size": 8, "patch_size": 4}
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 4, "val": 4, "test": 1})
    run_job("train", "none", epochs=1, **options)
    with pytest.raises(ValueError, match="no evaluated case has the class ring"):
        run_job("evaluate", "none", **options)
