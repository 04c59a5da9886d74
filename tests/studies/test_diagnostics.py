# SPDX-License-Identifier: Apache-2.0
"""What a booster does to the tokens of a network, in numbers that can be checked by hand."""

from functools import partial

import pytest
import torch
from monai.networks.nets import UNet

from monai_llmboost.boosters import ResidualBooster, mlp_booster
from monai_llmboost.engines import AutocastInferer
from monai_llmboost.llm import random_block
from monai_llmboost.networks import ViT3D, boost
from monai_llmboost.studies import diagnostics
from monai_llmboost.studies.diagnostics import diagnose, linear_cka, top_share

NAMES = {"cka_block", "cka_booster", "booster_adds", "top_tokens_before", "top_tokens_after"}


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(*shape, generator=generator)


@pytest.fixture
def images(draw):
    return [draw(2, 1, 8, 8, 8) for _ in range(3)]


def network(booster="random", **changes):
    torch.manual_seed(0)
    made = {
        "random": lambda: ResidualBooster(12, random_block("random"), start="published"),
        "mlp": lambda: mlp_booster(12, "random", start="published"),
        "none": lambda: None,
    }[booster]()
    sizes = {"hidden_size": 12, "mlp_dim": 20, "num_layers": 2, "num_heads": 3, **changes}
    return ViT3D(1, 2, img_size=8, patch_size=2, booster=made, **sizes)


def test_cka_by_hand():
    a, b, c = torch.tensor([[[1.0], [0], [-1]], [[1], [-1], [0]], [[1], [-2], [1]]])
    assert linear_cka(a, b) == pytest.approx(1 / (2 * 2))
    assert linear_cka(a, c) == pytest.approx(0, abs=1e-12)
    # Two columns: |B'A|^2 = 1 + 9, |A'A| = |diag(2, 6)| = sqrt(40), |B'B| = 2.
    assert linear_cka(torch.cat((a, c), 1), b) == pytest.approx(10 / (40**0.5 * 2))


def test_cka_is_one_for_rotation_scale_and_shift(draw):
    a = draw(200, 6)
    turn = torch.linalg.qr(draw(6, 6))[0]
    assert linear_cka(a, 3 * a @ turn + 5) == pytest.approx(1, abs=1e-6)
    assert linear_cka(a, a @ torch.diag(torch.arange(1.0, 7))) < 0.99, "a stretch of some axes is more than that"


def test_cka_is_near_zero_for_independent_tokens_and_symmetric(draw):
    a, b = draw(4000, 6), draw(4000, 9)
    assert 0 <= linear_cka(a, b) < 0.01
    assert linear_cka(a, b) == pytest.approx(linear_cka(b, a))
    assert linear_cka(a, torch.ones(4000, 3)) == 0, "nothing is like what never changes"


def test_top_share_by_hand():
    tokens = torch.zeros(2, 10, 1)
    tokens[0, 3] = 10  # mean 1: one token at distance 9, nine at 1
    tokens[1, :5] = 1  # all at one half
    assert top_share(tokens[:1]) == pytest.approx(9 / 18)
    assert top_share(tokens[1:]) == pytest.approx(1 / 10)
    assert top_share(tokens) == pytest.approx((0.5 + 0.1) / 2)
    assert top_share(torch.ones(1, 4, 3)) == 0
    assert top_share(torch.tensor([[[0.0], [2.0], [4.0]]])) == pytest.approx(0.5), "of few tokens at least one"


