# SPDX-License-Identifier: Apache-2.0
"""A booster on the means of cells of a feature map: it starts as the plain network, at any size, in any file."""

import copy

import monai.networks.nets as nets
import pytest
import torch
from torch import nn

from monai_llmboost.boosters import MLPControl, ResidualBooster, mlp_booster
from monai_llmboost.llm import BlockGeometry, random_block
from monai_llmboost.networks import ResNet3D, boost, load_plain_weights, unboost
from monai_llmboost.networks.boosted_module import BoostedModule
from monai_llmboost.networks.token_stride import pool_map, spread_map
from monai_llmboost.networks.trial import Features
from monai_llmboost.studies.cost.arms import read_out

GEOMETRY = BlockGeometry(width=24, mlp_width=40, num_heads=4, num_kv_heads=2, head_size=8)


def unet():
    torch.manual_seed(0)
    return nets.DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 16]).eval()


def boosted(start="plain", token_stride=2, at="upsamples.0"):
    def make(channels):
        torch.manual_seed(3)
        return ResidualBooster(channels, random_block(GEOMETRY), start=start)

    return boost(unet(), make, at=at, example=torch.zeros(1, 1, 16, 16, 16), token_stride=token_stride)


@pytest.mark.parametrize("shape", [(5, 4, 7), (6, 1, 2), (5, 3), (7,)])
def test_cells_are_means_of_their_voxels(shape):
    x = torch.randn(2, 3, *shape, requires_grad=True)
    pooled = pool_map(x, 2)
    assert pooled.shape[2:] == tuple(-(-size // 2) for size in shape)
    last = x[(..., *(slice((size - 1) // 2 * 2, None) for size in shape))]
    torch.testing.assert_close(pooled[(..., *[-1] * len(shape))], last.mean(dim=tuple(range(2, x.dim()))))
    assert torch.equal(spread_map(torch.ones_like(pooled), x, 2), torch.ones_like(x))


def test_the_change_is_interpolated_between_the_centres_of_cells():
    change = torch.tensor([0.0, 4.0, 8.0]).view(1, 1, 3)
    assert spread_map(change, torch.zeros(1, 1, 5), 2).flatten().tolist() == [0, 1, 3, 5, 7]
    twice = spread_map(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 3, 4, 4, dtype=torch.bfloat16), 2)
    assert twice.shape == (1, 1, 3, 4, 4) and twice.dtype == torch.bfloat16


def test_it_starts_as_the_plain_network_and_trains():
    network, x = boosted(), torch.randn(2, 1, 12, 20, 12)
    plain = unboost(copy.deepcopy(network))
    assert torch.equal(network(x), plain(x))
    network.train()(x).square().mean().backward()
    assert network.upsamples[0].booster.decode.weight.grad.any()
    with torch.no_grad():
        network.upsamples[0].booster.decode.weight.normal_()
    assert not torch.equal(network.eval()(x), plain(x))


def test_equals_a_token_per_voxel_on_a_constant_map():
    booster = ResidualBooster(8, random_block(GEOMETRY), start="published")
    every, cells = (BoostedModule(nn.Identity(), booster, Features("map", 8), token_stride=n) for n in (1, 2))
    x = torch.randn(2, 8, 1, 1, 1).expand(2, 8, 5, 4, 6).contiguous()
    torch.testing.assert_close(cells(x), every(x))
    x = torch.randn_like(x)
    assert not torch.allclose(cells(x), every(x), atol=1e-3), "else it is an approximation"


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The TorchScript type:UserWarning")
def test_files_take_other_sizes():
    booster = ResidualBooster(8, random_block(GEOMETRY), start="published")
    network = BoostedModule(nn.Conv3d(1, 8, 1), booster, Features("map", 8), token_stride=2).eval()
    x, sizes = torch.randn(2, 1, 6, 5, 7), ({2: 2 * torch.export.Dim("cells", min=2, max=20)},)
    scripted = torch.jit.script(network)
    exported = torch.export.export(network, (x,), dynamic_shapes=sizes).module()
    with torch.no_grad():
        odd = torch.randn(2, 1, 13, 5, 7)
        torch.testing.assert_close(scripted(odd), network(odd), rtol=1e-4, atol=1e-5)
        for volume in (x, torch.randn(2, 1, 12, 5, 7)):
            expected = network(volume)
            torch.testing.assert_close(scripted(volume), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(exported(volume), expected, rtol=1e-4, atol=1e-5)
        torch.compiler.reset()
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_a_checkpoint_knows_the_stride():
    two, three, one = boosted(), boosted(token_stride=3), boosted(token_stride=1)
    boosted().load_state_dict(two.state_dict())
    load_plain_weights(two, unet().state_dict())
    assert list(unboost(boosted()).state_dict()) == list(unet().state_dict())
    with pytest.raises(RuntimeError, match="the checkpoint was made with the stride of the booster '2 voxels', but"):
        three.load_state_dict(two.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*upsamples\.0\.booster_stride\.code"):
        one.load_state_dict(two.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*upsamples\.0\.booster_stride\.code"):
        two.load_state_dict(one.state_dict())


def test_only_maps_have_a_stride():
    vit = nets.ViT(1, 16, 8, hidden_size=48, mlp_dim=48, num_heads=4, num_layers=1)
    x = torch.zeros(1, 1, 16, 16, 16)
    message = "token_stride=2 pools the voxels of a feature map, and the features at 'norm' are tokens: leave it out"
    with pytest.raises(ValueError, match=message):
        boost(vit, mlp_booster(48, GEOMETRY), at="norm", example=x, token_stride=2)
    resnet = nets.ResNet("basic", [1] * 4, [4] * 4, n_input_channels=1, num_classes=2)
    with pytest.raises(ValueError, match="the features at 'avgpool' are a vector: leave it out, or name a module"):
        boost(resnet, mlp_booster(4, GEOMETRY), at="pooled", example=x, token_stride=2)
    with pytest.raises(ValueError, match="the features of a ResNet3D are tokens"):
        boost(ResNet3D(1, 2, 32), mlp_booster(64, GEOMETRY), token_stride=2)
    with pytest.raises(ValueError, match="token_stride must be a whole number from 1, not 0"):
        boosted(token_stride=0)
    assert not any(isinstance(module, BoostedModule) for net in (vit, resnet) for module in net.modules())


def test_cost_names_the_approximation():
    x = torch.randn(1, 1, 16, 16, 16)
    text = "approximation, token_stride 2: all tokens are read: F_E folded into queries, keys and values"
    assert read_out(boosted(), x) == text
    network = boost(unet(), ResidualBooster(8, MLPControl(24)), "upsamples.0", example=x, token_stride=2)
    assert read_out(network, x) == "approximation, token_stride 2: each token for itself"
    assert "token_stride 2" in repr(network.upsamples[0])
