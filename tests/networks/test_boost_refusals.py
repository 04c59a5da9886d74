# SPDX-License-Identifier: Apache-2.0
"""Joints at which a booster would silently be wrong are refused, and a refused boost changes nothing."""

import copy
from functools import partial

import pytest
import torch
from monai_networks import build
from torch import nn

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.llm import random_block
from monai_llmboost.networks import ViT3D, boost, load_plain_weights, unboost
from monai_llmboost.networks.insertion import BoostedModule

VIT = {"in_channels": 1, "num_classes": 2, "img_size": 16, "patch_size": 8, "hidden_size": 32, "num_heads": 4}


def booster_of(channels):
    return ResidualBooster(channels, random_block("random"))


class Network(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        self.stem = nn.Conv3d(1, 8, 3, padding=1)
        self.mid = nn.Sequential(nn.Conv3d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Conv3d(8, 2, 1)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.head(self.mid(self.stem(x)))


class ChannelsLast(Network):
    def forward(self, x):
        x = self.norm(self.stem(x).movedim(1, -1))
        return self.head(x.movedim(-1, 1))


class Sequence(nn.Module):
    """A transformer whose tokens are (N, B, C), or (B, N, C)."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.stem = nn.Conv3d(1, 8, 4, 4)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x).flatten(2)
        x = self.encoder(x.transpose(1, 2) if self.batch_first else x.permute(2, 0, 1))
        return self.head(x.mean(1 if self.batch_first else 0))


class Inspecting(Network):
    def forward(self, x):
        x = self.mid(self.stem(x))
        return self.head(x * 3 if isinstance(self.mid, nn.Sequential) else x)


class Wide(nn.Module):
    channels = 8

    def forward(self, x):
        return x[:, :1]


@pytest.mark.parametrize(
    ("network", "at", "message"),
    [
        (partial(ChannelsLast, norm=nn.LayerNorm(8)), "norm", "so their channels seem to stand last"),
        (partial(Sequence, False), "encoder", r"for a batch of 2, which does not stand first"),
        (partial(Sequence, True), "encoder.dropout1", "called 0 times without gradients, and once with them"),
        (Inspecting, "mid", "the network computes something else if 'mid' is replaced"),
        (lambda: Network(mid=nn.LazyConv3d(8, 1)), "stem", "has lazy layers, whose shapes are not known yet"),
    ],
)
def test_joints_that_would_be_wrong(network, at, message):
    plain = network().train()
    example = None if "lazy" in message else torch.zeros(1, 1, 12, 12, 12)
    keys, modules = list(plain.state_dict()), list(plain.modules())
    with pytest.raises(ValueError, match=message):
        boost(plain, booster_of, at=at, example=example)
    assert list(plain.state_dict()) == keys
    assert all(one is other for one, other in zip(plain.modules(), modules))
    assert plain.training


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_batch_first_tokens_are_boosted():
    network = boost(Sequence(True), booster_of, at="encoder", example=torch.zeros(1, 1, 12, 12, 12))
    assert network.encoder.form == "tokens"


def test_boosters_that_do_not_run():
    x = torch.zeros(1, 1, 8, 8, 8)
    with pytest.raises(ValueError, match=r"the booster fails on tokens of 8 channels, torch.float32 .*: give it these"):
        boost(Network(), nn.Linear(5, 5), at="mid", example=x)
    with pytest.raises(ValueError, match=r"the booster maps tokens \[1, 2, 8\] to \[1, 1, 8\]: it must keep"):
        boost(Network(), Wide(), at="mid", example=x)
    with pytest.raises(ValueError, match=r"fails on tokens of 8 channels, torch.float64 .* the dtype of the network"):
        boost(Network().double(), booster_of, at="mid", example=x.double())
    network = boost(Network(), booster := booster_of(8), at="mid", example=x)
    with pytest.raises(ValueError, match="this booster stands in the network already: make one for each joint"):
        boost(network, booster, at="stem", example=x)


def test_a_wrong_width_at_tokens_is_no_map():
    network, x = build("ViT")
    with pytest.raises(ValueError, match="channels=5 does not fit the tokens of 48 channels at 'norm'"):
        boost(network, booster_of(5), at="norm", example=x)


def test_a_checkpoint_of_the_other_side_of_a_module_is_refused():
    """Weights of a booster before a module and after it have the same names and shapes."""
    x = torch.zeros(1, 1, 8, 8, 8)
    before, after = (boost(Network(), booster_of, at="mid", before=side, example=x) for side in (True, False))
    again = boost(Network(), booster_of, at="mid", before=True, example=x)
    again.load_state_dict(before.state_dict())
    load_plain_weights(again, Network().state_dict())
    assert list(unboost(again).state_dict()) == list(Network().state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*mid\.booster_place\.code"):
        before.load_state_dict(after.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*booster_place\.code"):
        after.load_state_dict(before.state_dict())


def test_a_refused_booster_stays_whole():
    network = Network(pool=nn.AdaptiveAvgPool3d(1))
    network.hidden = [network.pool]
    network.forward = lambda x: network.head(network.hidden[0](network.mid(network.stem(x))))
    booster = booster_of(8)
    with pytest.raises(ValueError, match="'pool' is not called"):
        boost(network, booster, at="pool", example=torch.zeros(1, 1, 8, 8, 8))
    assert booster(torch.rand(1, 9, 8)).shape == (1, 9, 8)


class Merging(nn.Conv3d):
    """A layer that merges its update in `eval()`, as adapters do."""

    def __init__(self):
        super().__init__(8, 8, 1)
        self.update, self.merged = nn.Parameter(torch.ones(8, 8, 1, 1, 1)), False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.update.data if mode else self.update.data
            self.merged = not mode
        return self

    def forward(self, x):
        return nn.functional.conv3d(x, self.weight if self.merged else self.weight + self.update, self.bias)


def test_layers_that_do_more_in_train_are_left_as_they_were():
    network = Network(stem=nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), Merging())).train()
    weight = network.stem[1].weight.detach().clone()
    boost(network, booster_of, at="mid", example=torch.zeros(1, 1, 8, 8, 8))
    torch.testing.assert_close(network.stem[1].weight, weight)
    assert network.stem[1].training and not network.stem[1].merged


def test_networks_of_this_package():
    with pytest.raises(ValueError, match="the booster of a ViT3D must be a module, not partial: it places the booster"):
        ViT3D(**VIT, booster=partial(booster_of, 32))
    network = boost(ViT3D(**VIT).eval(), lambda channels: nn.Dropout(0.9))
    assert not network.booster.training
    with pytest.raises(ValueError, match="there is no booster at 'typo': leave out at, or give 'last'"):
        unboost(network, at="typo")
    wrapped = nn.Sequential(network)
    unboost(wrapped)
    assert type(network.booster) is nn.Identity


class Counting(nn.Identity):
    def get_extra_state(self):
        return {"count": 3}

    def set_extra_state(self, state):
        self.state = state


def test_plain_weights_of_other_kinds():
    plain = Network(count=Counting())
    network = boost(copy.deepcopy(plain), booster_of, at="mid", example=torch.zeros(1, 1, 8, 8, 8))
    load_plain_weights(nn.DataParallel(network), plain.state_dict())
    assert network.count.state == {"count": 3}
    assert isinstance(network.mid, BoostedModule)
