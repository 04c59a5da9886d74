# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from monai.optimizers import WarmupCosineSchedule
from torch import optim

from monai_llmboost.engines import HeldWarmupCosine

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler:UserWarning")


def rates(kind, epochs, **options):
    optimizer = optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = kind(optimizer, warmup_multiplier=0.1, **options)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 5), (1, 2), (3, 30), (4, 5)])
def test_it_is_monais_and_then_holds(warmup, total):
    options = {"warmup_steps": warmup, "t_total": total}
    held = rates(HeldWarmupCosine, 3 * total, **options)
    assert held[:total] == rates(WarmupCosineSchedule, total, **options)
    assert held[total:] == [held[total - 1]] * 2 * total
    assert min(held) > 0 and max(held) == 1


@pytest.mark.parametrize(
    ("warmup", "total", "message"),
    [
        (5, 5, "warmup_epochs must be fewer than epochs, not 5 of 5, or the full learning rate is never reached"),
        (9, 5, "not 9 of 5"),
        (-1, 5, "warmup_epochs must be a whole number from 0, not -1: give --warmup_epochs"),
        (1.5, 5, r"warmup_epochs must be a whole number from 0, not 1\.5"),
        (0, 0, "epochs must be a whole number from 1, not 0"),
        (0, 2.0, r"epochs must be a whole number from 1, not 2\.0"),
        (True, 2, "warmup_epochs must be a whole number from 0, not True"),
    ],
)
def test_numbers_that_cannot_be(warmup, total, message):
    with pytest.raises(ValueError, match=message):
        rates(HeldWarmupCosine, 1, warmup_steps=warmup, t_total=total)


def test_numpys_numbers_are_numbers():
    assert rates(HeldWarmupCosine, 2, warmup_steps=np.int64(0), t_total=np.int64(2))[0] == 1


def test_a_state_of_monais_own_goes_on():
    """A run that an earlier version began is resumed."""
    optimizer = optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    earlier = WarmupCosineSchedule(optimizer, 1, 4, warmup_multiplier=0.1)
    optimizer.step()
    earlier.step()
    other = optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = HeldWarmupCosine(other, 1, 4)
    schedule.load_state_dict(earlier.state_dict())
    other.load_state_dict(optimizer.state_dict())
    for _ in range(2):
        for each, step in ((optimizer, earlier), (other, schedule)):
            each.step()
            step.step()
        assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] > 0
