# SPDX-License-Identifier: Apache-2.0
"""All tokens with F_E folded into queries, keys and values: the block's own computation, with fewer operations."""

import copy
from dataclasses import replace

import pytest
import torch
from test_readout import CHANNELS, LLAMA_7B, TOKENS, WIDE, Shifted, assert_close, output_and_gradients, script_warnings
from tiny_models import CASES, tiny_folder
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from monai_llmboost.adapters import lora_block
from monai_llmboost.boosters import ResidualBooster, check_booster
from monai_llmboost.boosters.readout.folded_maps import FoldedMaps
from monai_llmboost.llm import DonorLayers, FrozenBlock, Layer, random_block, random_layer, read_layers, trained_block
from monai_llmboost.studies.cost.measure import CPU_ATTENTION

FOLDED, WHOLE = "F_E folded into queries, keys and values", "whole block"


def boosted(block=None):
    torch.manual_seed(0)
    return ResidualBooster(CHANNELS, random_block(WIDE) if block is None else block, start="published")


def only(monkeypatch, folds):
    monkeypatch.setattr(FoldedMaps, "saves", lambda *arguments, **named: folds)


def both(monkeypatch, compute):
    """What a function gives with folded maps, and with those of the block; the folded ones are in use."""
    calls, own = [], FoldedMaps.fold
    monkeypatch.setattr(FoldedMaps, "fold", lambda *arguments: calls.append(1) or own(*arguments))
    only(monkeypatch, True)
    folded = compute()
    assert calls
    only(monkeypatch, False)
    return folded, compute()


@pytest.mark.parametrize("case", CASES)
def test_is_the_full_computation_for_every_family(case, tmp_path, monkeypatch):
    """Also in ``eval()`` with the cached matrix, for scaled tokens, with a trained block, and for bad tokens."""
    tiny_folder(case, tmp_path / "tiny")
    donor = read_layers(tmp_path / "tiny", -1)
    for number, tokens in enumerate(TOKENS):
        x = TOKENS[tokens](torch.randn(3, 20, CHANNELS, generator=torch.Generator().manual_seed(1)))
        booster = boosted(FrozenBlock(donor, h_rms=0.5 if number % 2 else None))
        got, expected = both(monkeypatch, lambda b=booster, x=x: output_and_gradients(b, x, keep=20))
        for results in (got, expected):
            results.pop("other tokens")
        assert_close(got, expected, 1e-5)
        with torch.no_grad():
            booster.eval()
            got, expected = both(monkeypatch, lambda b=booster, x=x: b(x))
        assert_close({"z": got}, {"z": expected}, 1e-5)


@pytest.mark.parametrize("block", [lambda: trained_block(WIDE), lambda: lora_block(WIDE, rank=2)], ids=["all", "lora"])
def test_trained_weights_get_their_gradients(block, monkeypatch):
    booster, x = boosted(block()).double(), torch.randn(2, 20, CHANNELS, dtype=torch.float64)
    got, expected = both(monkeypatch, lambda: output_and_gradients(booster, x))
    names = {name for name, value in expected.items() if value.any()}  # B of an adapter is zero, so A gets none
    assert_close({name: got[name] for name in names}, {name: expected[name] for name in names}, 1e-9)


def test_bfloat16(monkeypatch):
    torch.manual_seed(0)
    booster = ResidualBooster(64, random_block(replace(WIDE, width=256), dtype=torch.bfloat16), start="published")
    x = torch.randn(2, 60, 64)
    with torch.no_grad():
        got, whole = both(monkeypatch, lambda: booster.eval()(x))
        exact = booster.float()(x)
    assert_close({"z": got}, {"z": exact}, 2e-2)
    assert_close({"z": whole}, {"z": exact}, 2e-2)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("kind", ["frozen", "trained"])
@pytest.mark.parametrize(("channels", "tokens"), [(96, 40), (80, 400), (24, 8), (24, 60), (24, 400)])
def test_the_fewest_operations_are_chosen(channels, tokens, kind, learns, monkeypatch):
    """By a count of what is computed, forward or forward and backward; in inference the matrix is cached."""
    torch.manual_seed(0)
    block = random_block(WIDE, trained=kind == "trained")
    booster = ResidualBooster(channels, block, start="published").train(learns)
    x = torch.randn(1, tokens, channels, requires_grad=learns)

    def count(folds):
        if folds is not None:
            only(monkeypatch, folds)
        with torch.set_grad_enabled(learns):
            booster(x)
            with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
                z = booster(x)
                if learns:
                    z.sum().backward()
        return counter.get_total_flops()

    chosen, folded, whole = count(None), count(True), count(False)
    assert chosen == min(folded, whole)


