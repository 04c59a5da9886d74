# SPDX-License-Identifier: Apache-2.0
"""Where the booster stands in a network: behind the last layer, in the middle of the layers, before the head."""

import copy

import pytest
import torch
from conftest import forget_training

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.llm import random_block
from monai_llmboost.networks import ViT3D, ViViT

SIZES = {"in_channels": 2, "num_classes": 3, "img_size": (8, 12, 16), "patch_size": (4, 4, 8), "hidden_size": 12}
# An odd number of layers, so that the two halves cannot be mistaken for one another.
VIT3D = {**SIZES, "mlp_dim": 20, "num_layers": 5, "num_heads": 3}
VIVIT = {**SIZES, "mlp_dim": 20, "num_spatial_layers": 1, "num_temporal_layers": 5, "num_heads": 3}
NETWORKS = {"vit3d": (ViT3D, VIT3D), "vivit": (ViViT, VIVIT)}
POOLS = ("cls", "mean")
POSITIONS = ("last", "middle", "head")
script_warnings = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
# What MONAI, Ignite and torch say of themselves on every normal run of a bundle (MONAI 1.6.1, torch 2.15).
bundle_warnings = pytest.mark.filterwarnings(
    "ignore:parsing config_file:UserWarning", "ignore::FutureWarning:monai", "ignore::DeprecationWarning:monai"
)


@pytest.fixture(params=NETWORKS)
def build(request):
    """Networks of one seed, each with a booster of its own."""
    kind, sizes = NETWORKS[request.param]

    def build(boosted=True, **changes):
        torch.manual_seed(1)
        booster = ResidualBooster(12, random_block("random"), start="published") if boosted else None
        torch.manual_seed(0)
        return kind(**{**sizes, **changes}, booster=booster).eval()

    return build


@pytest.fixture
def x():
    return torch.randn(2, 2, 8, 12, 16, generator=torch.Generator().manual_seed(7))


def steps(network, x):
    """The network's steps written out: tokens before the layers, the layers one by one, what follows them."""
    if isinstance(network, ViT3D):
        x = network.patch_tokens(x).flatten(1, 2)
        x = torch.cat((network.cls_token.expand(len(x), -1, -1), x), dim=1) + network.positions
        return x, list(network.layers), lambda x: x, network.head_norm
    x = network.patch_tokens(x) + network.positions
    batch, slabs = x.shape[:2]
    x = torch.cat((network.spatial_cls_token.expand(batch * slabs, -1, -1), x.flatten(0, 1)), dim=1)
    x = network.spatial_norm(network.spatial_layers[0](x))
    x = (x.mean(dim=1) if network.read_mean else x[:, 0]).view(batch, slabs, -1)
    x = torch.cat((network.temporal_cls_token.expand(batch, -1, -1), x), dim=1)
    return x, list(network.temporal_layers), network.temporal_norm, lambda x: x


def by_hand(network, x, pool, position):
    x, layers, norm, head_norm = steps(network, x)
    for number, layer in enumerate(layers):
        if position == "middle" and number == 2:
            x = network.booster(x)
        x = layer(x)
    x = norm(x)
    if position == "last":
        x = network.booster(x)
    x = x.mean(dim=1) if pool == "mean" else x[:, 0]
    if position == "head":
        x = network.booster(x[:, None])[:, 0]
    return network.head(head_norm(x))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("position", POSITIONS)
def test_is_what_it_is_by_hand(build, x, position, pool):
    network = build(position=position, pool=pool)
    torch.testing.assert_close(network(x), by_hand(network, x, pool, position))


@pytest.mark.parametrize("pool", POOLS)
def test_last_is_where_it_always_was(build, x, pool):
    network, default = build(position="last", pool=pool), build(pool=pool)
    assert torch.equal(network(x), default(x))
    assert network.reads_cls == (pool == "cls")
    heads = f"{type(network).__name__}, patches of (4, 4, 8), 3 heads, pool {pool}"
    assert network.signature.text == default.signature.text == heads, "or no earlier checkpoint would load"
    default.load_state_dict(network.state_dict(), strict=True)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("position", ["middle", "head"])
