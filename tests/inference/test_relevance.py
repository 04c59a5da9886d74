# SPDX-License-Identifier: Apache-2.0
"""Maps over tokens speak of the network that they are made of, and leave it as it was."""

import copy
import itertools

import pytest
import torch
from monai.visualize import GradCAM
from torch import nn

from monai_llmboost.boosters import ResidualBooster, mlp_booster
from monai_llmboost.inference import relevance_maps
from monai_llmboost.llm import random_block
from monai_llmboost.networks import ViT3D, ViViT

SIZE, GRID = (8, 12, 16), (2, 3, 2)
SIZES = {"in_channels": 2, "num_classes": 3, "img_size": SIZE, "patch_size": (4, 4, 8), "hidden_size": 12}
VIT3D = {**SIZES, "mlp_dim": 20, "num_layers": 2, "num_heads": 3}
VIVIT = {**SIZES, "mlp_dim": 20, "num_spatial_layers": 1, "num_temporal_layers": 2, "num_heads": 3}
NETWORKS = {"vit3d": (ViT3D, VIT3D), "vivit": (ViViT, VIVIT)}
PAIR = ["before_booster", "after_booster"]


def build(kind="vit3d", seed=0, boosted=True, **changes):
    torch.manual_seed(seed)
    make, sizes = NETWORKS[kind]
    booster = ResidualBooster(12, random_block("random"), start="published") if boosted else None
    return make(**{**sizes, **changes}, booster=booster).eval()


@pytest.fixture
def image():
    return torch.randn(1, 2, *SIZE, generator=torch.Generator().manual_seed(1))


class Joints(nn.Module):
    """A network whose tokens before and after the booster pass two named places, as (B, C, N)."""

    def __init__(self, network):
        super().__init__()
        self.network, self.before_booster, self.after_booster = network, nn.Identity(), nn.Identity()

    def forward(self, x):
        x = self.before_booster(self.network.forward_features(x).transpose(1, 2)).transpose(1, 2)
        x = self.after_booster(self.network.booster(x).transpose(1, 2)).transpose(1, 2)
        return self.network.forward_head(x)


