# SPDX-License-Identifier: Apache-2.0
"""Texts in checkpoints survive whatever averages networks, and one that did not is refused, never shown."""

import copy
import io

import pytest
import torch
from ignite.engine import Engine
from ignite.handlers import EMAHandler
from monai.networks.utils import copy_model_state
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from monai_llmboost.artifacts.signature import decode, encode
from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.llm import random_block
from monai_llmboost.networks import ViT3D, ViViT
from monai_llmboost.networks.class_names import ClassNames, class_names_of
from monai_llmboost.networks.wrappers import load_plain, plain_state, saved_state, unwrap

NAMES = ["buckle rib fracture", "nondisplacée", "é" * 60, "~}\x7f"]
STEPS = "ScaleIntensityRange b_max 1, b_min 0\nNormalizeIntensity nonzero True"
SIZES = {"in_channels": 1, "num_classes": 4, "img_size": 8, "patch_size": 4, "hidden_size": 12, "mlp_dim": 12}
VIT3D = {**SIZES, "num_layers": 1, "num_heads": 3}
VIVIT = {**SIZES, "num_spatial_layers": 1, "num_temporal_layers": 1, "num_heads": 3}


def network_of(names=NAMES, kind=ViT3D, seed=0, block_seed=0):
    torch.manual_seed(seed)
    booster = ResidualBooster(12, random_block("random", seed=block_seed), start="published")
    network = kind(**(VIT3D if kind is ViT3D else VIVIT), booster=booster, class_names=names)
    network.preprocessing.text = STEPS
    return network


def clients(number=3):
    return [network_of(seed=seed) for seed in range(number)]


def ema(mode, momentum, dtype=torch.float32, **options):
    network = network_of().to(dtype)
    handler = EMAHandler(network, momentum=momentum, handle_buffers=mode, **options)
    engine = Engine(lambda engine, batch: network.head.bias.data.add_(0.1))
    handler.attach(engine)
    engine.run(range(50), max_epochs=2)
    return handler.ema_model.state_dict()


def swa(use_buffers=True, dtype=torch.float32, **options):
    network = network_of().to(dtype)
    average = AveragedModel(network, use_buffers=use_buffers, **options)
    for _ in range(20):
        network.head.bias.data.add_(0.1)
        average.update_parameters(network)
    return average.module.state_dict()


def mean_of(cast=lambda value: value, back=lambda value, like: value, weights=(0.2, 0.3, 0.5)):
    states = [each.state_dict() for each in clients(len(weights))]
    total = {name: sum(w * cast(state[name]) for w, state in zip(weights, states)) for name in states[0]}
    return {name: back(value, states[0][name]) for name, value in total.items()}


def diffs_of():
    """As servers do with the differences that clients send."""
    start, *others = (each.state_dict() for each in clients())
    moved = [{name: state[name] - start[name] for name in start} for state in others]
    return {name: start[name] + 0.7 * moved[0][name] + 0.3 * moved[1][name] for name in start}


def stacked(states):
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def lerped(one, other):
    return {name: torch.lerp(value, other[name], 0.3) for name, value in one.items()}


AVERAGES = {
    **{f"EMA {mode} {momentum}": lambda mode=mode, m=momentum: ema(mode, m) for mode in ("copy", "update", "ema_train")
       for momentum in (0.5, 2e-4)},
    "EMA in bfloat16": lambda: ema("update", 0.01, torch.bfloat16),
    "EMA in float16": lambda: ema("update", 0.01, torch.float16),
    "EMA warmed up": lambda: ema("update", 0.01, momentum_warmup=0.2, warmup_iters=10),
    "SWA": swa,
    "SWA of parameters": lambda: swa(use_buffers=False),
    "SWA, several at once": lambda: swa(multi_avg_fn=get_swa_multi_avg_fn()),
    "EMA of torch": lambda: swa(avg_fn=get_ema_avg_fn(0.9)),
    "EMA of torch, several at once": lambda: swa(multi_avg_fn=get_ema_multi_avg_fn(0.999)),
    "SWA in bfloat16": lambda: swa(dtype=torch.bfloat16),
    "mean": lambda: mean_of(weights=(1 / 3,) * 3),
    "weighted mean": mean_of,
    "weighted by cases": lambda: mean_of(weights=(17 / 400, 99 / 400, 284 / 400)),
    "ten clients": lambda: mean_of(weights=(0.1,) * 10),
    "mean in float64": lambda: mean_of(lambda value: value.double()),
    "mean in float64, cast back": lambda: mean_of(lambda v: v.double(), lambda v, like: v.to(like.dtype)),
    "mean in float16": lambda: mean_of(lambda value: value.half(), weights=(0.25, 0.75)),
    "mean in bfloat16, of two": lambda: mean_of(lambda value: value.bfloat16(), weights=(0.5, 0.5)),
    "mean in numpy": lambda: mean_of(lambda v: v.numpy(), lambda v, like: torch.as_tensor(v)),
    "torch.stack().mean()": lambda: stacked([each.state_dict() for each in clients()]),
    "differences": diffs_of,
    "sum, then divided in place": lambda: mean_of(back=lambda v, like: v.mul_(3).div_(3)),
    "lerp": lambda: lerped(*(each.state_dict() for each in clients(2))),
}  # fmt: skip


