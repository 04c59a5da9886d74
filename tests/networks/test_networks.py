# SPDX-License-Identifier: Apache-2.0
"""ViT3D and ViViT as MONAI-style networks: shapes, clear errors, checkpoints, scripting."""

import copy

import pytest
import torch

from monai_llmboost.boosters import ResidualBooster, mlp_booster
from monai_llmboost.llm import random_block
from monai_llmboost.networks import ViT3D, ViViT

SIZES = {"in_channels": 2, "num_classes": 3, "img_size": (8, 12, 16), "patch_size": (4, 4, 8), "hidden_size": 12}
VIT3D = {**SIZES, "mlp_dim": 20, "num_layers": 2, "num_heads": 3}
VIVIT = {**SIZES, "mlp_dim": 20, "num_spatial_layers": 1, "num_temporal_layers": 2, "num_heads": 3}
NETWORKS = {"vit3d": (ViT3D, VIT3D), "vivit": (ViViT, VIVIT)}
script_warnings = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(params=NETWORKS)
def build(request):
    kind, sizes = NETWORKS[request.param]
    return lambda **changes: kind(**{**sizes, **changes})


@pytest.fixture
def booster():
    return ResidualBooster(12, random_block("random"), start="published")


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("boosted", [False, True])
def test_logits(build, booster, pool, boosted):
    network = build(pool=pool, booster=booster if boosted else None)
    logits = network(torch.randn(5, 2, 8, 12, 16))
    assert logits.shape == (5, 3)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.numel())


def test_a_mask_that_hides_all_from_the_cls_token_is_refused(build):
    block = random_block("random")
    block.causal = True
    with pytest.raises(ValueError, match="hides all other tokens from the CLS token"):
        build(booster=ResidualBooster(12, block, start="published"))
    build(booster=ResidualBooster(12, block, start="published"), pool="mean")
    build(booster=ResidualBooster(12, block, start="published"), position="middle")


def test_the_numbers_of_tokens():
    x = torch.randn(1, 2, 8, 12, 16)
    assert ViT3D(**VIT3D).forward_features(x).shape == (1, 1 + 2 * 3 * 2, 12)
    assert ViViT(**VIVIT).forward_features(x).shape == (1, 1 + 2, 12)
    assert ViViT(**VIVIT, pool="mean").forward_features(x).shape == (1, 2, 12)


