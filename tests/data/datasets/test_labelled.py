# SPDX-License-Identifier: Apache-2.0
"""A fraction of the labels: of every class, nested, and with as many steps as all of them."""

import itertools

import numpy as np
import pytest

from monai_llmboost.data import LabelledVolumes
from monai_llmboost.data.datasets.labelled import select_labelled

LABELS = np.array([0] * 90 + [1] * 30 + [2] * 3)


@pytest.mark.parametrize(
    ("fraction", "of_classes"), [(0.01, (2, 2, 2)), (0.1, (9, 3, 2)), (0.25, (23, 8, 2)), (0.999, (90, 30, 3))]
)
def test_the_cases_of_each_class(fraction, of_classes):
    chosen = np.unique(select_labelled(LABELS, fraction, seed=3))
    assert tuple(np.bincount(LABELS[chosen])) == of_classes


def test_all_of_them_in_order():
    assert np.array_equal(select_labelled(LABELS, 1.0, seed=3), np.arange(len(LABELS)))


@pytest.mark.parametrize("seed", range(5))
def test_a_smaller_fraction_is_part_of_a_larger_one(seed):
    parts = [set(select_labelled(LABELS, fraction, seed)) for fraction in (0.05, 0.1, 0.3, 0.7, 1)]
    assert all(small < large for small, large in itertools.pairwise(parts))


def test_each_seed_has_its_own_cases():
    assert set(select_labelled(LABELS, 0.1, 0)) != set(select_labelled(LABELS, 0.1, 1))


@pytest.mark.parametrize("fraction", [0.1, 0.37, 0.9])
def test_each_case_is_seen_as_often_as_the_others(fraction):
    chosen = select_labelled(LABELS, fraction, seed=0)
    _, times = np.unique(chosen, return_counts=True)
    assert len(chosen) == len(LABELS) and times.max() - times.min() <= 1


def test_only_training_cases_are_fewer():
    whole, part = (LabelledVolumes("phantom", "train", size=8, label_fraction=fraction) for fraction in (1.0, 0.1))
    assert (len(part), part.num_cases, whole.num_cases) == (len(whole), 48, 480)
    assert all(np.array_equal(part.images[i], whole.images[whole.cases.index(part.cases[i])]) for i in (0, 7, 300))
    for split in ("val", "test"):
        other = LabelledVolumes("phantom", split, size=8, label_fraction=0.1)
        assert other.num_cases == len(other) == len(LabelledVolumes("phantom", split, size=8))


def test_with_folds_only_the_other_folds_are_fewer():
    folds = {"size": 8, "folds": 3, "fold": 1}
    train, val = (LabelledVolumes("phantom", split, label_fraction=0.1, **folds) for split in ("train", "val"))
    assert (train.num_cases, len(train), val.num_cases) == (40, 400, 200)
    assert not set(train.cases) & set(val.cases)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, "0.1", None, True, float("nan")])
def test_what_is_no_fraction(fraction):
    with pytest.raises(ValueError, match="label_fraction must be a number above 0 and at most 1, not"):
        LabelledVolumes("phantom", "train", size=8, label_fraction=fraction)