def test_what_it_saves_behind_a_layer_of_llama():
    """A quarter at most, because the MLP is most of the block and needs the encoded tokens."""
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in LLAMA_7B.tensor_shapes.items()}
        block = FrozenBlock(DonorLayers((Layer(tensors, LLAMA_7B),), "counted"))
        booster = ResidualBooster(320, block, start="published").eval()
        counts = []
        for folds in (True, False):
            booster.readout.folds = folds
            with torch.no_grad():
                booster(torch.empty(1, 216, 320))
                with FlopCounterMode(display=False) as counter:
                    booster(torch.empty(1, 216, 320))
            counts.append(counter.get_total_flops())
    assert 0.76 < counts[0] / counts[1] < 0.8
    booster.readout.folds = True
    assert booster.describe_readout(1, 216) == f"all tokens are read: {WHOLE}; in inference {FOLDED}"
    assert booster.describe_readout(32, 216) == f"all tokens are read: {FOLDED}"


def swap_query(booster):
    old = booster.block.layer.query
    booster.block.layer.query = Shifted(old.in_features, old.out_features, bias=False)
    booster.block.layer.query.load_state_dict({"weight": old.weight})


CHANGES = {
    "F_E": lambda b: b.encode.weight.data.mul_(2),
    "queries": lambda b: b.block.layer.query.weight.mul_(2),
    "gain": lambda b: b.block.layer.attention_norm.weight.mul_(torch.linspace(0.5, 2, WIDE.width)),
    "block": lambda b: setattr(b, "block", random_block(WIDE, seed=5)),
    "other map": swap_query,
    "hook": lambda b: b.block.layer.query.register_forward_hook(lambda module, inputs, output: 2 * output),
    "dtype": lambda b: b.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_cached_matrix_is_never_stale(change, monkeypatch):
    only(monkeypatch, True)
    booster, x = boosted().eval(), torch.randn(2, 20, CHANNELS)
    with torch.no_grad():
        before = booster(x)
        kept = booster.readout.folded.kept
        booster(x)
        assert booster.readout.folded.kept is kept is not None, "used again"
        CHANGES[change](booster)
        x = x.to(booster.encode.weight.dtype)
        after = booster(x)
        assert_close({"z": after}, {"z": booster.decode(booster.block(h := booster.encode(x)) + h)}, 1e-5)
    assert change == "dtype" or not torch.allclose(after, before, atol=1e-3)
    assert copy.deepcopy(booster).readout.folded.kept is None
    assert booster.train().readout.folded.kept is None


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
def test_obeys_the_contract(monkeypatch):
    only(monkeypatch, True)
    for block in (random_block(WIDE), lora_block(WIDE, rank=2)):
        check_booster(boosted(block), CHANNELS)
    booster, x = boosted().eval(), torch.randn(4, 20, CHANNELS)
    gradients = torch.func.vmap(torch.func.grad(lambda case: booster(case.unsqueeze(0)).square().sum()))(x)
    x.requires_grad_()
    booster(x).square().sum().backward()
    torch.testing.assert_close(gradients, x.grad)


@script_warnings
def test_files_take_any_number_of_tokens(monkeypatch):
    """They compute the block itself; an exported choice would hold for one number of tokens."""
    only(monkeypatch, True)
    booster, x = boosted().eval(), torch.randn(2, 20, CHANNELS)
    sizes = {"x": {1: torch.export.Dim("tokens", min=2, max=4096)}}
    exported = torch.export.export(booster, (x,), dynamic_shapes=sizes).module()
    for tokens in (x, torch.randn(2, 900, CHANNELS)):
        torch.testing.assert_close(exported(tokens), booster(tokens))
        torch.testing.assert_close(torch.jit.script(booster)(tokens), booster(tokens))


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("options", [{}, {"score_cap": 1.5}], ids=["fused", "capped"])
def test_no_tensor_grows_with_the_square_of_the_tokens(options, monkeypatch):
    geometry = replace(WIDE, **options)
    block, h = FrozenBlock(random_layer(geometry)), torch.randn(1, 700, WIDE.width)
    h.requires_grad_()
    whole = block(h)
    (expected,) = torch.autograd.grad(whole.square().sum(), h)
    monkeypatch.setattr("monai_llmboost.llm.capped.MOST_SCORES", 50 * 700 * geometry.num_heads)
    with Largest() as largest:
        parts = block(h)
        (got,) = torch.autograd.grad(parts.square().sum(), h)
    assert_close({"z": parts, "h": got}, {"z": whole, "h": expected}, 1e-5)
    assert largest.elements < 700 * 700 / 2 * geometry.num_heads


def test_a_masked_capped_layer_in_parts(monkeypatch):
    block = FrozenBlock(random_layer(replace(WIDE, score_cap=1.5)), causal=True)
    h = torch.randn(2, 30, WIDE.width)
    whole = block(h)
    monkeypatch.setattr("monai_llmboost.llm.capped.MOST_SCORES", 7 * 2 * 30 * WIDE.num_heads)
    torch.testing.assert_close(block(h), whole)


def test_another_query_map_is_described():
    booster = boosted()
    assert FOLDED in booster.describe_readout(1, 400)
    booster.block.layer.query = nn.Sequential(booster.block.layer.query)
    assert booster.describe_readout(1, 400) == f"all tokens are read: {WHOLE}"