@pytest.mark.parametrize("booster", ["random", "mlp"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("position", ["last", "middle"])
def test_diagnose(images, booster, pool, position):
    boosted = network(booster, pool=pool, position=position)
    measured = diagnose(boosted, images)
    assert set(measured) == NAMES | ({"block_adds"} if booster == "random" else set())
    assert all(type(value) is float and value > 0 for value in measured.values())
    assert all(value <= 1 for name, value in measured.items() if not name.endswith("_adds"))
    with torch.inference_mode():
        x = torch.cat([boosted.forward_features(image) for image in images])
        h = boosted.booster.encode(x)
        expected = {
            "cka_block": linear_cka(h.flatten(0, 1), boosted.booster.block(h).flatten(0, 1)),
            "cka_booster": linear_cka(x.flatten(0, 1), boosted.booster(x).flatten(0, 1)),
            "top_tokens_before": top_share(x),
            "top_tokens_after": top_share(boosted.booster(x)),
        }
        read = 1 if position == "last" and pool == "cls" else x.shape[1]
        expected["booster_adds"] = size(boosted.booster(x)[:, :read] - x[:, :read]) / size(x[:, :read])
        if booster == "random":
            expected["block_adds"] = size(boosted.booster.block.layer(h) - h) / size(h)
    assert measured == pytest.approx(expected, rel=1e-4)


def size(tokens):
    return float(tokens.double().square().sum().sqrt())


@pytest.mark.parametrize(("h_rms", "least", "most"), [(0.02, 3, 100), (1.0, 0.05, 0.7), (100.0, 0, 0.01)])
def test_what_the_block_adds_depends_on_the_size_of_its_tokens(images, h_rms, least, most):
    torch.manual_seed(0)
    booster = ResidualBooster(12, random_block("random", h_scale=h_rms))
    boosted = ViT3D(
        1, 2, img_size=8, patch_size=2, hidden_size=12, mlp_dim=20, num_layers=1, num_heads=3, booster=booster
    )
    measured = diagnose(boosted, images)
    assert least < measured["block_adds"] < most
    assert measured["booster_adds"] == 0, "as it starts as the plain network"
    assert measured["cka_booster"] == pytest.approx(1)


def test_a_pooled_token_has_no_others_beside_it(images):
    measured = diagnose(network(position="head"), images)
    assert set(measured) == {"cka_block", "cka_booster", "block_adds", "booster_adds"}


def test_no_booster(images):
    assert diagnose(network("none"), images) is None


def test_only_as_many_volumes_as_are_needed(images, monkeypatch):
    monkeypatch.setattr(diagnostics, "TOKENS", 100)
    asked = []

    def watched():
        for number, image in enumerate(images):
            asked.append(number)
            yield image

    diagnose(network(), watched())
    assert asked == [0], "2 x 65 tokens are enough"


def test_it_leaves_the_network_as_it_was_but_for_eval(images):
    boosted = network().train()
    before = {name: weight.clone() for name, weight in boosted.state_dict().items()}
    diagnose(boosted, images)
    assert not boosted.training
    assert all(torch.equal(weight, before[name]) for name, weight in boosted.state_dict().items())
    with pytest.raises(ValueError, match="do not fit a network"):
        diagnose(boosted, [torch.rand(1, 1, 6, 8, 8)])
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in boosted.modules())
    assert torch.equal(boosted(images[0]), boosted(images[0]))


def test_dropout_is_off(images):
    assert diagnose(network(dropout_rate=0.5), images) == diagnose(network(dropout_rate=0.5), images)


def test_windows_of_a_volume_are_measured_as_one_batch(images):
    """A network that sees windows is measured on all of them, not on the first one only."""
    tested, whole = network(), torch.cat(images)

    def in_windows(image, part):
        return torch.cat([part(window) for window in image.split(2)])

    assert diagnose(tested, [whole], in_windows) == pytest.approx(diagnose(tested, [whole]), rel=1e-5)


def test_mixed_precision_changes_little(draw):
    """Features of a convolution are in bfloat16 there, and the block too; the maps are in float32."""
    images = [draw(2, 1, 16, 16, 16) for _ in range(2)]
    measured = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        plain = UNet(3, 1, 2, channels=(8, 16, 12), strides=(2, 2))
        booster = partial(ResidualBooster, block=random_block("random", dtype=dtype), start="published")
        measured.append(diagnose(boost(plain, booster, at="deepest"), images, AutocastInferer(dtype)))
    assert measured[1] == pytest.approx(measured[0], rel=0.03)
