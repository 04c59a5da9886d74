# SPDX-License-Identifier: Apache-2.0
"""Reading few tokens behind the layer of every native family is the full computation, by any method it allows."""

import pytest
import torch
from readout_methods import METHODS, method, only
from test_readout import CHANNELS, TOKENS, assert_close, output_and_gradients, script_warnings
from tiny_models import CASES, LEARNED_POSITIONS, NORMED_KEYS, tiny_folder

from monai_llmboost.boosters import ResidualBooster, check_booster
from monai_llmboost.boosters.readout.normed_keys import NormedKeys
from monai_llmboost.boosters.readout.visual_tokens import VisualTokens
from monai_llmboost.llm import FrozenBlock, read_layers

__all__ = ["method"]  # the fixture: each of the methods, whatever it costs


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def donor(case, tmp_path_factory):
    """The last two layers of a tiny model of the family."""
    folder = tmp_path_factory.mktemp("donor") / "tiny"
    tiny_folder(case, folder)
    return read_layers(folder, "-2:")


@pytest.fixture(scope="module")
def single(donor):
    from dataclasses import replace

    return replace(donor, layers=donor.layers[-1:])


def boosted(donor, **options):
    torch.manual_seed(0)
    return ResidualBooster(CHANNELS, FrozenBlock(donor, **options), start="published")


@pytest.mark.parametrize(
    ("tokens", "method"),  # with every method, tokens of every kind are read behind a LLaMA layer, in test_readout
    [(tokens, list(METHODS)[number % len(METHODS)]) for number, tokens in enumerate(TOKENS)],
    indirect=["method"],
)
def test_equals_the_full_computation(case, single, method, tokens):
    booster = boosted(single)
    torch.manual_seed(1)
    x = TOKENS[tokens](torch.randn(3, 20, CHANNELS))
    assert_close(output_and_gradients(booster, x, read=2), output_and_gradients(booster, x), 1e-5)


def test_with_other_final_norms(single, method):
    x = torch.randn(3, 20, CHANNELS)
    for final_norm in ("donor", "none"):
        booster = boosted(single, final_norm=final_norm)
        assert_close(output_and_gradients(booster, x, read=2), output_and_gradients(booster, x), 1e-5)


def test_in_order_too(case, single, method):
    """With a mask and positions the first tokens need no others but those before them, and get no others."""
    booster = boosted(single, causal=True, rotary=bool(single.layers[0].geometry.rotary))
    x = torch.randn(3, 20, CHANNELS)
    expected = output_and_gradients(booster, x)
    got = output_and_gradients(booster, x, read=2)
    assert (expected["other tokens"] == 0).all()
    expected.pop("other tokens")
    assert_close(got, expected, 1e-5)


def test_several_layers(donor, method):
    booster, x = boosted(donor), torch.randn(3, 20, CHANNELS)
    assert_close(output_and_gradients(booster, x, read=2), output_and_gradients(booster, x), 1e-5)
    assert booster.describe_readout(3, 20, 2) == "whole block but for its last layer"


def test_obeys_the_contract(single, donor):
    check_booster(boosted(single), CHANNELS)
    check_booster(boosted(donor), CHANNELS)


def test_the_method_is_described_and_taken(case, single, monkeypatch):
    """Where the steps are exact they are taken, and only there."""
    booster = boosted(single)
    only("visual", monkeypatch)
    taken = []
    for kind in (VisualTokens, NormedKeys):
        monkeypatch.setattr(
            kind, "forward", lambda self, x, encode, layer: taken.append(type(self)) or torch.zeros_like(layer.queries)
        )
    booster(torch.randn(2, 9, CHANNELS), 1)
    if case in NORMED_KEYS:
        assert taken == [NormedKeys]
        assert booster.describe_readout(2, 9, 1) == "keys of all tokens, no values"
    else:
        assert taken == [VisualTokens]
        assert booster.describe_readout(2, 9, 1) == "no keys and values, visual tokens"


def test_in_order_no_step_is_left_out(single):
    booster = boosted(single, causal=True)
    assert booster.describe_readout(2, 9, 1) == "keys and values of the tokens before it (causal)"
    if single.layers[0].geometry.rotary:
        turned = boosted(single, rotary=True)
        assert turned.describe_readout(2, 9, 1) == "keys and values of all tokens (for positions or biases)"


@script_warnings
def test_scripts(case, single, donor):
    x = torch.randn(2, 20, CHANNELS)
    for layers, options in ((single, {}), (donor, {}), (single, {"causal": True})):
        if options and case not in LEARNED_POSITIONS and layers.layers[0].geometry.rotary:
            options = {**options, "rotary": True}
        booster = boosted(layers, **options).eval()
        scripted = torch.jit.script(booster)
        torch.testing.assert_close(scripted(x, 2), booster(x, 2))
        torch.testing.assert_close(scripted(x), booster(x))