def test_every_position_is_another_network_with_the_same_weights(build, x, position, pool):
    network, last = build(position=position, pool=pool), build(pool=pool)
    ours, theirs = dict(network.named_parameters()), dict(last.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert network.state_dict().keys() == last.state_dict().keys()
    assert not network.reads_cls
    assert not torch.allclose(network(x), last(x), atol=1e-4)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("position", POSITIONS)
def test_gradients_reach_all(build, x, position, pool):
    network = build(position=position, pool=pool).train()
    logits = network(x)
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.numel() == 0 or (parameter.grad is not None and parameter.grad.any()), name


@pytest.mark.parametrize("pool", POOLS)
def test_without_a_booster_all_are_one_network(build, x, pool):
    networks = [build(boosted=False, position=position, pool=pool) for position in POSITIONS]
    outputs = [network(x) for network in networks]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    for network in networks[1:]:
        network.load_state_dict(networks[0].state_dict(), strict=True)


@pytest.mark.parametrize("position", POSITIONS)
def test_the_boosted_network_starts_from_the_plain_ones_weights(build, position):
    boosted = build(position=position).state_dict()
    for name, value in build(boosted=False).named_parameters():
        assert torch.equal(value, boosted[name])


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("position", POSITIONS)
def test_the_joints(build, x, position, pool):
    """`forward_head` goes on where `forward_features` stopped, with the booster or without."""
    network, plain = build(position=position, pool=pool), build(boosted=False, pool=pool)
    tokens = network.forward_features(x)
    assert tokens.shape == ((2, 1, 12) if position == "head" else plain.forward_features(x).shape)
    torch.testing.assert_close(network(x), network.forward_head(network.booster(tokens)))
    torch.testing.assert_close(plain(x), network.forward_head(tokens))
    seen = []
    network.booster.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].shape, output.shape)))
    network(x)
    out = (2, 1, 12) if position == "last" and pool == "cls" else tokens.shape
    assert seen == [(tokens.shape, out)], "only where the CLS token alone is read further is it asked for alone"


def test_a_checkpoint_of_another_position_is_refused(build):
    """The weights have the same names and shapes and would load."""
    for one in POSITIONS:
        state = build(position=one).state_dict()
        for other in POSITIONS:
            network = build(position=other)
            if one == other:
                network.load_state_dict(state)
                continue
            said = "pool cls'" if one == "last" else f"pool cls, booster at position {one}'"
            with pytest.raises(RuntimeError, match=f"{said}, but this network has the network"):
                network.load_state_dict(state)


@pytest.mark.parametrize("boosted", [False, True])
def test_a_position_that_there_is_not(build, boosted):
    with pytest.raises(ValueError, match=r"unknown position of a Vi(T3D|ViT) 'first'; choose from last, middle, head"):
        build(boosted, position="first")
    one = {"num_layers": 1} if isinstance(build(), ViT3D) else {"num_temporal_layers": 1}
    with pytest.raises(
        ValueError, match=r"position 'middle' needs at least 2 layers around the booster, not 1: take more layers"
    ):
        build(boosted, position="middle", **one)
    for position in ("last", "head"):
        build(boosted, position=position, **one)


@pytest.mark.parametrize(("layers", "before"), [(2, 1), (3, 1), (4, 2)])
def test_half_of_the_layers_come_first(layers, before):
    for network, stack in (
        (ViT3D(**{**VIT3D, "num_layers": layers}, position="middle"), "layers"),
        (ViViT(**{**VIVIT, "num_temporal_layers": layers}, position="middle"), "temporal_layers"),
    ):
        order = []
        for number, layer in enumerate(getattr(network, stack)):
            layer.register_forward_hook(lambda *_, order=order, number=number: order.append(number))
        network.booster.register_forward_hook(lambda *_, order=order: order.append("booster"))
        network(torch.randn(1, 2, 8, 12, 16))
        assert order == [*range(before), "booster", *range(before, layers)]


@script_warnings
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("boosted", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_scripts(build, position, boosted, pool):
    network = build(boosted, position=position, pool=pool)
    scripted = torch.jit.script(copy.deepcopy(network))
    for batch in (1, 3):
        x = torch.randn(batch, 2, 8, 12, 16)
        torch.testing.assert_close(scripted(x), network(x))


@pytest.mark.parametrize(("position", "pool"), [("middle", "cls"), ("head", "mean")])
@torch.no_grad()
def test_compiles_without_a_graph_break(build, x, position, pool):
    """The last position is compiled with its gradients, for each kind of pool, in test_networks."""
    network = build(position=position, pool=pool)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x))
    torch.compiler.reset()


@bundle_warnings
def test_the_bundle(run_job):
    two = {"num_layers": 2}
    folder = run_job("train", epochs=1, position="middle", **two)
    assert (run_job("evaluate", position="middle", **two) / "metrics.json").is_file()
    forget_training(folder)
    with pytest.raises(ValueError, match=r"pool cls, booster at position middle', but .* pool cls': give the options"):
        run_job("evaluate", **two)
    with pytest.raises(ValueError, match=r"booster at position middle', but .* booster at position head'"):
        run_job("evaluate", position="head", **two)


@bundle_warnings
def test_a_mistake_in_the_bundle_is_one_sentence(run_job):
    with pytest.raises(ValueError, match="position 'middle' needs at least 2 layers around the booster, not 1"):
        run_job("train", position="middle")
