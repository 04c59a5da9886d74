# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from monai_llmboost.boosters import ResidualBooster, check_booster
from monai_llmboost.llm import TrainedBlock, load_block, random_block, random_layer, trained_block


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"final_norm": "none"}])
def test_begins_where_the_frozen_block_stays(geometry, options):
    h = torch.randn(2, 5, 24)
    frozen, trained = random_block(geometry, seed=3, **options), trained_block(geometry, 3, **options)
    torch.testing.assert_close(trained(h), frozen(h))


def test_all_of_it_is_trained_and_saved(geometry):
    donor = random_layer(geometry, 3)
    block = TrainedBlock(donor)
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
    booster = ResidualBooster(16, trained_block("embedded"))
    torch.manual_seed(0)
    frozen = ResidualBooster(16, load_block("embedded", torch.float32))
    check_booster(booster, 16)
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(booster(x), frozen(x))
    torch.testing.assert_close(booster(x, 1), frozen(x, 1))
    booster(x, 1).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in booster.parameters())
