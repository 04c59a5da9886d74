# SPDX-License-Identifier: Apache-2.0
"""ResNet3D is MONAI's ResNet with a booster on its pooled features or its last map."""

import copy

import pytest
import torch
from monai.networks.nets import ResNet

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.llm import random_block
from monai_llmboost.networks import ResNet3D

SIZES = {"in_channels": 2, "num_classes": 3, "img_size": (17, 24, 18), "hidden_size": 16, "stem_stride": 2}
script_warnings = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")


def build(boosted=True, start="published", **changes):
    """A network of one seed, as the bundle makes it: the booster first, then the seed of the network."""
    torch.manual_seed(1)
    booster = ResidualBooster(16, random_block("random"), start=start) if boosted else None
    torch.manual_seed(0)
    return ResNet3D(**{**SIZES, **changes}, booster=booster).eval()


@pytest.fixture
def x():
    return torch.randn(3, 2, 17, 24, 18, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("num_blocks", "stem_stride"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("position", ["head", "last"])
@pytest.mark.parametrize("training", [False, True])
def test_without_a_booster_it_is_monais_network(x, num_blocks, stem_stride, position, training):
    network = build(False, num_blocks=num_blocks, stem_stride=stem_stride, position=position).train(training)
    theirs = ResNet(
        "basic", [num_blocks] * 4, [2, 4, 8, 16], n_input_channels=2, conv1_t_size=3, conv1_t_stride=stem_stride,
        no_max_pool=True, num_classes=3, bias_downsample=False,
    ).train(training)  # fmt: skip
    head = {f"fc.{name}": value for name, value in network.head.state_dict().items()}
    theirs.load_state_dict({**network.features.state_dict(), **head}, strict=True)
    torch.testing.assert_close(network(x), theirs(x))
    ours = dict(network.features.named_buffers())
    for name, value in theirs.named_buffers():  # the running statistics
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("position", "shape"), [("head", (3, 1, 16)), ("last", (3, 2 * 2 * 2, 16))])
def test_the_booster_is_where_it_says(x, position, shape):
    network = build(position=position)
    seen = []
    network.booster.register_forward_hook(lambda module, given, tokens: seen.append((*given, tokens)))
    logits = network(x)
    [(tokens, boosted)] = seen
    assert tokens.shape == boosted.shape == shape
    torch.testing.assert_close(tokens, network.forward_features(x))
    torch.testing.assert_close(logits, network.head(boosted.mean(dim=1)))
    network.train()(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("position", ["head", "last"])
def test_the_boosted_network_starts_as_the_plain_one(x, position):
    plain, boosted = build(False, position=position), build(start="plain", position=position)
    others = boosted.state_dict()
    assert all(torch.equal(value, others[name]) for name, value in plain.named_parameters())
    for training in (False, True):
        assert torch.equal(plain.train(training)(x), boosted.train(training)(x))


def test_a_batch_of_one_case_is_trained_at_the_smallest_size():
    network = ResNet3D(1, 2, img_size=(1, 25, 2), hidden_size=8).train()
    network(torch.randn(1, 1, 1, 25, 2)).sum().backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": 16}, r"img_size \(16, 16, 16\) is too small: .* more than 16 voxels along an axis, or a smaller"),
        ({"img_size": 8, "stem_stride": 1}, "is too small: .* with stem_stride 1 .* more than 8 voxels"),
        ({"img_size": (28, 28)}, r"img_size \(28, 28\) has another number of axes: give one number or 3"),
        ({"img_size": 28.5}, r"each number of img_size must be a whole number from 1, not 28\.5"),
        ({"position": "middle"}, "unknown position of a ResNet3D 'middle'; choose from head, last"),
        ({"hidden_size": 12}, "hidden_size must be a multiple of 8, not 12: each earlier stage has half of it"),
        ({"hidden_size": 0}, "hidden_size must be a whole number from 8, not 0"),
        ({"num_blocks": 0}, "num_blocks must be a whole number from 1, not 0"),
        ({"stem_stride": 0}, "stem_stride must be a whole number from 1, not 0"),
        ({"in_channels": 0}, "in_channels must be a whole number from 1, not 0"),
        ({"num_classes": 1.5}, r"num_classes must be a whole number from 1, not 1\.5"),
        ({"booster": ResidualBooster(8, random_block("random"))}, "channels=8 does not fit .* hidden_size=16"),
    ],
)
def test_networks_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        ResNet3D(**{**SIZES, **changes})


def test_volumes_of_another_size(x):
    with pytest.raises(ValueError, match=r"volumes of shape \[3, 2, 16, 24, 18\] do not fit .*: resize the volumes"):
        build(False)(x[:, :, 1:])


@pytest.mark.parametrize("changes", [{"stem_stride": 1}, {"position": "last"}])
def test_a_checkpoint_of_another_network_is_refused(changes):
    network = build()
    copy.deepcopy(network).load_state_dict(network.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match="the checkpoint was made with the network 'ResNet3D, stem of stride 2"):
        build(**changes).load_state_dict(network.state_dict())


@script_warnings
@pytest.mark.parametrize("position", ["head", "last"])
@pytest.mark.parametrize("boosted", [False, True])
def test_scripted(x, position, boosted):
    network = build(boosted, position=position)
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))
