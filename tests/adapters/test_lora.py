# SPDX-License-Identifier: Apache-2.0
"""A frozen block with low-rank sums on its attention: what it computes, what is trained, saved, refused, and read."""

import copy
import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, SMALL, forget_training
from ignite.engine import Engine
from ignite.handlers import EMAHandler
from monai.bundle import ConfigWorkflow
from readout_methods import method
from tiny_models import tiny_folder
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_llmboost.adapters import lora_block
from monai_llmboost.boosters import ResidualBooster, check_booster
from monai_llmboost.bundle import monai_arguments
from monai_llmboost.llm import BlockGeometry, FrozenBlock, extract_block, frozen_block, random_layer

__all__ = ["method"]  # the fixture: each of the methods, whatever it costs
MAPS = ("query", "key", "value", "output")
CHANNELS = 16
# Plain keys; a LayerNorm and biases; a cap; normed keys, with and without a norm before the attention.
FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3", "olmo2"]


@pytest.fixture(scope="module", params=FAMILIES)
def file(request, tmp_path_factory):
    """The last layer of a tiny model of the family."""
    folder = tmp_path_factory.mktemp("donor")
    tiny_folder(request.param, folder / "tiny")
    extract_block(folder / "tiny", folder / "block.safetensors")
    return folder / "block.safetensors"