@pytest.mark.parametrize("way", AVERAGES)
def test_texts_survive_an_average(way):
    state = AVERAGES[way]()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    network = network_of(names=None, seed=9)
    network.preprocessing.text = ""
    network.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert network.class_names.names() == NAMES
    assert network.preprocessing.text == STEPS


@pytest.mark.parametrize("kind", [ViT3D, ViViT])
@pytest.mark.parametrize(
    "change",
    [
        nn.Module.half,
        nn.Module.bfloat16,
        nn.Module.double,
        lambda network: network.to("cpu", torch.float16),
        copy.deepcopy,
        nn.Module.eval,
        lambda network: nn.DataParallel(network),
        lambda network: torch.compile(network, backend="eager"),
    ],
)
def test_texts_stay_as_they_are(kind, change):
    network = change(network_of(kind=kind))
    assert class_names_of(network) == NAMES
    state = saved_state(network)
    assert {value.dtype for name, value in state.items() if name.endswith(".code")} == {torch.float32}
    other = network_of(names=None, kind=kind)
    other.load_state_dict(state)
    assert class_names_of(other) == NAMES


def test_monais_copy_of_weights_compares_and_takes_over():
    other = network_of(names=None)
    copy_model_state(other, network_of().state_dict())
    assert other.class_names.names() == NAMES
    with pytest.raises(RuntimeError, match="made with the block 'random seed 1"):
        copy_model_state(other, network_of(block_seed=1).state_dict())


def old_code(text, compared=None):
    """As versions before wrote it: uint8, and no checksum of a text that was not what was compared."""
    import hashlib

    digest = hashlib.sha256((text if compared is None else compared).encode()).digest()
    return torch.tensor(list(digest + text.encode()[:480].ljust(480, b"\0")), dtype=torch.uint8)


def as_before(network):
    """The state dict that an earlier version would have written."""
    state = network.state_dict()
    for name, module in network.named_modules():
        if f"{name}.code" in state:
            state[f"{name}.code"] = old_code(module.text, module.compared)
    del state["preprocessing.code"], state["training_cases.code"]
    return state


def test_checkpoints_of_earlier_versions_load_as_before():
    other = network_of(names=None)
    other.preprocessing.text = ""
    other.load_state_dict(as_before(network_of()), strict=True)
    assert (other.class_names.names(), other.preprocessing.text) == (NAMES, "")
    with pytest.raises(RuntimeError, match=r"made with the block 'random seed 1 \(\w{12}\)', but this network has the"):
        other.load_state_dict(as_before(network_of(block_seed=1)))
    state = as_before(network_of())
    mean = {name: value.float() * 0.4 + value.float() * 0.6 for name, value in state.items()}
    again = network_of(names=None)
    again.load_state_dict(mean)
    assert again.class_names.names() == NAMES, "an average over earlier checkpoints, in float32"


def test_an_average_over_other_names_is_refused_not_shown():
    states = [network_of(["a", "b", "c", "d"]).state_dict(), network_of(["A", "B", "C", "D"]).state_dict()]
    mixed = {name: (value + states[1][name]) / 2 for name, value in states[0].items()}
    for state in (mixed, {n: v.byte() if n.endswith(".code") else v for n, v in mixed.items()}):
        with pytest.raises(RuntimeError, match="the class names in the checkpoint cannot be read: it is damaged, or a"):
            network_of().load_state_dict(state)
    blocks = [network_of(block_seed=seed).state_dict() for seed in (1, 2)]
    with pytest.raises(RuntimeError, match=r"made with the block '\(unreadable: damaged, or an average over networks"):
        network_of().load_state_dict({name: (value + blocks[1][name]) / 2 for name, value in blocks[0].items()})