@pytest.mark.parametrize("position", ["last", "middle"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_pair_of_maps_is_grad_cam_of_monai(kind, pool, position, image):
    network = build(kind, pool=pool, position=position)
    maps = relevance_maps(network, image, 2)
    assert list(maps) == ["network", *PAIR]
    for name in PAIR:
        theirs = GradCAM(
            Joints(copy.deepcopy(network)), name, upsampler=lambda _: lambda x: x, postprocessing=lambda x: x
        )
        tokens = theirs(image, class_idx=2)[0, 0]  # (N,), CLS first where there is one
        expected = tokens[-12:].view(GRID) if kind == "vit3d" else tokens[-2:].view(2, 1, 1).expand(GRID)
        assert maps[name].shape == GRID
        torch.testing.assert_close(maps[name], expected / max(expected.max(), 1e-30), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{"position": "head"}, {"boosted": False}, {"boosted": False, "pool": "mean"}])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_pair_is_left_out_where_no_booster_sees_places(kind, changes, image):
    assert list(relevance_maps(build(kind, **changes), image, 0)) == ["network"]


@pytest.mark.parametrize(
    ("kind", "pool", "position"), list(itertools.product(NETWORKS, ["cls", "mean"], ["last", "middle", "head"]))
)
def test_the_map_of_the_network_is_what_the_prediction_loses_with_a_token(kind, pool, position, image):
    """Shrinking a patch token by a little changes the logit of ``forward``, fast path and all, by gradient x token."""
    network = build(kind, pool=pool, position=position).double()
    lost = torch.zeros(GRID, dtype=torch.float64)
    step = 1e-5
    with torch.no_grad():
        whole = network(image.double())[0, 1]
        for index in range(12):

            def shrink(module, inputs, output, index=index):
                flat = output.flatten(1, 2).clone()
                flat[:, index] *= 1 - step
                return flat.view_as(output)

            with network.patch_tokens.register_forward_hook(shrink):
                lost.view(-1)[index] = (whole - network(image.double())[0, 1]) / step
    relevance = relevance_maps(build(kind, pool=pool, position=position), image, 1)["network"]
    expected = lost.relu() / lost.max()
    assert (expected > 0.01).sum() > 0
    torch.testing.assert_close(relevance.double(), expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_patch_that_decides_is_the_peak(pool):
    """Trained until one patch decides: whether it holds a bright corner. One volume may differ, the mean does not."""
    torch.manual_seed(1)
    network = ViT3D(1, 2, 12, 4, hidden_size=12, num_heads=2, num_layers=1, mlp_dim=12, pool=pool)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(200):
        x = torch.randn(24, 1, 12, 12, 12)
        y = torch.arange(24) % 2
        x[y == 1, :, 4:6, 8:10, :2] += 4
        loss = nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    x = torch.randn(12, 1, 12, 12, 12)
    x[:, :, 4:6, 8:10, :2] += 4
    relevance = torch.stack([relevance_maps(network, one[None], 1)["network"] for one in x]).mean(0)
    assert relevance[1, 2, 0] > 0.9
    assert relevance.flatten().sort().values[-2] < 0.7, "no other patch comes near"


def test_other_weights_and_other_classes_give_other_maps(image):
    """The sanity check of Adebayo et al. 2018: a map that survives random weights would be of the image alone."""
    maps, other = (relevance_maps(build(seed=seed), image, 0) for seed in (0, 1))
    of_class = relevance_maps(build(), image, 1)
    for name in maps:
        assert (maps[name] - other[name]).abs().max() > 0.1
        assert (maps[name] - of_class[name]).abs().max() > 0.1
        assert maps[name].min() >= 0
        assert maps[name].max() == 1


def test_nothing_is_all_zero_and_not_nan(image):
    network = build()
    nn.init.zeros_(network.head.weight)
    assert all(float(values.max()) == 0 for values in relevance_maps(network, image, 0).values())


def state_of(network):
    return [(type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_network_stays_as_it_was(kind, image):
    network = build(kind, dropout_rate=0.5)
    network.train()
    network.head.eval()
    network(image).sum().backward()
    before = state_of(network)
    gradients = [copy.copy(parameter.grad) for parameter in network.parameters()]
    weights = copy.deepcopy(network.state_dict())
    maps = relevance_maps(network, image, 0)
    assert state_of(network) == before
    for parameter, gradient in zip(network.parameters(), gradients):
        assert parameter.grad is gradient or torch.equal(parameter.grad, gradient)
    torch.testing.assert_close(network.state_dict(), weights, rtol=0, atol=0)
    torch.testing.assert_close(maps, relevance_maps(network.eval(), image, 0), rtol=0, atol=0)  # dropout in neither


def test_hooks_and_modes_are_restored_after_an_error(image):
    network = build().train()
    before = state_of(network)
    with pytest.raises(ValueError, match=r"volumes of shape .* do not fit"):
        relevance_maps(network, image[..., :4], 0)
    with pytest.raises(ValueError, match="class_index must be from 0 to 2, not 3"):
        relevance_maps(network, image, 3)
    assert state_of(network) == before
    assert all(parameter.grad is None for parameter in network.parameters())


def test_surroundings_do_not_matter(image):
    network = build()
    expected = relevance_maps(network, image, 0)
    for around in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with around:
            torch.testing.assert_close(relevance_maps(network, image + 0, 0), expected, rtol=0, atol=0)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    # Maps that are not trained are read by a kept product, which rounds differently.
    torch.testing.assert_close(relevance_maps(network, image.double(), 0), expected, rtol=1e-4, atol=1e-6)
    assert all(not values.requires_grad for values in expected.values())


def test_a_block_in_half_precision_and_a_control_have_maps_too(image):
    torch.manual_seed(0)
    for booster in (
        ResidualBooster(12, random_block("random", dtype=torch.bfloat16), start="published"),
        mlp_booster(12, "random", start="published"),
    ):
        maps = relevance_maps(ViT3D(**VIT3D, booster=booster), image, 0)
        assert list(maps) == ["network", *PAIR]
        assert all(values.dtype == torch.float32 for values in maps.values())


def test_what_cannot_have_maps_is_refused(image):
    with pytest.raises(TypeError, match=r"Linear has no patch tokens.*: run without saliency maps"):
        relevance_maps(nn.Linear(2, 2), image, 0)
    with pytest.raises(
        ValueError, match=r"the shape \(2, 2, 8, 12, 16\) is not that of one image.*: give them one by one"
    ):
        relevance_maps(build(), image.expand(2, -1, -1, -1, -1), 0)
    with pytest.raises(ValueError, match="the logit is NaN or infinite"):
        relevance_maps(build(), image * torch.nan, 0)
