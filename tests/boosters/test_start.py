# SPDX-License-Identifier: Apache-2.0
"""A booster starts by changing nothing, and its first step is no larger than the plain network's, for any width."""

import pytest
import torch
from torch import nn

from monai_llmboost.adapters import lora_block
from monai_llmboost.boosters import (
    RESIDUALS,
    IdentityControl,
    MLPControl,
    ResidualBooster,
    mlp_booster,
    parameter_groups,
)
from monai_llmboost.llm import BlockGeometry, random_block, trained_block
from monai_llmboost.networks import ViT3D, ViViT

WIDTHS = (64, 256, 1024, 4096)
SIZES = {"in_channels": 1, "num_classes": 2, "img_size": 12, "patch_size": 4, "hidden_size": 32, "num_heads": 4}
RATE = 1e-3
# Each arm of the bundle, and two more controls, as functions of the block's geometry.
ARMS = {
    "mlp": lambda geometry: MLPControl(geometry.width),
    "identity": lambda geometry: IdentityControl(geometry.width),
    "random": lambda geometry: random_block(geometry),
    "lora": lambda geometry: lora_block(geometry, rank=4),
    "pretrained-trained": lambda geometry: trained_block(geometry),
}


def geometry(width):
    return BlockGeometry(width=width, mlp_width=48, num_heads=4, num_kv_heads=2, head_size=16)


def network(arm=None, width=64, kind=ViT3D, seed=0, position="last", pool="cls", **options):
    """A network whose weights around the booster depend on the seed only, as in the bundle."""
    booster = None if arm is None else ResidualBooster(32, ARMS[arm](geometry(width)), **options)
    torch.manual_seed(seed)
    return kind(**SIZES, booster=booster, position=position, pool=pool)


