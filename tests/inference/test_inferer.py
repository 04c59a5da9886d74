# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from monai_llmboost.inference.inferer import HalvingInferer


class Tight(torch.nn.Module):
    """Has room for a few cases at once, and for none that holds the value 99."""

    def __init__(self, room):
        super().__init__()
        self.room = room
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        if len(x) > self.room or (x == 99).any():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.stack((x.flatten(1).sum(1), -x.flatten(1).sum(1)), 1)


def images(*values):
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1, 1)


def test_a_batch_that_fits_runs_once():
    network = Tight(8)
    out = HalvingInferer()(images(1, 2, 3), network)
    assert network.calls == [3]
    assert out[:, 0].tolist() == [1, 2, 3]


def test_a_batch_that_does_not_fit_is_halved_and_keeps_its_order():
    network = Tight(2)
    out = HalvingInferer()(images(*range(7)), network)
    assert out[:, 0].tolist() == list(range(7))
    assert max(call for call in network.calls if call <= 2) == 2


def test_one_case_that_does_not_fit_costs_one_case():
    out = HalvingInferer()(images(1, 99, 3, 4), Tight(8))
    assert out[:, 0].isnan().tolist() == [False, True, False, False]
    assert out[[0, 2, 3], 0].tolist() == [1, 3, 4]


def test_no_case_that_fits_is_said():
    with pytest.raises(torch.OutOfMemoryError, match="not even one case fits the memory of cpu: use --device cpu"):
        HalvingInferer()(images(99, 99), Tight(8))


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError):
        HalvingInferer()(images(1), lambda x: 1 / 0)


def test_places_of_cases_that_do_not_fit():
    def network(x):
        if (x < 0).any() or len(x) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return x

    inferer = HalvingInferer()
    assert not inferer.unfit
    out = inferer(torch.tensor([1.0, -1.0, 2.0, 3.0, -1.0]), network)
    assert list(inferer.unfit) == torch.isnan(out).nonzero().flatten().tolist() == [1, 4]
    inferer(torch.ones(2), network)
    assert not inferer.unfit
