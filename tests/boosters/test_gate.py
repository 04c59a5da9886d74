# SPDX-License-Identifier: Apache-2.0
"""The gate: training begins without the block, and what the gate hides at first is checked all the same."""

import copy

import pytest
import torch
from conftest import forget_training
from torch import nn

from monai_llmboost.boosters import (
    RESIDUALS,
    IdentityControl,
    MLPControl,
    ResidualBooster,
    check_booster,
    mlp_booster,
)
from monai_llmboost.llm import BlockGeometry, random_block
from monai_llmboost.networks import ViT3D

GROUPED = BlockGeometry(width=24, mlp_width=40, num_heads=4, num_kv_heads=2, head_size=8)
GATED = [residual for residual in RESIDUALS if residual != "none"]
script_warnings = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
# What MONAI, Ignite and torch say of themselves on every normal run of a bundle (MONAI 1.6.1, torch 2.15).
bundle_warnings = pytest.mark.filterwarnings(
    "ignore:parsing config_file:UserWarning", "ignore::FutureWarning:monai", "ignore::DeprecationWarning:monai"
)


def booster(residual="inner", gate=True, block=None, opened=None):
    torch.manual_seed(0)
    block = random_block(GROUPED) if block is None else block
    booster = ResidualBooster(12, block, residual, gate=gate, start="published")
    if opened is not None:
        nn.init.constant_(booster.gate.g, opened)
    return booster


@pytest.fixture
def x():
    return torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("residual", GATED)
def test_it_starts_without_the_block(x, residual):
    gated, h = booster(residual), booster(residual).encode(x)
    skip = {"outer": x, "both": x, "projected": gated.skip(x)}.get(residual, 0)
    expected = gated.decode(h if gated.inner else torch.zeros_like(h)) + skip
    torch.testing.assert_close(gated(x), expected)
    other = booster(residual, block=random_block(GROUPED, seed=1))
    assert torch.equal(gated(x), other(x)), "whatever the block"


@pytest.mark.parametrize("residual", GATED)
def test_open_it_is_the_equation(x, residual):
    gated, plain = booster(residual, opened=0.5), booster(residual, gate=False)
    h = gated.encode(x)
    y = torch.tanh(torch.tensor(0.5)) * gated.block(h) + (h if gated.inner else 0)
    torch.testing.assert_close(gated(x), gated.decode(y) + (gated.skip(x) if gated.outer else 0))
    assert not torch.allclose(gated(x), plain(x), atol=1e-4)
    torch.testing.assert_close(booster(residual, opened=20.0)(x), plain(x))  # wide open: as without a gate


@pytest.mark.parametrize("residual", RESIDUALS)
def test_without_it_nothing_changes(residual):
    """Names, signature and initial values as before there were gates."""
    plain = booster(residual, gate=False)
    weights = {"encode.weight", "decode.weight"} | ({"skip.0.weight"} if residual == "projected" else set())
    assert set(plain.state_dict()) == weights | {"signature.code", "block.signature.code"}
    assert plain.signature.text == residual
    torch.manual_seed(0)
    assert torch.equal(plain.encode.weight, nn.Linear(12, 24, bias=False).weight)
    if residual != "none":
        ours, gated = dict(plain.named_parameters()), dict(booster(residual).named_parameters())
        assert gated.keys() - ours.keys() == {"gate.g"}
        assert all(torch.equal(ours[name], gated[name]) for name in ours)


@pytest.mark.parametrize(
    "geometry", [GROUPED, BlockGeometry(width=96, mlp_width=96, num_heads=6, head_size=16, num_kv_heads=2)]
)
@pytest.mark.parametrize("tokens", [3, 40, 400])
@pytest.mark.parametrize("residual", GATED)
def test_reading_few_tokens(residual, tokens, geometry):
    gated, x = booster(residual, block=random_block(geometry), opened=-0.7), torch.randn(2, tokens, 12)
    torch.testing.assert_close(gated(x, 2), gated(x)[:, :2], rtol=1e-4, atol=1e-5)


BLOCKS = {
    "random": lambda: random_block(GROUPED),
    "bfloat16": lambda: random_block(GROUPED, dtype=torch.bfloat16),
    "mlp control": lambda: MLPControl(24),
    "identity control": lambda: IdentityControl(24),
}


@pytest.mark.parametrize("opened", [None, 0.5])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("residual", GATED)
def test_obeys_the_contract(residual, block, opened):
    gated = booster(residual, block=BLOCKS[block](), opened=opened)
    before = copy.deepcopy(gated.state_dict())
    check_booster(gated, channels=12)
    assert all(torch.equal(value, before[name]) for name, value in gated.state_dict().items()), "left as it was"


def test_training_opens_it(x):
    gated = booster("outer")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        gated(x).square().sum().backward()
        optimizer.step()
    assert gated.gate.g.item() != 0
    assert gated.encode.weight.grad.any(), "and the block's maps learn once it is open"