def volumes(cases=6):
    return torch.rand(cases, 1, 12, 12, 12, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", [ViT3D, ViViT])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("position", ["last", "middle", "head"])
@pytest.mark.parametrize("arm", ARMS)
def test_the_boosted_network_starts_as_the_plain_one(arm, position, pool, kind):
    expected = network(kind=kind, position=position, pool=pool)(volumes())
    for options in ({}, {"residual": "both"}, {"gate": True}, {"gate": True, "residual": "both"}):
        boosted = network(arm, kind=kind, position=position, pool=pool, **options)
        assert torch.equal(boosted(volumes()), expected), options


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("width", WIDTHS)
def test_whatever_the_width_it_starts_as_the_plain_network_and_its_first_step_is_as_small(arm, width):
    """The bundle's optimizer and rate; "moves" is relative to the size of the head's input."""
    plain, boosted = network(), network(arm, width)
    assert torch.equal(boosted(volumes()), plain(volumes()))
    assert first_step(boosted) <= 1.3 * first_step(plain)


@pytest.mark.parametrize("options", [{"residual": "both"}, {"gate": True}], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_step_with_other_options(width, options):
    assert first_step(network("random", width, **options)) <= 1.3 * first_step(network())


def test_the_measure_sees_what_the_published_start_does():
    """At this rate, the first step of a wide booster with a random start moves the head's input much further."""
    published = network("random", 4096, start="published")
    assert first_step(published, nn.Module.parameters) > 1.3 * first_step(network())


def first_step(net, groups=None):
    """Take one step of the default recipe, and return how far it moves the head's input, relative to its size."""
    seen = []
    net.head_norm.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    params = parameter_groups(net, RATE) if groups is None else list(groups(net))
    optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=0.05)
    nn.functional.cross_entropy(net(volumes()), torch.tensor([0, 1] * 3)).backward()
    optimizer.step()
    net(volumes())
    before, after = seen
    return float((after - before).norm() / before.norm())


@pytest.mark.parametrize("options", [{}, {"residual": "both"}, {"gate": True}, {"gate": True, "residual": "both"}])
def test_training_reaches_every_weight(options):
    """Two zeros in a row, such as a closed gate before an F_D of zeros, would never be trained."""
    booster = ResidualBooster(12, trained_block(geometry(64)), **options)
    before = {name: parameter.detach().clone() for name, parameter in booster.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(booster, 1e-2), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        optimizer.zero_grad()
        x = torch.randn(3, 5, 12, generator=generator)
        (booster(x) - x.flip(1)).square().mean().backward()
        optimizer.step()
    assert not [name for name, parameter in booster.named_parameters() if torch.equal(parameter, before[name])]


@pytest.mark.parametrize("residual", ["inner", "none", "projected"])
def test_a_residual_that_cannot_start_as_the_plain_network(residual):
    with pytest.raises(
        ValueError, match=f"residual '{residual}' cannot start as the plain network, .* use residual outer"
    ):
        ResidualBooster(12, IdentityControl(4), residual, start="plain")
    assert ResidualBooster(12, IdentityControl(4), residual).decode.weight.any(), "without a start, as published"


def test_the_defaults_belong_together():
    block = IdentityControl(4)
    texts = [
        ResidualBooster(12, block, **options).signature.text
        for options in ({}, {"start": "plain"}, {"start": "published"}, {"start": "published", "residual": "both"})
    ]
    assert texts == ["outer", "outer", "inner", "both"]


@pytest.mark.parametrize("start", ["zero", True, ""])
def test_an_unknown_start(start):
    with pytest.raises(ValueError, match=f"unknown start {start!r}; choose from plain, published"):
        ResidualBooster(12, IdentityControl(4), start=start)


@pytest.mark.parametrize("residual", RESIDUALS)
def test_the_published_start_draws_the_same_weights(residual):
    torch.manual_seed(0)
    expected = nn.Linear(12, 24, bias=False).weight, nn.Linear(24, 12, bias=False).weight
    torch.manual_seed(0)
    booster = ResidualBooster(12, IdentityControl(24), residual, start="published")
    assert torch.equal(booster.encode.weight, expected[0])
    assert torch.equal(booster.decode.weight, expected[1])


def test_the_start_is_no_property_of_a_checkpoint():
    trained = ResidualBooster(12, IdentityControl(4), "outer", start="published")
    other = ResidualBooster(12, IdentityControl(4))
    other.load_state_dict(trained.state_dict())
    assert torch.equal(other.decode.weight, trained.decode.weight)


def test_the_control_starts_like_its_arm():
    assert not mlp_booster(12, geometry(24)).decode.weight.any()
    assert mlp_booster(12, geometry(24), start="published").signature.text == "inner"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_rates_of_each_weight(width):
    net = nn.Sequential(network("pretrained-trained", width, gate=True), mlp_booster(2, geometry(width)))
    rates = {id(p): group["lr"] for group in parameter_groups(net, 0.01, 0.5) for p in group["params"]}
    assert len(rates) == len(list(net.parameters()))
    booster = net[0].booster
    for parameter, rate in (
        (net[0].head.weight, 0.01),
        (booster.encode.weight, 0.005),
        (booster.gate.g, 0.005),
        (booster.decode.weight, 0.005 * 32 / width if width > 32 else 0.005),
        (booster.block.layer.down.weight, 0.005 * 32 / width if width > 32 else 0.005),
        (net[1].encode.weight, 0.005),
        (net[1].decode.weight, 0.005 * 2 / width),
    ):
        assert rates[id(parameter)] == pytest.approx(rate)


def test_a_network_without_a_booster_has_one_group():
    net = network()
    (group,) = parameter_groups(net, 0.01)
    assert group["lr"] == 0.01
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "0.1", None, True])
def test_wrong_rates(value):
    with pytest.raises(ValueError, match="booster_lr_factor must be a number above 0, not"):
        parameter_groups(network(), 1e-3, value)
    with pytest.raises(ValueError, match="learning_rate must be a number above 0, not"):
        parameter_groups(network(), value)
