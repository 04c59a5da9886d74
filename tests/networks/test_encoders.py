# SPDX-License-Identifier: Apache-2.0
"""EncoderClassifier: the encoders of MONAI's segmentation networks as classifiers, and boosters in them."""

from functools import partial

import pytest
import torch
from monai.networks.nets.segresnet_ds import SegResEncoder, SegResNetDS
from monai.networks.nets.swin_unetr import SwinTransformer, SwinUNETR
from torch import nn

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.llm import BlockGeometry, random_block
from monai_llmboost.networks import EncoderClassifier, boost

GEOMETRY = BlockGeometry(width=24, mlp_width=40, num_heads=4, num_kv_heads=2, head_size=8)
script_warnings = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning", "ignore:The TorchScript type:UserWarning"
)


def segresnet_encoder(**changes):
    torch.manual_seed(0)
    encoder = SegResEncoder(init_filters=8, in_channels=1, blocks_down=(1, 1, 1))
    return EncoderClassifier(encoder, 32, 2, **{"multiple_of": 4, **changes}).eval()


def swin_encoder(feature_size=12, **changes):
    torch.manual_seed(0)
    encoder = SwinTransformer(1, feature_size, (2, 2, 2), (2, 2, 2), (1, 1, 1, 1), (3, 6, 12, 24))
    return EncoderClassifier(encoder, 16 * feature_size, 2, **{"multiple_of": 32, **changes}).eval()


MAKERS = {"segresnet": (segresnet_encoder, (2, 1, 16, 8, 16)), "swinunetr": (swin_encoder, (2, 1, 64, 32, 32))}


def make(name):
    build, shape = MAKERS[name]
    return build(), torch.rand(shape, generator=torch.Generator().manual_seed(1))


def test_the_logits_are_those_of_the_mean_over_the_deepest_map():
    network, x = make("segresnet")
    deepest = network.encoder(x)[-1]
    assert deepest.shape == (2, 32, 4, 2, 4)
    expected = network.head(network.norm(deepest.mean(dim=(2, 3, 4))))
    torch.testing.assert_close(network(x), expected)


def test_the_encoders_are_those_inside_monais_networks():
    """So that their weights have the same names."""
    whole = SegResNetDS(3, 8, 1, 2, blocks_down=(1, 1, 1)).encoder
    assert list(whole.state_dict()) == list(segresnet_encoder().encoder.state_dict())
    swin = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), window_size=2).swinViT
    assert list(swin.state_dict()) == list(swin_encoder().encoder.state_dict())


@pytest.mark.parametrize("at", ["pooled", "deepest", None])
@pytest.mark.parametrize("name", MAKERS)
def test_a_booster_starts_as_the_plain_network_and_is_trained(name, at):
    network, x = make(name)
    plain = network(x)
    names = list(network.state_dict())
    boosted = boost(network, partial(ResidualBooster, block=random_block(GEOMETRY)), at=at)
    module = boosted.pooled if at == "pooled" else boosted.deepest
    assert module.form == ("vector" if at == "pooled" else "map")
    assert torch.equal(boosted(x), plain)
    assert [key for key in boosted.state_dict() if ".booster." not in key] == names
    boosted.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in boosted.norm.parameters())
    assert any(parameter.grad.any() for parameter in module.booster.parameters() if parameter.grad is not None)


@script_warnings
def test_it_can_be_scripted_where_its_encoder_can():
    network, x = make("segresnet")
    boost(network, partial(ResidualBooster, block=random_block(GEOMETRY)), at="pooled")
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(x), network(x))
    with pytest.raises(torch.jit.Error, match="multiples of 4"):
        scripted(torch.zeros(1, 1, 16, 16, 18))


def test_sizes_that_the_encoder_cannot_halve_are_refused():
    with pytest.raises(ValueError, match=r"\[96, 80, 20\] do not fit this encoder.* 32 .* such as to \[96, 96, 32\]"):
        swin_encoder(img_size=(96, 80, 20))
    with pytest.raises(ValueError, match=r"\[18, 16, 16\] do not fit this encoder.* 4 .* such as to \[20, 16, 16\]"):
        segresnet_encoder()(torch.zeros(1, 1, 18, 16, 16))
    with pytest.raises(ValueError, match=r"img_size \[16, 16\] has another number of axes"):
        segresnet_encoder(img_size=[16, 16])
    with pytest.raises(ValueError, match="each number of img_size must be a whole number from 1, not 0"):
        segresnet_encoder(img_size=[16, 0, 16])
    with pytest.raises(ValueError, match="multiple_of must be a whole number from 1"):
        segresnet_encoder(multiple_of=0)


@pytest.mark.parametrize("encoder", [nn.Conv3d(1, 4, 1), nn.Sequential(SegResEncoder(3, 8, 1, blocks_down=(1, 1)))])
def test_an_encoder_without_a_list_of_maps_or_of_other_channels_is_refused(encoder):
    with pytest.raises(ValueError, match=r"the deepest features .* not \(B, 4, S0, S1, S2\): give an encoder"):
        EncoderClassifier(encoder, 4, 2)(torch.zeros(2, 1, 4, 4, 4))