def test_what_flows_back_to_the_gate_is_summed_in_float32():
    """It is a sum over all tokens, which float16 would overflow; the tokens keep their dtype."""
    gate = booster(opened=0.3).gate
    y = torch.full((4, 100, 24), 100.0, dtype=torch.float16)
    z = gate(y)
    assert z.dtype == torch.float16
    z.sum(dtype=torch.float32).backward()
    expected = y.numel() * 100 / torch.cosh(torch.tensor([0.3])) ** 2
    torch.testing.assert_close(gate.g.grad, expected, rtol=1e-3, atol=0)


def test_nothing_would_pass_without_a_residual():
    with pytest.raises(
        ValueError, match="a gate with residual 'none' gives zero while it is closed: use another residual"
    ):
        ResidualBooster(12, IdentityControl(4), "none", gate=True, start="published")


@pytest.mark.parametrize("gate", ["false", 1, None])
def test_it_is_there_or_not(gate):
    with pytest.raises(ValueError, match=f"gate must be True or False, not {gate!r}"):
        ResidualBooster(12, IdentityControl(4), gate=gate)


@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_with_a_gate_and_a_network_without(strict):
    """Where a loader passes over what it does not know, too: a gate left out is another network."""
    with pytest.raises(RuntimeError, match="residual 'inner, gated', but this network has the residual 'inner': give"):
        booster(gate=False).load_state_dict(booster().state_dict(), strict=strict)
    with pytest.raises(RuntimeError, match="residual 'inner', but this network has the residual 'inner, gated': give"):
        booster().load_state_dict(booster(gate=False).state_dict(), strict=strict)


def test_mlp_booster_has_the_trained_parameters_of_the_booster():
    torch.manual_seed(0)
    control = mlp_booster(12, like=GROUPED, residual="both", gate=True, start="published")
    check_booster(control, channels=12)
    ours, theirs = dict(control.named_parameters()), dict(booster("both").named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), "and their initial values"


def test_an_outer_residual_starts_as_the_plain_network():
    sizes = {"in_channels": 1, "num_classes": 2, "img_size": 8, "patch_size": 4, "hidden_size": 12, "num_heads": 3}
    gated, volumes = booster("outer"), torch.randn(2, 1, 8, 8, 8)
    torch.manual_seed(1)
    expected = ViT3D(**sizes)(volumes)
    for position in ("last", "middle", "head"):
        torch.manual_seed(1)
        network = ViT3D(**sizes, booster=gated, position=position)
        assert torch.equal(network(volumes), expected), position


@script_warnings
@pytest.mark.parametrize("read", [None, 2])
@pytest.mark.parametrize("opened", [None, 0.5])
def test_scripts(x, opened, read):
    gated = booster("both", opened=opened)
    torch.testing.assert_close(torch.jit.script(copy.deepcopy(gated))(x, read), gated(x, read))


@pytest.mark.parametrize("read", [None, 2])
def test_compiles_without_a_graph_break(x, read):
    gated = booster("both", opened=0.5)
    compiled = torch.compile(gated, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, read), gated(x, read))
    torch.compiler.reset()


class Adapted(nn.Module):
    """A booster of someone else, whose second part starts at zero, as in LoRA, and may hide a fault behind it."""

    def __init__(self, fault=None):
        super().__init__()
        self.map, self.down, self.up = nn.Linear(12, 12), nn.Linear(12, 3, bias=False), nn.Linear(3, 12, bias=False)
        nn.init.zeros_(self.up.weight)
        self.fault = fault
        if fault == "frozen":
            self.up.requires_grad_(False)

    def forward(self, x):
        low = self.down(x.cumsum(dim=1) if self.fault == "causal" else x)
        return self.map(x) + self.up(low.detach() if self.fault == "detached" else low)


def test_the_contract_looks_behind_what_starts_at_zero():
    check_booster(Adapted(), channels=12)
    for fault, message in (
        ("causal", "reordering the tokens"),
        ("detached", "no gradient reaches down.weight"),
        ("frozen", "up.weight is not trained"),
    ):
        with pytest.raises(ValueError, match=message):
            check_booster(Adapted(fault), channels=12)


@bundle_warnings
@pytest.mark.parametrize("arm", [None, "mlp"])
def test_the_bundle(run_job, arm):
    folder = run_job("train", arm, epochs=1, gate=True)
    assert torch.load(folder / "model.pt", weights_only=True)["booster.gate.g"].item() != 0, "it was trained"
    assert (run_job("evaluate", arm, gate=True) / "metrics.json").is_file()
    forget_training(folder)
    with pytest.raises(ValueError, match="residual 'outer, gated', but this network has the residual 'outer'"):
        run_job("evaluate", arm)


@bundle_warnings
def test_a_mistake_in_the_bundle_is_one_sentence(run_job):
    with pytest.raises(ValueError, match="gate must be True or False, not 'true'"):
        run_job("train", gate="true")
