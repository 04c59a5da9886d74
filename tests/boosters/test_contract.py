# SPDX-License-Identifier: Apache-2.0
"""One table over all boosters: every one obeys the contract, and the contract catches what breaks it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from monai_llmboost.boosters import (
    RESIDUALS,
    IdentityControl,
    MLPControl,
    ResidualBooster,
    check_booster,
    mlp_booster,
)
from monai_llmboost.llm import BlockGeometry, random_block

GROUPED = BlockGeometry(width=24, mlp_width=40, num_heads=4, num_kv_heads=2, head_size=8)
BLOCKS = {
    "random": lambda: random_block("random"),
    "grouped heads": lambda: random_block(GROUPED),
    "bfloat16": lambda: random_block(GROUPED, dtype=torch.bfloat16),
    "mlp control": lambda: MLPControl(24),
    "identity control": lambda: IdentityControl(24),
}


@pytest.fixture(params=BLOCKS)
def block(request):
    return BLOCKS[request.param]()


@pytest.mark.parametrize("residual", RESIDUALS)
def test_every_booster_obeys_the_contract(block, residual):
    torch.manual_seed(0)
    check_booster(ResidualBooster(12, block, residual, start="published"), channels=12)


def test_mlp_booster_has_the_trained_parameters_of_the_booster(block):
    torch.manual_seed(0)
    boosted = ResidualBooster(12, random_block("random"), start="published")
    torch.manual_seed(0)
    control = mlp_booster(12, like="random", start="published")
    check_booster(control, channels=12)
    ours, theirs = dict(control.named_parameters()), dict(boosted.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), "and their initial values"


def equations(residual, booster, x):
    h = x @ booster.encode.weight.T
    y = booster.block(h)
    back = booster.decode.weight.T
    return {
        "inner": lambda: (y + h) @ back,
        "outer": lambda: y @ back + x,
        "both": lambda: (y + h) @ back + x,
        "none": lambda: y @ back,
        "projected": lambda: y @ back + F.leaky_relu(x @ booster.skip[0].weight.T),
    }[residual]()


@pytest.mark.parametrize("residual", RESIDUALS)
def test_the_equation_of_each_residual(residual):
    booster, x = ResidualBooster(12, random_block(GROUPED), residual, start="published"), torch.randn(2, 5, 12)
    torch.testing.assert_close(booster(x), equations(residual, booster, x))


def test_training_leaves_the_block_bit_identical():
    booster = ResidualBooster(12, random_block(GROUPED), start="published")
    before = {name: buffer.clone() for name, buffer in booster.block.named_buffers()}
    trained = {name: parameter.clone() for name, parameter in booster.named_parameters()}
    optimizer = torch.optim.AdamW(booster.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        booster(torch.randn(2, 5, 12)).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(buffer, before[name]) for name, buffer in booster.block.named_buffers())
    assert not any(torch.equal(parameter, trained[name]) for name, parameter in booster.named_parameters())


def test_a_checkpoint_holds_the_maps_and_a_signature(block):
    state = ResidualBooster(12, block, "projected", start="published").state_dict()
    texts = {"signature.code", "block.signature.code"}
    assert set(state) == {"encode.weight", "decode.weight", "skip.0.weight"} | texts


def test_a_checkpoint_of_another_residual_is_refused():
    """The weights have the same shapes and would load."""
    with pytest.raises(RuntimeError, match="made with the residual 'inner', but this network has the residual 'outer'"):
        ResidualBooster(12, MLPControl(4), "outer", start="published").load_state_dict(
            ResidualBooster(12, MLPControl(4), start="published").state_dict()
        )


def test_a_checkpoint_of_one_arm_is_refused_by_another():
    control = ResidualBooster(12, MLPControl(192), start="published")
    with pytest.raises(RuntimeError, match="the block 'mlp control', but this network has the block 'random seed 0"):
        ResidualBooster(12, random_block("random"), start="published").load_state_dict(control.state_dict())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((12, IdentityControl(4), "middle"), ValueError, r"unknown residual 'middle'; choose from inner, .*"),
        ((0, IdentityControl(4)), ValueError, "channels must be a whole number from 1, not 0"),
        ((12, nn.Linear(4, 4)), TypeError, "the block, Linear, has no whole number `width`"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ResidualBooster(*arguments)


class Broken(nn.Module):
    """A booster with one fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.map = nn.Linear(12, 12)
        if fault == "frozen":
            self.map.weight.requires_grad_(False)
        if fault == "unused":
            self.unused = nn.Linear(3, 3)
        self.register_buffer("noise", torch.rand(12), persistent=False)

    def forward(self, x):
        z = self.map(x)
        return {
            "shape": lambda: z[:, 1:],
            "dtype": lambda: z.double(),
            "finite": lambda: z / 0,
            "batch": lambda: z - z.mean(0, keepdim=True),
            "order": lambda: z + torch.arange(z.shape[1])[:, None],
            "causal": lambda: z + x.cumsum(1),
            "detached": lambda: self.map(x.detach()) + 0 * x,
        }.get(self.fault, lambda: z)()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", r"the output has shape \(2, 8, 12\), not \(2, 9, 12\) as the input"),
        ("dtype", "the output has dtype"),
        ("finite", "is not finite"),
        ("batch", "depends on the other cases"),
        ("order", "reordering the tokens"),
        ("causal", "reordering the tokens"),
        ("detached", "no gradient reaches the input"),
        ("frozen", "map.weight is not trained: keep frozen weights as buffers"),
        ("unused", "no gradient reaches unused"),
    ],
)
def test_the_contract_catches(fault, message):
    with pytest.raises(ValueError, match=f"Broken breaks the booster contract: .*{message}"):
        check_booster(Broken(fault), channels=12)
    check_booster(Broken("none"), channels=12)


def test_the_contract_catches_a_checkpoint_that_does_not_hold_everything():
    class Forgetful(Broken):
        def forward(self, x):
            return self.map(x) * self.noise

        def __deepcopy__(self, memo):
            other = Forgetful("none")
            other.map.load_state_dict(self.map.state_dict())
            return other

    with pytest.raises(ValueError, match="loaded into a copy, gives another output"):
        check_booster(Forgetful("none"), channels=12)


def test_the_booster_is_left_as_it_was():
    booster = ResidualBooster(12, random_block(GROUPED), start="published").train()
    before = copy.deepcopy(booster.state_dict())
    check_booster(booster, channels=12)
    assert booster.training
    assert all(parameter.grad is None for parameter in booster.parameters())
    assert all(torch.equal(value, before[name]) for name, value in booster.state_dict().items())


@pytest.mark.parametrize("wrong_from", [0, 100])
def test_a_booster_that_reads_wrongly(wrong_from):
    """Few tokens and many may be read in different ways, and each is looked at."""

    class ReadsWrongly(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(12, 12)

        def forward(self, x, read=None):
            z = self.map(x)
            return z if read is None else z[:, :read] + float(x.shape[1] >= wrong_from)

    with pytest.raises(ValueError, match="requested alone by `read`, differ"):
        check_booster(ReadsWrongly(), 12)
