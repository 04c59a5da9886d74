# SPDX-License-Identifier: Apache-2.0
"""The map from features of one kind to another: vectors, tokens, feature maps."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet, ViT, resnet10
from torch import nn

from monai_llmboost.engines.distillation import LastLayer, Projector
from monai_llmboost.networks import ViT3D

CUBE, SQUARE = [8, 8, 8], [8, 8]
SHAPES = {
    3: {"vector": [5], "cls": [65, 5], "tokens": [64, 6], "coarse": [9, 7], "map": [4, 6, 4, 3]},
    2: {"vector": [5], "cls": [17, 5], "tokens": [16, 6], "coarse": [5, 7], "map": [4, 6, 4]},
}
VIT = {"in_channels": 1, "hidden_size": 24, "mlp_dim": 24, "num_layers": 1, "num_heads": 2}


def start_as_identity(projector):
    """Let a projector between equal widths return what the change of kind returns."""
    weight = projector.head.linear.weight
    nn.init.zeros_(projector.head.linear.bias)
    with torch.no_grad():
        weight.copy_(torch.eye(len(weight)).reshape(weight.shape))
    return projector


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("given", SHAPES[3])
@pytest.mark.parametrize("wanted", SHAPES[3])
def test_each_kind_to_each(axes, given, wanted):
    one, other = SHAPES[axes][given], SHAPES[axes][wanted]
    if given == "vector" != wanted:
        with pytest.raises(ValueError, match=r"\[5\] are a vector, which says nothing of places"):
            Projector(one, other, [8] * axes)
        return
    projector = Projector(one, other, [8] * axes)
    assert all(name.startswith("head.") for name in projector.state_dict())
    mapped = projector(torch.randn(2, *one))
    assert list(mapped.shape) == [2, *other]
    mapped.square().sum().backward()
    assert all(weight.grad is not None for weight in projector.parameters())


@pytest.mark.parametrize("shape", [[6], [65, 6], [10, 6], [6, 3, 4, 5]])
def test_one_kind_is_mapped_as_by_the_head(shape):
    x = torch.randn(2, *shape)
    assert torch.equal(start_as_identity(Projector(shape, shape, CUBE))(x), x)


def test_a_vector_is_the_mean():
    x = torch.randn(2, 10, 6)
    torch.testing.assert_close(start_as_identity(Projector([10, 6], [6], CUBE))(x), x.mean(1))
    x = torch.randn(2, 6, 3, 4, 5)
    torch.testing.assert_close(start_as_identity(Projector([6, 3, 4, 5], [6], CUBE))(x), x.mean((2, 3, 4)))
    x = torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(start_as_identity(Projector([6, 3, 4], [6], SQUARE))(x), x.mean((2, 3)))


@pytest.mark.parametrize("cls", [0, 1])
def test_tokens_are_put_on_their_grid(cls):
    """Of a volume of 8 x 4 x 12 voxels in patches of 2, the voxel (i, j, k) of the map is the token 12 i + 6 j + k."""
    x = torch.arange(cls + 4 * 2 * 6, dtype=torch.float32).reshape(1, -1, 1) - cls
    found = start_as_identity(Projector([48 + cls, 1], [1, 4, 2, 6], [8, 4, 12]))(x)
    i, j, k = torch.meshgrid(torch.arange(4), torch.arange(2), torch.arange(6), indexing="ij")
    assert torch.equal(found[0, 0], (12 * i + 6 * j + k).float())


def test_a_map_becomes_tokens():
    x = torch.randn(2, 3, 8, 4, 12)
    found = start_as_identity(Projector([3, 8, 4, 12], [49, 3], [8, 4, 12]))(x)
    torch.testing.assert_close(found[:, 0], x.mean((2, 3, 4)))
    torch.testing.assert_close(found[:, 1 + 12 + 6 + 5], x[:, :, 2:4, 2:4, 10:12].mean((2, 3, 4)))
    assert torch.equal(start_as_identity(Projector([3, 8, 4, 12], [48, 3], [8, 4, 12]))(x), found[:, 1:])


@pytest.mark.parametrize(("cls", "wants_cls"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_tokens_of_another_grid(cls, wants_cls):
    x = torch.randn(2, 64 + cls, 3)
    found = start_as_identity(Projector([64 + cls, 3], [8 + wants_cls, 3], CUBE))(x)
    if wants_cls:
        torch.testing.assert_close(found[:, 0], x[:, 0] if cls else x.mean(1))
    corner = x[:, cls:].reshape(2, 4, 4, 4, 3)[:, :2, :2, 2:].mean((1, 2, 3))
    torch.testing.assert_close(found[:, wants_cls + 1], corner)


def tokens_of(network, layer, volumes):
    found = []
    layer.register_forward_hook(lambda module, inputs, output: found.append(output))
    network.eval()(volumes)
    return found[0]


def test_the_tokens_of_networks():
    """The tokens of a bright octant are those of the octant in the map, in our transformer and in MONAI's."""
    volumes = torch.zeros(2, 1, 8, 8, 8)
    volumes[1, :, :4, 4:, :4] = torch.rand(4, 4, 4)
    ours = ViT3D(num_classes=2, img_size=8, patch_size=4, **VIT)
    monai = ViT(img_size=(8, 8, 8), patch_size=(4, 4, 4), classification=True, spatial_dims=3, **VIT)
    for network, layer in ((ours, ours.patch_tokens), (monai, monai.patch_embedding)):
        tokens = tokens_of(network, layer, volumes).reshape(2, -1, 24)
        assert len(tokens[0]) in (8, 9)
        grid = Projector([*tokens.shape[1:]], [24, 2, 2, 2], CUBE).change(tokens)
        differ = (grid[1] - grid[0]).abs().amax(0) > 1e-6
        assert differ[0, 1, 0] and differ.sum() == 1


