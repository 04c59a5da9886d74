# SPDX-License-Identifier: Apache-2.0
"""The read-out of blocks that scale their tokens: exact for every native family, at any size and epsilon."""

from dataclasses import replace

import pytest
import torch
from readout_methods import method
from test_readout import CHANNELS, TOKENS, assert_close, output_and_gradients, script_warnings
from tiny_models import CASES, NORMED_KEYS, tiny_folder

from monai_llmboost.boosters import ResidualBooster, check_booster
from monai_llmboost.llm import BlockGeometry, FrozenBlock, random_block, random_layer, read_layers

__all__ = ["method"]  # the fixture: each of the methods, whatever it costs
# Sizes and epsilons of the norms: with the first two, eps is larger than the squared size.
SIZES = ((0.05, 1e-2), (0.002, 1e-5), (0.05, 1e-5), (5.0, 1e-2))
LLAMA = BlockGeometry(width=96, mlp_width=128, num_heads=6, num_kv_heads=2, head_size=16)
FORMS = {
    "rms norm": {},
    "layer norm": {"norm": "layer", "qkv_bias": True, "gated": False, "mlp_bias": True},
    "normed keys": {"qk_norm": "head"},
    "normed keys, no norm before": {"qk_norm": "all", "pre_norm": False, "post_norm": True},
}


@pytest.fixture(scope="module", params=CASES)
def donor(request, tmp_path_factory):
    """The last layer of a tiny model of the family."""
    folder = tmp_path_factory.mktemp("donor") / "tiny"
    tiny_folder(request.param, folder)
    return read_layers(folder, -1)


@pytest.fixture(params=FORMS)
def geometry(request):
    return replace(LLAMA, **FORMS[request.param])


def boosted(donor, **options):
    torch.manual_seed(0)
    return ResidualBooster(CHANNELS, FrozenBlock(donor, **options), start="published")


def without_key_biases(results):
    """Their gradients are zero but for rounding, because they add the same to all scores."""
    return {name: value for name, value in results.items() if not name.endswith("key.bias")}


def with_eps(donor, eps):
    layers = tuple(replace(one, geometry=replace(one.geometry, norm_eps=eps)) for one in donor.layers)
    return replace(donor, layers=layers)


@pytest.mark.parametrize("trained", [False, True])
def test_is_the_full_computation_in_float64(donor, method, trained):
    """To the digits of float64, so that a wrong term of the size of a tiny epsilon would be seen."""
    for size, eps in SIZES[:1] if trained else SIZES:
        booster = boosted(with_eps(donor, eps), h_rms=size, trained=trained).double()
        for tokens in ("random", "large common mean"):
            x = TOKENS[tokens](torch.randn(3, 20, CHANNELS, generator=torch.Generator().manual_seed(1))).double()
            expected = without_key_biases(output_and_gradients(booster, x))
            assert_close(output_and_gradients(booster, x, read=2), expected, 1e-9)


@pytest.mark.parametrize("tokens", TOKENS)
def test_is_the_full_computation_in_float32(geometry, method, tokens):
    booster = boosted(random_layer(geometry), h_rms=0.5)
    x = TOKENS[tokens](torch.randn(3, 20, CHANNELS, generator=torch.Generator().manual_seed(1)))
    assert_close(output_and_gradients(booster, x, read=2), output_and_gradients(booster, x), 2e-6)


def test_the_epsilon_matters_in_these_tests(donor):
    """Otherwise a read-out without the terms in eps would pass."""
    x = torch.randn(3, 20, CHANNELS)
    results = [boosted(with_eps(donor, eps), h_rms=0.05)(x, 1) for eps in (1e-2, 1e-5)]
    assert (results[0] - results[1]).abs().max() > 5e-3 * results[1].abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(geometry, method, dtype):
    torch.manual_seed(0)
    geometry = replace(geometry, width=512, mlp_width=768, num_heads=8, num_kv_heads=4, head_size=64)
    block = FrozenBlock(random_layer(geometry), dtype, h_rms=0.4)
    booster = ResidualBooster(256, block, start="published")
    x = torch.randn(3, 60, 256)
    with torch.autocast("cpu", dtype):
        got, full = output_and_gradients(booster, x, read=2), output_and_gradients(booster, x)
    exact = output_and_gradients(booster.float(), x)
    assert_close(got, exact, 2.5e-2)
    assert_close(full, exact, 2.5e-2)


@script_warnings
@pytest.mark.parametrize(("width", "tokens"), [(96, 4), (24, 40), (96, 400)], ids=["keys", "encoded", "visual"])
def test_scripts_and_exports(geometry, width, tokens):
    """At sizes at which each of the methods is the cheapest in turn."""
    torch.manual_seed(0)
    block = FrozenBlock(random_layer(replace(geometry, width=width, norm_eps=1e-2)), h_rms=0.3)
    booster = ResidualBooster(CHANNELS, block, start="published").eval()
    x = torch.randn(2, tokens, CHANNELS)
    with torch.no_grad():
        expected = booster(x, 2)
        torch.testing.assert_close(torch.jit.script(booster)(x, 2), expected)
        torch.testing.assert_close(torch.export.export(booster, (x, 2)).module()(x, 2), expected)


def test_obeys_the_contract_and_gives_tokens_of_zeros_finite_gradients(geometry, method):
    booster = ResidualBooster(CHANNELS, FrozenBlock(random_layer(geometry), h_rms=0.3), start="published")
    check_booster(booster, CHANNELS)
    x = torch.randn(2, 20, CHANNELS)
    x[:, [0, 5]] = 0
    for read in (None, 2):
        results = output_and_gradients(booster, x, read)
        assert all(value.isfinite().all() for value in results.values())


def test_the_scale_of_an_encoder_does_not_change_the_block(geometry, method):
    torch.manual_seed(0)
    booster = ResidualBooster(CHANNELS, FrozenBlock(random_layer(geometry), h_rms=0.3), "none", start="published")
    x = torch.randn(2, 20, CHANNELS)
    before = booster(x, 2)
    with torch.no_grad():
        booster.encode.weight.mul_(8)
    torch.testing.assert_close(booster(x, 2), before)


def test_a_block_of_another_size_in_its_place_is_computed(method):
    booster, x = ResidualBooster(CHANNELS, random_block(LLAMA), start="published"), torch.randn(2, 20, CHANNELS)
    assert booster.takes_apart
    booster.block = random_block(replace(LLAMA, norm_eps=1e-2), h_scale=0.05)
    torch.testing.assert_close(booster(x, 1), booster(x)[:, :1])


def test_needs_no_more_operations_where_a_norm_takes_the_scale_out(donor):
    plain, scaled = (boosted(donor, h_rms=size).readout.methods for size in (None, 0.3))
    geometry = donor.layers[0].geometry
    for one, other in zip(plain, scaled, strict=True):
        more = other.cost(8, 344, 1) - one.cost(8, 344, 1)
        assert (more > 0) == (not geometry.pre_norm), "without that norm, sizes need a Gram matrix"


def test_normed_keys_without_a_norm_before_are_among_the_families():
    assert "olmo2" in NORMED_KEYS and "olmo2" in CASES
