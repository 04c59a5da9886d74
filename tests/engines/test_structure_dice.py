# SPDX-License-Identifier: Apache-2.0
"""The Dice that chooses an epoch is that of the evaluation."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric

from monai_llmboost.engines import StructureDice
from monai_llmboost.tasks.mask_measures import measure_mask


def maps(*values):
    return torch.tensor(values).reshape(1, 1, 2, 2, 2)


def test_it_is_the_mean_of_the_evaluation():
    random = torch.Generator().manual_seed(0)
    dice, expected = StructureDice(3), []
    for number in range(12):
        mask, label = (torch.randint(0, 4, (1, 1, 3, 4, 5), generator=random) for _ in range(2))
        for one in (mask, label)[: number % 3]:
            one[one == 2] = 0  # the structure is in neither, or in one only
        dice(mask, label)
        found = [one.dice for one in measure_mask(mask[0, 0].numpy(), label[0, 0].numpy(), np.eye(4), 3)]
        expected.append(np.nanmean(found))
    assert dice.aggregate() == pytest.approx(np.mean(expected))


def test_with_all_structures_it_is_that_of_monai():
    random = torch.Generator().manual_seed(1)
    mask, label = (torch.randint(0, 3, (4, 1, 5, 5, 5), generator=random) for _ in range(2))
    ours, theirs = StructureDice(2), DiceMetric(include_background=False, num_classes=3)
    ours(mask, label), theirs(mask, label)
    assert ours.aggregate() == pytest.approx(theirs.aggregate().item())


def test_what_is_found_in_a_case_without_it_counts():
    dice = StructureDice(1)
    dice(maps(0, 1, 1, 0, 0, 0, 0, 0), maps(0, 1, 1, 0, 0, 0, 0, 0))
    dice(maps(0, 1, 0, 0, 0, 0, 0, 0), maps(*[0] * 8))
    dice(maps(*[0] * 8), maps(*[0] * 8))
    assert dice.aggregate() == 0.5


def test_no_structure_in_any_case_is_no_number():
    dice = StructureDice(1)
    dice(maps(*[0] * 8), maps(*[0] * 8))
    assert math.isnan(dice.aggregate())
    with pytest.raises(ValueError, match="structures"):
        StructureDice(0)
