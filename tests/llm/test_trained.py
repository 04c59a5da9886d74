# SPDX-License-Identifier: Apache-2.0
import copy
from dataclasses import replace

import pytest
import torch
from readout_methods import method
from torch import nn

from monai_llmboost.artifacts.signature import encode
from monai_llmboost.boosters import ResidualBooster, check_booster
from monai_llmboost.llm import FrozenBlock, TrainedBlock, load_block, random_block, random_layer, trained_block

__all__ = ["method"]  # the fixture: each of the methods, whatever it costs


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"final_norm": "none"}])
def test_begins_where_the_frozen_block_stays(geometry, options):
    h = torch.randn(2, 5, 24)
    frozen, trained = random_block(geometry, seed=3, **options), trained_block(geometry, 3, **options)
    torch.testing.assert_close(trained(h), frozen(h))


def test_all_of_it_is_trained_and_saved(geometry):
    donor = random_layer(geometry, 3)
    block = FrozenBlock(donor, trained=True)
    before = {name: tensor.clone() for name, tensor in donor.layers[0].tensors.items()}
    assert sum(p.numel() for p in block.parameters()) == donor.num_weights
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in block.parameters())
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    block(torch.randn(2, 5, 24)).square().mean(1).sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, donor.layers[0].tensors[name]) for name, tensor in before.items()), "the donor stays"
    other = trained_block(geometry, 3)
    other.load_state_dict(block.state_dict())
    h = torch.randn(1, 4, 24)
    assert torch.equal(other(h), block(h))
    with pytest.raises(RuntimeError, match="made with the block 'trained on from random seed 3"):
        trained_block(geometry, 4).load_state_dict(block.state_dict())


def test_is_a_booster_with_the_same_maps_as_the_frozen_one(tmp_path):
    torch.manual_seed(0)
    booster = ResidualBooster(16, trained_block("embedded"), start="published")
    torch.manual_seed(0)
    frozen = ResidualBooster(16, load_block("embedded", torch.float32), start="published")
    check_booster(booster, 16)
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(booster(x), frozen(x))
    torch.testing.assert_close(booster(x, 1), frozen(x, 1))
    booster(x, 1).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in booster.parameters())


def test_checkpoints_name_the_layers_as_ever(geometry, tmp_path):
    """Earlier versions wrote `layers.0.query.weight`; such files load, and are what is written."""
    layer = random_layer(geometry, 3).layers[0]
    donor = replace(
        random_layer(geometry, 3), layers=(layer, replace(layer, tensors=random_layer(geometry, 4).layers[0].tensors))
    )
    block = FrozenBlock(donor, trained=True)
    names = {f"layers.{number}.{name}" for number in (0, 1) for name in layer.tensors}
    state = block.state_dict()
    assert set(state) == names | {"signature.code"}
    text = f"trained on from random seed 3 ({donor.fingerprint[:12]}, final norm unit)"
    assert torch.equal(state["signature.code"], encode(text)), "as earlier versions wrote it"
    for name in names:
        state[name] = state[name] + 1
    network = nn.Sequential(copy.deepcopy(block))
    network.load_state_dict({f"0.{name}": value for name, value in state.items()}, strict=True)
    for number, loaded in enumerate((network[0].before[0], network[0].layer)):
        for name, value in loaded.named_parameters():
            assert torch.equal(value, state[f"layers.{number}.{name}"])
    with pytest.raises(RuntimeError, match=r"Unexpected key.*layers\.2\.query"):
        block.load_state_dict({**state, "layers.2.query.weight": torch.ones(1)})


@pytest.mark.parametrize("other", [{}, {"qk_norm": "head"}, {"qkv_bias": True}, {"norm": "layer", "qkv_bias": True}])
def test_few_tokens_are_read_exactly(method, geometry, other):
    """The weights change, and are read at the same little cost; every weight that can matter has its gradient."""
    torch.manual_seed(0)
    booster = ResidualBooster(16, trained_block(replace(geometry, **other)), start="published").double()
    x = torch.randn(3, 20, 16).double()
    booster(x, 2).square().sum().backward()
    got = {name: parameter.grad for name, parameter in booster.named_parameters()}
    booster.zero_grad()
    booster(x)[:, :2].square().sum().backward()
    for name, parameter in booster.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-9, atol=1e-9, msg=name)
    before = booster(x, 2)
    torch.optim.SGD(booster.parameters(), lr=0.1).step()
    torch.testing.assert_close(booster(x, 2), booster(x)[:, :2])
    assert not torch.allclose(booster(x, 2), before)


def test_the_old_class_is_a_function_that_says_what_to_use(geometry):
    with pytest.warns(
        DeprecationWarning, match=r"TrainedBlock is deprecated: use .*FrozenBlock\(donor, trained=True\)"
    ):
        block = TrainedBlock(random_layer(geometry, 3))
    assert isinstance(block, FrozenBlock)