def test_how_full_a_patch_is_is_seen_through_a_stem_only(build):
    x = torch.zeros(3, 2, 8, 12, 16)
    x[1, :, :4, :4, :8], x[2, :, :4, :4, :8] = 0.5, 1.0
    empty, half, full = build().patch_tokens(x)[:, 0, 0]
    assert torch.equal(empty, half) and torch.equal(half, full)
    network = build(stem_channels=5)
    empty, half, full = network.patch_tokens(x)[:, 0, 0]
    assert min((empty - half).abs().max(), (half - full).abs().max()) > 0.01
    network(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_checkpoint_of_another_stem_is_refused_by_name(build):
    state = build(stem_channels=5).state_dict()
    build(stem_channels=5).load_state_dict(state)
    with pytest.raises(RuntimeError, match="pool cls, stem of 5 channels'"):
        build().load_state_dict(state)


def test_one_number_is_a_cube():
    network = ViT3D(1, 2, img_size=8, patch_size=4, hidden_size=12, num_heads=3)
    assert network(torch.randn(1, 1, 8, 8, 8)).shape == (1, 2)


def test_head_size_is_free(build):
    assert build(num_heads=5, head_size=7)(torch.randn(1, 2, 8, 12, 16)).shape == (1, 3)


@pytest.mark.parametrize("shape", [(1, 2, 8, 12, 12), (1, 1, 8, 12, 16), (2, 8, 12, 16), (1, 2, 12, 16)])
def test_volumes_of_another_shape(build, shape):
    with pytest.raises(
        ValueError, match=r"volumes of shape \[.*\] do not fit a network for \(batch, \[2, 8, 12, 16\]\): resize"
    ):
        build()(torch.randn(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 5}, r"img_size \(8, 12, 16\) is no multiple of patch_size \(5, 5, 5\) along each axis"),
        ({"img_size": (8, 8)}, r"img_size \(8, 8\) has another number of axes: give one number or 3"),
        ({"img_size": 0}, "each number of img_size must be a whole number from 1, not 0"),
        ({"patch_size": -4}, "each number of patch_size must be a whole number from 1, not -4"),
        ({"pool": "max"}, "unknown pool 'max'; choose from cls, mean"),
        ({"num_heads": 5}, "num_heads 5 does not divide hidden_size 12"),
        ({"num_heads": 0}, "num_heads must be a whole number from 1, not 0"),
        ({"dropout_rate": 1.0}, "dropout_rate must be from 0 to below 1, not 1.0"),
        ({"stem_channels": -1}, "stem_channels must be a whole number from 0, not -1"),
        ({"stem_channels": 2.5}, "stem_channels must be a whole number from 0, not 2.5"),
        ({"num_classes": 0}, "num_classes must be a whole number from 1, not 0"),
        ({"class_names": ["a", "b"]}, r"2 class names \['a', 'b'\] for 3 classes: give one for each"),
        (
            {"class_names": ["a b", "c", "a\nb"]},
            r"class names .* are not all different: a table needs a column for each",
        ),
        ({"class_names": ["a b", "c", "a\u2028b"]}, "are not all different"),
        ({"class_names": [1, 2, 3]}, r"class names \[1, 2, 3\] are no list of texts: write them as"),
        ({"class_names": "abc"}, "class names 'abc' are no list of texts"),
        ({"class_names": ["a" * 500, "b", "c"]}, "class names of 504 bytes in all are too long: shorten them to 480"),
        (
            {"booster": mlp_booster(16, "random", start="published")},
            "booster with channels=16 does not fit a network with hidden_size=12",
        ),
    ],
)
def test_sizes_that_do_not_fit(build, changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_dropout_is_off_in_eval_and_on_in_training(build):
    network, x = build(dropout_rate=0.5), torch.randn(1, 2, 8, 12, 16)
    assert torch.equal(network.eval()(x), network(x))
    assert not torch.equal(network.train()(x), network(x))


def test_checkpoint_is_small_complete_and_carries_the_class_names(build, booster):
    network = build(booster=booster, class_names=["air", "fat", "bone"])
    state = network.state_dict()
    trained = sum(parameter.numel() for parameter in network.parameters())
    # The signatures of network, residual and block, the names, the training cases; the preprocessing.
    texts = 5 * 512 + 2048
    assert sum(value.numel() for value in state.values()) == trained + texts
    other = build(booster=ResidualBooster(12, random_block("random"), start="published"))
    assert other.class_names.names() == ["class 0", "class 1", "class 2"]
    other.load_state_dict(state, strict=True)
    assert other.class_names.names() == ["air", "fat", "bone"]
    x = torch.randn(2, 2, 8, 12, 16)
    assert torch.equal(other(x), network(x))
    with pytest.raises(RuntimeError, match=r"'random seed 0 .*'random seed 1"):
        build(booster=ResidualBooster(12, random_block("random", seed=1), start="published")).load_state_dict(state)


@pytest.mark.parametrize("changes", [{"num_heads": 2, "head_size": 4}, {"num_heads": 4, "head_size": 2}])
def test_what_the_shapes_do_not_tell_is_compared_too(build, changes):
    """Two heads of 6 and three of 4 have weights of the same shapes."""
    state = build(num_heads=3, head_size=4).state_dict()
    same = 12 // changes["num_heads"]
    with pytest.raises(RuntimeError, match=r"the network '\w+, patches of \(4, 4, 8\), 3 heads, pool cls'"):
        build(num_heads=changes["num_heads"], head_size=same).load_state_dict(state)


def test_many_classes_need_no_names(build):
    assert build(num_classes=1000).class_names.names()[999] == "class 999"


@script_warnings
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize(("boosted", "stem_channels"), [(False, 0), (True, 0), (True, 5)])
def test_scripts(build, booster, pool, boosted, stem_channels):
    network = build(pool=pool, booster=booster if boosted else None, stem_channels=stem_channels).eval()
    scripted = torch.jit.script(copy.deepcopy(network))
    for batch in (1, 3):
        x = torch.randn(batch, 2, 8, 12, 16)
        torch.testing.assert_close(scripted(x), network(x))
    with pytest.raises(Exception, match=r"volumes of shape .* do not fit"):
        scripted(torch.randn(1, 2, 8, 8, 8))


def test_frozen_weights_are_bit_identical_after_training(build, booster):
    network = build(booster=booster)
    before = copy.deepcopy(dict(booster.block.named_buffers()))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.randn(2, 2, 8, 12, 16)).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(buffer, before[name]) for name, buffer in booster.block.named_buffers())


@pytest.mark.parametrize(("pool", "backend"), [("cls", "aot_eager"), ("mean", "eager")])
def test_compiles_without_a_graph_break(build, booster, pool, backend):
    torch.manual_seed(0)
    network, x = build(pool=pool, booster=booster), torch.randn(2, 2, 8, 12, 16)
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x))
    torch.compiler.reset()


def test_a_compiled_booster_is_read_too(build, booster):
    network = build(booster=torch.compile(booster, backend="eager"))
    assert network.reads_cls
    x = torch.randn(2, 2, 8, 12, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(x), network.forward_head(booster(network.forward_features(x))))
    torch.compiler.reset()
