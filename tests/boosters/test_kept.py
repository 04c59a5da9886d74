# SPDX-License-Identifier: Apache-2.0
"""What is kept between calls in inference is dropped after every change of the weights, however it is made."""

import copy

import pytest
import torch

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.boosters.readout.numerics import GramMatrix, symmetric_product
from monai_llmboost.llm import random_block

WIDTH, CHANNELS = 192, 16


def optimizer_step(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], 0.1).step()


def through_numpy(weight):
    weight.detach().numpy()[:] *= 2


def without_gradients(weight):
    with torch.no_grad():
        weight.copy_(2 * weight)


def in_inference_mode(weight):
    with torch.inference_mode():
        weight.mul_(2)


def loaded(weight):
    holder = torch.nn.ParameterDict({"weight": weight})
    holder.load_state_dict({"weight": 2 * weight.detach()})


def as_an_average_does(weight):
    weight.detach().lerp_(torch.ones_like(weight), 0.5)


def as_part_of_a_vector(weight):
    """As searches without gradients do: the values change, and the memory stays."""
    vector = torch.empty(weight.numel())
    torch.nn.utils.vector_to_parameters(vector, [weight])
    vector.fill_(3)


def by_data(weight):
    weight.data.mul_(2)


def other_data(weight):
    weight.data = 2 * weight.data


CHANGES = [
    optimizer_step, through_numpy, without_gradients, in_inference_mode, loaded, as_an_average_does,
    as_part_of_a_vector, by_data, other_data,
]  # fmt: skip
# Changes that leave address and version of a tensor as they are, which is why the values are compared.
UNSEEN = [through_numpy, by_data]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_product_follows_the_weight(change, mode):
    torch.manual_seed(0)
    weight, gram = torch.nn.Parameter(torch.randn(WIDTH, CHANNELS)), GramMatrix().eval()
    with mode():
        first = gram(weight.detach())
        assert gram(weight.detach()) is first, "kept"
    known = weight.data_ptr(), weight._version
    change(weight)
    assert (known == (weight.data_ptr(), weight._version)) == (change in UNSEEN)
    with mode():
        second = gram(weight.detach())
    assert not torch.equal(first, second)
    assert torch.equal(second, symmetric_product(weight.detach(), weight.detach()))
    change(weight)  # once more, since memory that was freed may be used again
    with mode():
        assert torch.equal(gram(weight.detach()), symmetric_product(weight.detach(), weight.detach()))


def test_a_weight_of_inference_mode_has_no_version():
    with torch.inference_mode():
        weight, gram = torch.randn(WIDTH, CHANNELS), GramMatrix().eval()
        first = gram(weight)
        weight.mul_(2)
        assert torch.equal(gram(weight), 4 * first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_or_device_is_another_weight(dtype):
    weight, gram = torch.randn(WIDTH, CHANNELS), GramMatrix().eval()
    assert gram(weight).dtype == torch.float32
    assert gram(weight.to(dtype)).dtype == dtype
    assert gram(weight.to("meta")).is_meta
    assert torch.equal(gram(weight), symmetric_product(weight, weight))
    assert gram(weight[:, :8]).shape == (8, 8)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("read", [1, None])
def test_a_booster_follows_its_maps(change, read):
    torch.manual_seed(0)
    booster = ResidualBooster(CHANNELS, random_block("random"), start="published").eval()
    x = torch.randn(2, 400, CHANNELS)
    with torch.no_grad():
        before = booster(x, read)
    change(booster.encode.weight)
    fresh = ResidualBooster(CHANNELS, booster.block, start="published").eval()
    fresh.load_state_dict(booster.state_dict())
    with torch.no_grad():
        after = booster(x, read)
        assert torch.equal(after, fresh(x, read))
        assert torch.equal(copy.deepcopy(booster)(x, read), after)
    assert not torch.equal(before, after)