@pytest.mark.parametrize("text", ["", "a", "ä" * 300, "x" * 480, "x" * 481, "\n", "a\0b"])
@pytest.mark.parametrize("compared", [None, "something else"])
def test_a_text_is_read_back_or_its_checksum_does_not_fit(text, compared):
    code = encode(text, compared)
    assert (code.shape, code.dtype) == ((512,), torch.float32)
    assert text.startswith(decode(code).rstrip("�"))
    assert len(decode(code).encode()) >= min(len(text.encode()), 474)
    for place in (0, 40, 511):
        for change in (1.0, 300.0, -300.0, float("nan"), float("inf")):
            other = code.clone()
            other[place] = other[place] + change
            assert decode(other) in (None, decode(code)) if place < 32 else decode(other) is None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda network: torch.compile(network, backend="eager"),
        nn.DataParallel,
        AveragedModel,
        lambda network: nn.DataParallel(torch.compile(network, backend="eager")),
        lambda network: torch.compile(nn.DataParallel(network), backend="eager"),
        lambda network: AveragedModel(torch.compile(nn.DataParallel(network), backend="eager")),
        lambda network: nn.DataParallel(AveragedModel(torch.compile(AveragedModel(network), backend="eager"))),
    ],
)
def test_wrappers_leave_no_trace_in_a_checkpoint(wrap):
    plain, wrapped = network_of(seed=1), wrap(network_of(seed=2))
    names = set(plain.state_dict())
    assert set(saved_state(wrapped)) == set(plain_state(wrapped.state_dict(), names)) == names
    assert class_names_of(wrapped) == NAMES
    load_plain(plain, wrapped.state_dict())  # as earlier versions wrote it
    assert torch.equal(plain.head.weight, unwrap(wrapped).head.weight.cpu())
    load_plain(wrapped, network_of(seed=3).state_dict())
    assert torch.equal(network_of(seed=3).head.weight, unwrap(wrapped).head.weight.cpu())
    x = torch.rand(1, 1, 8, 8, 8).to(unwrap(wrapped).head.weight)
    torch.testing.assert_close(wrapped.eval()(x), unwrap(wrapped).eval()(x))
    torch.compiler.reset()


def test_a_network_compiled_in_part():
    network = network_of(seed=1)
    network.layers = nn.DataParallel(torch.compile(network.layers, backend="eager"))
    network.head = torch.compile(nn.DataParallel(network.head), backend="eager")
    assert "layers.module._orig_mod.0.mlp.linear1.weight" in network.state_dict()
    assert set(saved_state(network)) == set(network_of().state_dict())
    load_plain(network, network_of(seed=2).state_dict())
    loaded, expected = saved_state(network), network_of(seed=2).state_dict()
    assert all(torch.equal(loaded[name].cpu(), expected[name]) for name in expected)


def test_a_network_with_a_part_of_that_name_is_left_alone():
    for names in (("module", "other"), ("module",)):
        network = nn.ModuleDict({name: nn.Linear(1, 1) for name in names})
        assert unwrap(network) is network
        assert set(saved_state(network)) == set(network.state_dict())
        load_plain(network, network.state_dict())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [ViT3D, ViViT])
def test_exports_and_other_ways_to_keep_weights(kind, tmp_path):
    from monai.handlers import CheckpointLoader
    from safetensors.torch import load_model, save_model
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    network, x = network_of(kind=kind).eval(), torch.rand(2, 1, 8, 8, 8)
    expected = network(x)
    scripted = torch.jit.script(copy.deepcopy(network))
    torch.jit.save(scripted, tmp_path / "model.ts")
    loaded = torch.jit.load(tmp_path / "model.ts")
    torch.testing.assert_close(loaded(x), expected)
    assert loaded.class_names.text.split("\n") == NAMES
    torch.testing.assert_close(torch.jit.trace(network, x, check_trace=False)(x), expected)
    for strict in (False, True):
        torch.testing.assert_close(torch.export.export(network, (x,), strict=strict).module()(x), expected)
    torch.testing.assert_close(torch.func.functional_call(network, network.state_dict(), x), expected)

    others = [network_of(names=None, kind=kind, seed=8).eval() for _ in range(3)]
    save_model(network, str(tmp_path / "model.safetensors"))
    load_model(others[0], tmp_path / "model.safetensors")
    set_model_state_dict(others[1], get_model_state_dict(network))
    torch.save({"model": network.state_dict()}, tmp_path / "all.pt")
    engine = Engine(lambda engine, batch: None)
    CheckpointLoader(str(tmp_path / "all.pt"), {"model": others[2]}, strict=True).attach(engine)
    engine.run([0])
    for other in others:
        assert class_names_of(other) == NAMES
        torch.testing.assert_close(other(x), expected)


def test_a_state_dict_is_on_the_device_of_its_network():
    network = network_of().to("meta")
    assert {value.device.type for value in network.state_dict().values()} == {"meta"}
    assert class_names_of(network) == NAMES
    torch.func.functional_call(network, network.state_dict(), torch.rand(1, 1, 8, 8, 8, device="meta"))
    with torch.device("meta"):
        names = ClassNames(4, NAMES)
    names.to_empty(device="cpu")
    assert decode(names.state_dict()["code"]).split("\n") == NAMES


def test_an_average_over_folds_knows_that_there_were_several():
    networks = clients(2)
    for fold, network in enumerate(networks):
        network.training_cases.text = f"phantom, fold {fold} of 4 by seed 0"
    states = [network.state_dict() for network in networks]
    other = network_of()
    other.load_state_dict(states[1])
    assert other.training_cases.text == "phantom, fold 1 of 4 by seed 0"
    other.load_state_dict({name: (value + states[1][name]) / 2 for name, value in states[0].items()})
    assert other.training_cases.text == other.training_cases.SEVERAL
