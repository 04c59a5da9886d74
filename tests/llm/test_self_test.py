# SPDX-License-Identifier: Apache-2.0
"""The self-test lets a full layer over unordered tokens pass, and nothing else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from monai_llmboost.llm import self_test

WIDTH = 16


class Attention(nn.Module):
    """A full layer of attention, and what can go wrong with it."""

    width = WIDTH

    def __init__(self, wrong=""):
        super().__init__()
        self.wrong = wrong
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3 * WIDTH, WIDTH, generator=generator) / 4)

    def forward(self, x):
        if self.wrong == "positions":
            x = x + torch.arange(x.shape[1], dtype=x.dtype).unsqueeze(-1)
        q, k, v = F.linear(x, self.weight).chunk(3, dim=-1)
        y = x + F.scaled_dot_product_attention(q, k, v, is_causal=self.wrong == "causal")
        if self.wrong == "recurrent":
            y = y.cumsum(1)
        if self.wrong == "identity":
            return x
        if self.wrong == "no attention":
            return x + v
        if self.wrong == "constant":
            return self.weight.sum() + 0 * x
        if self.wrong == "shape":
            return y[:, 1:]
        if self.wrong == "tuple":
            return y, None
        if self.wrong == "infinite":
            return y / 0
        if self.wrong == "error":
            raise KeyError("mask")
        return y


def test_a_full_layer_passes_and_touches_no_random_number():
    state = torch.get_rng_state()
    measured = self_test(Attention(), "mine")
    assert torch.equal(torch.get_rng_state(), state)
    assert measured["permutation_error"] < 1e-6
    assert min(measured["change"], measured["first_token_gradient"], measured["last_token_gradient"]) > 1e-3
    assert measured == self_test(Attention(), "mine")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            "causal",
            r"^mine is order-dependent \(permutation error 0\.\d+\), it is recurrent, masked or has positions: choose",
        ),
        ("recurrent", r"mine is order-dependent"),
        ("positions", r"mine is order-dependent"),
        ("identity", "mine returns its tokens unchanged, it is no layer: choose"),
        (
            "no attention",
            "mine passes nothing of the last token to the others, it is masked or has no attention: choose",
        ),
        ("constant", "mine does not depend on its tokens: choose"),
        ("infinite", "the output or a gradient of mine is not finite, .* for float32: read them again"),
        ("shape", r"mine does not run .*the output is \(1, 7, 16\), not tokens \(1, 8, 16\)\): choose"),
        ("tuple", r"the output is tuple, not tokens \(1, 8, 16\)"),
        ("error", r"mine does not run on visual tokens \(KeyError: 'mask'\): choose another donor"),
    ],
)
def test_what_is_wrong_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        self_test(Attention(wrong), "mine")


def test_damaged_weights_are_refused():
    block = Attention()
    block.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite, its weights are damaged"):
        self_test(block, "mine")


@pytest.mark.parametrize("wrong", ["causal", "positions"])
def test_an_order_that_was_asked_for(wrong):
    measured = self_test(Attention(wrong), "mine", in_order=True)
    assert "permutation_error" not in measured
    assert measured["first_token_gradient"] > 0
    with pytest.raises(ValueError, match="returns its tokens unchanged"):
        self_test(Attention("identity"), "mine", in_order=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_in_the_blocks_dtype(dtype):
    measured = self_test(Attention().to(dtype), "mine")
    assert measured["permutation_error"] < (2e-2 if dtype == torch.bfloat16 else 1e-12)
    with pytest.raises(ValueError, match="is order-dependent"):
        self_test(Attention("causal").to(dtype), "mine")


def test_tolerance():
    with pytest.raises(ValueError, match="is order-dependent"):
        self_test(Attention(), "mine", tolerance=0.0)
    assert self_test(Attention("positions"), "mine", tolerance=100.0)["permutation_error"] > 1e-2


def test_weights_as_buffers_under_no_grad():
    block = Attention()
    weight = block.weight.detach()
    del block.weight
    block.register_buffer("weight", weight)
    with torch.no_grad():
        assert self_test(block, "mine")["last_token_gradient"] > 0


def test_a_block_without_weights():
    with pytest.raises(ValueError, match="the block has no weights: load them first"):
        self_test(nn.Identity(), "mine")