def trained(block):
    """As after some training: B is zero no more."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name.endswith(".b"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return block


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"final_norm": "none"}, {"dtype": torch.bfloat16}])
def test_begins_at_the_frozen_block_exactly(geometry, options):
    h = torch.randn(2, 5, 24)
    block = lora_block(geometry, seed=3, **options)
    assert torch.equal(block(h), frozen_block(geometry, 3, **options)(h))
    assert not torch.equal(trained(block)(h), frozen_block(geometry, 3, **options)(h))


def test_equals_a_block_whose_weights_are_the_sums(geometry):
    block = trained(lora_block(geometry, rank=3, alpha=6.0, seed=3))
    donor = random_layer(geometry, 3)
    (layer,) = donor.layers
    tensors = dict(layer.tensors)
    for name in MAPS:
        added = getattr(block.layer, name)
        tensors[f"{name}.weight"] = (tensors[f"{name}.weight"] + 2 * added.b @ added.a).detach()
    h = torch.randn(2, 5, 24)
    torch.testing.assert_close(block(h), FrozenBlock(replace(donor, layers=(replace(layer, tensors=tensors),)))(h))


def test_two_small_matrices_of_each_map_are_trained_and_saved_and_nothing_else(geometry):
    block = lora_block(geometry, rank=3, seed=3, dtype=torch.bfloat16)
    inputs, outputs = {"output": 32}, {"query": 32, "key": 16, "value": 16}
    shapes = {f"layer.{name}.a": (3, inputs.get(name, 24)) for name in MAPS}
    shapes |= {f"layer.{name}.b": (outputs.get(name, 24), 3) for name in MAPS}
    assert {name: tuple(p.shape) for name, p in block.named_parameters()} == shapes
    assert all(p.dtype == torch.float32 for p in block.parameters())
    assert set(block.state_dict()) == {*shapes, "signature.code"}
    frozen = {name: buffer.clone() for name, buffer in block.named_buffers()}
    before = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
    optimizer = torch.optim.AdamW(block.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        (block(torch.randn(2, 5, 24)) * torch.randn(24)).sum().backward()
        optimizer.step()
    assert all(torch.equal(buffer, frozen[name]) for name, buffer in block.named_buffers())
    assert not any(torch.equal(parameter, before[name]) for name, parameter in block.named_parameters())


def test_several_layers(tmp_path):
    tiny_folder("llama", tmp_path / "tiny")
    extract_block(tmp_path / "tiny", tmp_path / "two.safetensors", "-2:")
    block = lora_block(tmp_path / "two.safetensors")
    assert len(list(block.parameters())) == 2 * 2 * len(MAPS)
    booster, x = ResidualBooster(CHANNELS, trained(block), start="published"), torch.randn(2, 9, CHANNELS)
    torch.testing.assert_close(booster(x, 1), booster(x)[:, :1])
    check_booster(booster, CHANNELS)


def test_the_sum_is_rounded_once(geometry):
    block = trained(lora_block(geometry, dtype=torch.bfloat16))
    value = block.layer.value
    assert torch.equal(value.weight, (value.frozen.float() + value.b @ value.a).to(torch.bfloat16))


def test_a_follows_its_seed_and_touches_no_other_random_number(geometry):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (lora_block(geometry, seed=seed).layer for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.query.a, again.query.a) and not torch.equal(first.query.a, other.query.a)
    assert 0.8 / 24**0.5 < first.query.a.abs().max() <= 1 / 24**0.5
    torch.manual_seed(1)
    drawn = [nn.Linear(CHANNELS, 24).weight, *random_layer(geometry, 1).layers[0].tensors.values()]
    for numbers in (tensor.flatten()[:90] for tensor in drawn if tensor.ndim == 2):
        correlation = torch.corrcoef(torch.stack([numbers, first.query.a.detach().flatten()[:90]]))[0, 1]
        assert correlation.abs() < 0.4, "no two weights are the same numbers"


def values_and_gradients(booster, x, read=None):
    x = x.detach().clone().requires_grad_()
    booster.zero_grad()
    z = booster(x)[:, :1] if read is None else booster(x, read)
    # Drawn in one dtype: some versions of torch draw other numbers in bfloat16 than in float32.
    (z * torch.randn(z.shape, generator=torch.Generator().manual_seed(5)).to(z.dtype)).sum().backward()
    return {"z": z, "x": x.grad, **{name: p.grad.clone() for name, p in booster.named_parameters()}}


def assert_close(got, expected, tolerance):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        error = (got[name].double() - value.double()).abs().max() / value.double().abs().max()
        assert error <= tolerance, f"{name}: {error:.1e}"


def test_one_token_is_read_exactly(file, method):
    torch.manual_seed(0)
    booster, x = (
        ResidualBooster(CHANNELS, trained(lora_block(file)), start="published").double(),
        torch.randn(3, 20, CHANNELS).double(),
    )
    assert_close(values_and_gradients(booster, x, 1), values_and_gradients(booster, x), 1e-11)
    with torch.no_grad():
        booster.eval()
        booster(x, 1)  # what is kept from here on is of the maps around the block
        booster.block.layer.key.a.mul_(2)
        torch.testing.assert_close(booster(x, 1), booster(x)[:, :1])


@pytest.mark.parametrize("other", [{}, {"qk_norm": "head"}, {"qk_norm": "all", "pre_norm": False, "post_norm": True}])
def test_one_token_is_read_exactly_in_bfloat16(method, other):
    """Autocast, the block kept in bfloat16 as on a GPU; against the full computation in float32."""
    torch.manual_seed(0)
    wide = BlockGeometry(512, 768, 8, 4, 64, **other)
    narrow = ResidualBooster(256, trained(lora_block(wide, dtype=torch.bfloat16)), start="published")
    booster = copy.deepcopy(narrow).float()
    x = torch.randn(3, 60, 256)
    with torch.autocast("cpu", torch.bfloat16):
        got = values_and_gradients(narrow, x, 1)
    assert_close(got, values_and_gradients(booster, x), 3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_a_booster(file, dtype):
    torch.manual_seed(4)
    tolerance = 5e-2 if dtype == torch.bfloat16 else None  # its rounding of two adapters' products adds up
    check_booster(
        ResidualBooster(CHANNELS, lora_block(file, dtype=dtype), start="published"), CHANNELS, tolerance=tolerance
    )


def test_costs_hardly_more_than_the_frozen_block():
    geometry = BlockGeometry(768, 2048, 12, 12, 64)
    x, spent, methods = torch.empty(32, 344, 256, device="meta"), {}, {}
    for block in (frozen_block(geometry), lora_block(geometry)):
        booster = ResidualBooster(256, block, start="published").to("meta")
        with FlopCounterMode(display=False) as counter:
            booster(x, 1).sum().backward()
        spent[len(list(block.parameters()))] = counter.get_total_flops()
        methods[booster.describe_readout(32, 344, 1)] = booster
    assert list(methods) == ["no keys and values, visual tokens"]
    assert spent[8] < 1.1 * spent[0]


def test_a_checkpoint_loads_over_the_same_block_and_no_other(geometry):
    block, h = trained(lora_block(geometry, seed=3)), torch.randn(2, 5, 24)
    same = lora_block(geometry, seed=3)
    same.load_state_dict(block.state_dict())
    assert torch.equal(same(h), block(h))
    lora_block(geometry, seed=3, dtype=torch.bfloat16).load_state_dict(block.state_dict())
    plain = frozen_block(geometry, 3)
    for made, network in (
        (block, lora_block(geometry, rank=8, seed=3)),
        (block, lora_block(geometry, alpha=8.0, seed=3)),
        (block, lora_block(geometry, seed=4)),
        (block, lora_block(geometry, seed=3, final_norm="none")),
        (block, plain),
        (plain, block),
    ):
        with pytest.raises(RuntimeError) as error:
            network.load_state_dict(made.state_dict(), strict=False)
        told = f"made with the block '{made.signature.text}', but this network has the block '{network.signature.text}'"
        assert told in str(error.value)
    assert block.signature.text.startswith("lora of rank 4 and alpha 4 on random seed 3 (")


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("read", [None, 1])
def test_is_copied_and_scripted(file, tmp_path, read):
    booster, x = ResidualBooster(CHANNELS, trained(lora_block(file)), start="published"), torch.randn(2, 40, CHANNELS)
    expected = values_and_gradients(booster, x, read)
    torch.jit.save(torch.jit.script(copy.deepcopy(booster)), tmp_path / "booster.ts")
    for other in (copy.deepcopy(booster), torch.jit.load(tmp_path / "booster.ts")):
        assert_close(values_and_gradients(other, x, read), expected, 1e-5)


@pytest.mark.parametrize(("qk_norm", "backend"), [("none", "aot_eager"), ("head", "eager")])
def test_compiles_without_a_graph_break(geometry, qk_norm, backend):
    booster = ResidualBooster(CHANNELS, trained(lora_block(replace(geometry, qk_norm=qk_norm))), start="published")
    compiled, x = torch.compile(booster, backend=backend, fullgraph=True), torch.randn(2, 40, CHANNELS)
    got, expected = values_and_gradients(compiled, x, 1), values_and_gradients(booster, x, 1)
    assert_close({name.removeprefix("_orig_mod."): value for name, value in got.items()}, expected, 1e-5)
    torch.compiler.reset()


def test_is_averaged(geometry):
    block = lora_block(geometry)
    average = EMAHandler(block, momentum=0.5)
    trainer = Engine(lambda engine, batch: trained(block))
    average.attach(trainer)
    trainer.run([0], max_epochs=1)
    mean = average.ema_model.layer.value
    torch.testing.assert_close(mean.b, 0.5 * block.layer.value.b)
    assert torch.equal(mean.frozen, block.layer.value.frozen)
    assert not any(parameter.requires_grad for parameter in average.ema_model.parameters())


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "4"])
def test_wrong_ranks(geometry, rank):
    with pytest.raises(ValueError, match=f"rank must be a whole number from 1, not {rank!r}: give --lora_rank 4"):
        lora_block(geometry, rank)


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), True, "4"])
def test_wrong_alphas(geometry, alpha):
    with pytest.raises(ValueError, match=f"alpha must be a number above 0, not {alpha!r}: give --lora_alpha 4.0"):
        lora_block(geometry, alpha=alpha)


def test_a_layer_that_transformers_runs_is_refused(tmp_path):
    from transformers import CohereConfig, CohereForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_hidden_layers": 2}
    CohereForCausalLM(CohereConfig(**sizes, vocab_size=32, bos_token_id=0, eos_token_id=1)).save_pretrained(tmp_path)
    extract_block(tmp_path, tmp_path / "block.safetensors")
    with pytest.raises(ValueError, match=r"run by transformers' own class takes no adapters: choose another arm"):
        lora_block(tmp_path / "block.safetensors")


@pytest.fixture
def few_phantoms(monkeypatch):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 40, "val": 20, "test": 20})


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:parsing config_file")
@pytest.mark.usefixtures("few_phantoms")
class TestArm:
    def test_is_trained_evaluated_and_predicts(self, run_job, tmp_path):
        folder = run_job("train", "lora", epochs=2, lora_rank=2, batch_size=10)
        state = torch.load(folder / "model.pt", weights_only=True)
        names = {f"booster.block.layer.{name}.{matrix}" for name in MAPS for matrix in "ab"}
        assert {name for name in state if name.startswith("booster.block.layer.")} == names
        assert state["booster.block.layer.query.a"].shape == (2, 256)
        assert all(state[name].any() for name in names)
        metrics = json.loads((run_job("evaluate", "lora", lora_rank=2) / "metrics.json").read_text())
        assert metrics["block"].startswith("lora of rank 2 and alpha 4 on tiny-english layer 5 (")
        assert metrics["cases"] == 20
        image = np.random.default_rng(0).integers(0, 256, (28, 28, 28), dtype=np.uint8)
        (tmp_path / "scans").mkdir()
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), tmp_path / "scans" / "case.nii.gz")
        out = run_job("inference", "lora", lora_rank=2, dataset_dir=str(tmp_path / "scans"))
        assert len((out / "predictions.csv").read_text().splitlines()) == 2
        forget_training(folder)
        for arm, options in (("lora", {}), ("pretrained", {})):
            with pytest.raises(ValueError, match="made with the block 'lora of rank 2 and alpha 4 on tiny-english"):
                run_job("evaluate", arm, **options)

    def test_resumed_equals_uninterrupted(self, tmp_path):
        def last(name, stop_after=None, **options):
            places = {"ckpt_dir": str(tmp_path / name), "output_dir": str(tmp_path / name)}
            options = {**SMALL, **places, "epochs": 3, "batch_size": 10, **options}
            workflow = ConfigWorkflow(**monai_arguments(BUNDLE, "train", "lora", False, **options))
            workflow.initialize()
            if stop_after:
                workflow.parser.get_parsed_content("train#trainer").add_event_handler(
                    "EPOCH_COMPLETED", lambda engine: engine.state.epoch == stop_after and engine.terminate()
                )
            workflow.run()
            return torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]

        whole = last("whole")
        assert not torch.equal(last("parts", stop_after=1)["head.weight"], whole["head.weight"])
        parts = last("parts", resume=True)
        assert all(torch.equal(value, parts[name]) for name, value in whole.items())

    def test_begins_as_the_arm_whose_block_stays_frozen(self, tmp_path):
        networks = {}
        for arm in ("pretrained", "lora"):
            places = {"ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
            workflow = ConfigWorkflow(**monai_arguments(BUNDLE, "train", arm, False, **places, **SMALL))
            workflow.initialize()
            networks[arm] = workflow.parser.get_parsed_content("network").cpu().eval()
        x = torch.rand(2, 1, 28, 28, 28)
        assert torch.equal(networks["lora"](x), networks["pretrained"](x))