def test_between_networks():
    """A transformer's tokens teach a ResNet's vector and a UNet's map, and a UNet's map a transformer's tokens."""
    volumes = torch.rand(2, 1, 16, 16, 16)
    vit = ViT(img_size=(16, 16, 16), patch_size=(4, 4, 4), classification=True, spatial_dims=3, **VIT)
    tokens = tokens_of(vit, vit.norm, volumes)
    features = []
    for network in (
        resnet10(spatial_dims=3, n_input_channels=1, num_classes=2, widen_factor=0.25),
        UNet(3, 1, 2, channels=(4, 8), strides=(2,)),
        ViT3D(num_classes=2, img_size=16, patch_size=8, **VIT),
    ):
        last = LastLayer(network, volumes)
        network.eval()(volumes)
        features.append(last.take_features())
    vector, unet, cls = features
    assert tokens.shape[1] == 65 and unet.dim() == 5 and vector.dim() == cls.dim() == 2
    for given, wanted in ((tokens, vector), (tokens, unet), (unet, tokens), (unet, vector), (cls, vector)):
        projector = Projector(given.shape[1:], wanted.shape[1:], volumes.shape[2:])
        assert projector(given).shape == wanted.shape


@pytest.mark.parametrize(
    ("given", "wanted", "image", "message"),
    [
        ([512], [16, 4, 4, 4], CUBE, r"\[512\] are a vector.* mapped to \[16, 4, 4, 4\]: take features from a layer"),
        ([66, 5], [4, 4, 4, 4], CUBE, "66 tokens are not those of cubic patches of a volume of 8 x 8 x 8"),
        ([4, 4, 4, 4], [66, 5], CUBE, "66 tokens"),
        ([33, 5], [8, 5], CUBE, "33 tokens"),
        ([4, 4, 4], [5], CUBE, r"\[4, 4, 4\] are neither .* a feature map \(C, S0, S1, S2\): choose another layer"),
        ([5], [4, 4, 4, 4], SQUARE, r"a feature map \(C, S0, S1\)"),
        ([5], [], CUBE, r"features of shape \[\] are neither"),
        ([5], [0], CUBE, "each number of a shape of features must be a whole number from 1, not 0"),
        ([5], [5], [8], "unknown number of axes of image_size 1; choose from 2, 3"),
    ],
)
def test_wrong_shapes(given, wanted, image, message):
    with pytest.raises(ValueError, match=message):
        Projector(given, wanted, image)


def test_other_features():
    with pytest.raises(ValueError, match=r"\[2, 64, 5\] do not fit a projector of \[65, 5\]: build it"):
        Projector([65, 5], [4, 8, 8, 8], CUBE)(torch.zeros(2, 64, 5))
