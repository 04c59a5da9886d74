# SPDX-License-Identifier: Apache-2.0
"""A booster in any MONAI network: where it stands, that it starts as the plain network, and what else must hold."""

import copy
import logging
import pickle
from functools import partial

import monai.networks.nets as nets
import pytest
import torch
from monai.networks.utils import copy_model_state
from monai_networks import ROWS, build, first
from torch import nn

from monai_llmboost.adapters import lora_block
from monai_llmboost.boosters import MLPControl, ResidualBooster, parameter_groups
from monai_llmboost.llm import BlockGeometry, FrozenBlock, random_block, trained_block
from monai_llmboost.networks import ResNet3D, ViT3D, boost, load_plain_weights, unboost
from monai_llmboost.networks.insertion import BoostedModule, plain_modules
from monai_llmboost.networks.joints import JOINTS

GEOMETRY = BlockGeometry(width=24, mlp_width=40, num_heads=4, num_kv_heads=2, head_size=8)
ARMS = {
    "mlp": lambda: MLPControl(24),
    "random": lambda: random_block(GEOMETRY),
    "lora": lambda: lora_block(GEOMETRY, rank=2),
    "pretrained-trained": lambda: trained_block(GEOMETRY),
}
JOINT_NAMES = [
    (name, at) for name, row in ROWS.items() for at in ("deepest", "pooled") if at == "deepest" or row.pooled
]
# A booster after the pooling of ResNet is the same module as after that of EfficientNet and SENet.
ONE_OF_EACH_KIND = [joint for joint in JOINT_NAMES if joint not in (("EfficientNet", "pooled"), ("SENet", "pooled"))]
script_warnings = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning", "ignore:The TorchScript type:UserWarning"
)


def booster_of(channels, arm="random", start="plain"):
    torch.manual_seed(3)
    return ResidualBooster(channels, ARMS[arm](), start=start)


def boosted(name, at=None, dims=2, arm="random", start="plain"):
    """A boosted network, images for it, and the plain network."""
    network, x = build(name, dims)
    plain = copy.deepcopy(network)
    return boost(network, partial(booster_of, arm=arm, start=start), at=at, example=x[:1]), x, plain


def joint_of(network):
    [(name, module)] = {
        id(m): (n, m) for n, m in plain_modules(network).items() if isinstance(m, BoostedModule)
    }.values()
    return name, module


def test_each_known_network_has_a_row():
    assert set(ROWS) == set(JOINTS)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "at"), JOINT_NAMES)
def test_the_contract(name, at, dims):
    network, x, plain = boosted(name, at, dims)
    x = x if dims == 2 else x[:1]
    row = ROWS[name]
    place, module = joint_of(network)
    expected = (row.deepest, row.channels, row.form) if at == "deepest" else (row.pooled, row.pooled_channels, "vector")
    assert place in (expected[0], "skip_layers.next_layer.next_layer")  # of DynUNet, which holds it twice
    assert (module.booster.channels, module.form) == expected[1:]
    assert network.training == module.training is False
    with torch.no_grad():
        outputs = first(network(x)), first(plain(x))
    assert torch.equal(*outputs), "it starts as the plain network"
    assert [key for key in network.state_dict() if ".booster" not in key] == list(plain.state_dict())
    if dims == 2:
        _check_checkpoints(network, x, plain, name, at)


def _check_checkpoints(network, x, plain, name, at):
    """Weights of the plain network load before or after; a checkpoint loads, and not with another block."""
    other, _ = build(name, seed=5)
    load_plain_weights(network, other.state_dict())
    with torch.no_grad():
        assert torch.equal(first(network(x)), first(other(x)))
        for parameter in module_parameters(network):
            parameter.normal_(0, 0.1)
        expected = first(network(x))
        assert not torch.equal(expected, first(other(x))), "the booster is in use"
        again = boost(plain, booster_of, at=at, example=x[:1])
        again.load_state_dict(network.state_dict(), strict=True)
        assert torch.equal(first(again(x)), expected)
        assert torch.equal(first(copy.deepcopy(again)(x)), expected)
        assert torch.equal(first(unboost(again)(x)), first(other(x)))
    assert list(again.state_dict()) == list(other.state_dict())
    third = boost(build(name)[0], lambda c: ResidualBooster(c, random_block(GEOMETRY, seed=8)), at, example=x[:1])
    with pytest.raises(RuntimeError, match="the checkpoint was made with the block 'random seed 0"):
        third.load_state_dict(network.state_dict())


def module_parameters(network):
    return joint_of(network)[1].booster.parameters()


@pytest.mark.parametrize(
    ("name", "at", "arm"),
    # Each arm with a map, a vector and tokens; one arm in each other network, in turn.
    [(*joint, arm) for joint in (("ResNet", "deepest"), ("ResNet", "pooled"), ("UNETR", "deepest")) for arm in ARMS]
    + [(*joint, list(ARMS)[number % len(ARMS)]) for number, joint in enumerate(JOINT_NAMES)
       if joint[0] not in ("ResNet", "UNETR")],
)  # fmt: skip
def test_training(name, at, arm):
    """Step 0 is the plain network's for every arm; then gradients reach all that is trained, no others change."""
    network, x, plain = boosted(name, at, arm=arm)
    with torch.no_grad():
        assert torch.equal(first(network(x)), first(plain(x)))
        joint_of(network)[1].booster.decode.weight.normal_()
    frozen = {key: value.clone() for key, value in network.named_buffers() if ".block." in key}
    optimizer = torch.optim.AdamW(parameter_groups(network, 1e-3))
    network.train()
    first(network(torch.cat([x, x.flip(0)]))).square().mean().backward()
    unused = ROWS[name].unused
    for key, parameter in network.named_parameters():
        if unused and "booster" not in key and key.startswith(unused):
            continue
        assert parameter.grad is not None, key
    booster = joint_of(network)[1].booster
    assert booster.encode.weight.grad.any() and booster.decode.weight.grad.any()
    optimizer.step()
    assert all(torch.equal(value, frozen[key]) for key, value in network.named_buffers() if key in frozen)
    network.train(False)
    assert not booster.training


@script_warnings
@pytest.mark.parametrize(("name", "at"), ONE_OF_EACH_KIND)
def test_scripts_where_the_plain_network_does(name, at):
    network, x, plain = boosted(name, at, start="published")
    try:
        torch.jit.script(plain)
    except Exception as error:  # SwinUNETR
        with pytest.raises(type(error)):
            torch.jit.script(network)
        assert name == "SwinUNETR"
        return
    torch.testing.assert_close(first(torch.jit.script(network)(x)), first(network(x)))


@pytest.mark.parametrize(("name", "at"), ONE_OF_EACH_KIND)
def test_exports(name, at):
    network, x, _ = boosted(name, at, start="published")
    with torch.no_grad():
        exported = torch.export.export(network, (x,), strict=False).module()
        torch.testing.assert_close(first(exported(x)), first(network(x)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "at"), [("ResNet", "deepest"), ("ResNet", "pooled"), ("UNETR", None), ("UNet", None)])
def test_compiles_without_a_graph_break(name, at):
    network, x, _ = boosted(name, at, start="published")
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        torch.testing.assert_close(first(compiled(x)), first(network(x)), rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("name", "at"), [("ResNet", "deepest"), ("ResNet", "pooled"), ("SegResNet", None)])
def test_an_onnx_file_runs(name, at, tmp_path):
    """Also with the block of the package, whose weights are bfloat16 in their file: a block is float32 by default."""
    runtime = pytest.importorskip("onnxruntime")
    network, x = build(name)
    from monai_llmboost.llm import load_block

    boost(network, lambda c: ResidualBooster(c, load_block("embedded"), start="published"), at, example=x[:1])
    file = tmp_path / "network.onnx"
    torch.onnx.export(network, (x,), file, dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), first(network(x)).detach(), rtol=1e-3, atol=1e-4)


def test_several_boosters_in_one_network():
    network, x = build("ResNet")
    plain = copy.deepcopy(network)
    for at in ("layer2", "layer4", "pooled"):
        boost(network, booster_of, at=at)
    assert sum(isinstance(module, BoostedModule) for module in network.modules()) == 3
    assert torch.equal(network(x), plain(x))
    assert len(parameter_groups(network, 1e-3)) > 2
    unboost(network, at="layer4")
    assert [name for name, module in plain_modules(network).items() if isinstance(module, BoostedModule)] == [
        "layer2", "avgpool",
    ]  # fmt: skip
    assert type(network.layer4) is nn.Sequential


def test_a_boosted_module_inside_another():
    """Names stay those of the plain network, so a module inside a boosted one is found by its own name."""
    network, x = build("ResNet")
    plain = copy.deepcopy(network)
    boost(boost(network, booster_of, at="layer4"), booster_of, at="layer4.0.conv2")
    assert torch.equal(network(x), plain(x))
    keys = [key for key in network.state_dict() if "booster" not in key]
    assert sorted(keys) == sorted(plain.state_dict())
    assert list(unboost(network).state_dict()) == list(plain.state_dict())


def test_a_decoder_stage_with_two_inputs():
    network, x, plain = boosted("SwinUNETR", "decoder2")
    _, module = joint_of(network)
    assert module.takes_two
    assert torch.equal(network(x), plain(x))
    with torch.no_grad():
        module.booster.decode.weight.normal_()
    assert not torch.equal(network(x), plain(x))


@script_warnings
def test_a_module_with_two_inputs_scripts():
    network, x, _ = boosted("BasicUNet", "upcat_4", start="published")
    assert joint_of(network)[1].takes_two
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))


def test_before_a_module():
    network, x = build("ResNet")
    seen = []
    boost(network, booster_of, at="fc", before=True)
    assert joint_of(network)[1].form == "vector"
    network.fc.booster.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape))
    network(x)
    assert seen == [(2, 1, 64)]


def test_the_pooled_booster_is_the_full_computation_and_keeps_no_queries_and_keys():
    """PiFi: the attention of one token to itself is its value; the block of the caller keeps its weights."""
    block = random_block(GEOMETRY)
    full = ResidualBooster(64, block, start="published")
    network, _ = build("ResNet")
    pooled = copy.copy(full)
    pooled._modules = dict(full._modules)
    boost(network, pooled, at="pooled")
    x = torch.randn(3, 64, 1, 1)
    torch.testing.assert_close(network.avgpool.boost(x).flatten(1), full(x.view(3, 1, 64)).squeeze(1))
    names = {name for name, _ in network.avgpool.booster.named_buffers()}
    assert not [name for name in names if "query" in name or "key" in name]
    assert block.layer.key.weight is not None
    assert network.avgpool.booster.block.signature.text == block.signature.text
    shared = network.avgpool.booster.block.layer.value.weight
    assert shared.data_ptr() == block.layer.value.weight.data_ptr(), "the other weights are shared, not copied"
    with pytest.raises(ValueError, match=r"made for one token, by for_one_token: give \(B, 1, D\)"):
        network.avgpool.booster.block(torch.randn(2, 3, 24))


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"rotary": True}, {"h_rms": 2.0}], ids=str)
def test_a_block_for_one_token(options):
    geometry = BlockGeometry(width=24, mlp_width=40, num_heads=4, num_kv_heads=2, head_size=8, qk_norm="head",
                             rotary=(1.0, 0.1, 0.01, 0.001))  # fmt: skip
    from monai_llmboost.llm.layers import random_layer

    block = FrozenBlock(random_layer(geometry, seed=0), **options)
    h = torch.randn(3, 1, 24)
    torch.testing.assert_close(block.for_one_token()(h), block(h))


def test_pretrained_weights_by_their_published_names():
    """MedicalNet's files hold `module.` names and no head; a boosted network takes them before or after."""
    torch.manual_seed(0)
    source = nets.resnet10(spatial_dims=3, n_input_channels=1, feed_forward=False)
    weights = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    published = {f"module.{name}": value for name, value in weights.items()}
    make = partial(nets.resnet10, spatial_dims=3, n_input_channels=1, feed_forward=False)
    after = load_plain_weights(boost(make(), booster_of), published)
    before = make()
    before.load_state_dict({name.removeprefix("module."): value for name, value in published.items()})
    boost(before, booster_of)
    x = torch.rand(1, 1, 32, 32, 32)
    assert torch.equal(after.eval()(x), source.eval()(x))
    assert torch.equal(before.eval()(x), source(x))
    with_head = boost(nets.resnet10(spatial_dims=3, n_input_channels=1, num_classes=2), booster_of)
    _, changed, left = copy_model_state(with_head, source.state_dict())
    assert len(changed) == len(source.state_dict())
    assert all("booster" in name or name.startswith("fc.") for name in left)


def test_swin_unetr_loads_its_published_encoder():
    """`SwinUNETR.load_from` reaches into the encoder by attributes."""
    network, _, _ = boosted("SwinUNETR", dims=3)
    own = {f"module.{key.removeprefix('swinViT.')}": value + 1 for key, value in network.state_dict().items()
           if key.startswith("swinViT.")}  # fmt: skip
    renamed = {key.replace("mlp.linear", "mlp.fc"): value for key, value in own.items()}
    network.load_from({"state_dict": renamed})
    assert torch.equal(network.swinViT.patch_embed.proj.weight, own["module.patch_embed.proj.weight"])


@pytest.mark.parametrize("at", ["deepest", "pooled"])
def test_pickle_and_other_memory_formats(at):
    network, x, _ = boosted("ResNet", at, start="published")
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), network(x))
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), network(x))
    if at == "deepest":
        seen = []
        last.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output))
        last(x.to(memory_format=torch.channels_last))
        assert seen[0].is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).isfinite().all()


def test_gradcam_of_a_boosted_map():
    from monai.visualize import GradCAM

    network, x, _ = boosted("ResNet", "deepest", dims=3, start="published")
    maps = GradCAM(nn_module=network, target_layers="layer4")(x[:1])
    assert maps.shape == (1, 1, 64, 64, 64)
    assert maps.isfinite().all() and maps.max() > maps.min()


def test_meta_device():
    """The frozen weights are real at once; the trained ones come from a checkpoint."""
    real, x, _ = boosted("ResNet", start="published")
    with torch.device("meta"):
        network, _ = build("ResNet")
        boost(network, partial(booster_of, start="published"))
        with pytest.raises(ValueError, match=r"this would lose the frozen weights .* instead of to_empty\(\), load"):
            network.to_empty(device="cpu")
    network.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(network.eval()(x), real(x))


def test_the_choice_is_reported(caplog):
    with caplog.at_level(logging.INFO, "monai_llmboost"):
        boosted("SegResNet")
    assert "booster after down_layers.2 of SegResNet: map of 32 channels" in caplog.text


class Odd(nn.Module):
    """Modules that cannot take a booster, each for its own reason."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.twice = nn.Identity()
        self.never = nn.Identity()
        self.side = nn.Conv2d(8, 8, 1)
        self.pair = Pair()
        self.named = Named()
        self.booster_holder = nn.Module()
        self.hidden = [nn.Identity()]
        self.alias = self.hidden[0]
        self.integer = Integer()

    def forward(self, x):
        x = self.twice(self.twice(self.conv(x)))
        self.side(x)
        x = self.named(self.pair(x)[0], scale=2.0)
        self.integer(x)
        return self.hidden[0](x).mean((2, 3))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Named(nn.Module):
    def forward(self, x, scale):
        return x * scale


class Integer(nn.Module):
    def forward(self, x):
        return x.argmax(1)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("cnv", "Odd has no module 'cnv': did you mean 'conv'"),
        ("layer9", r"Odd has no module 'layer9': see network\.named_modules\(\)"),
        (None, "no joint is known for Odd .*: give the name of a module"),
        ("pooled", "no joint is known for Odd"),
        ("twice", "'twice' is called 2 times when the network runs: name a module that is called once"),
        ("never", "'never' is not called when the network runs"),
        ("side", "the output of 'side' does not affect the output of the network"),
        ("pair", "'pair' returns tuple, not a tensor: name a module inside it"),
        ("named", "'named' is called with the named inputs scale"),
        ("alias", "'alias' is called 0 times|'alias' is not called"),
        ("integer", r"the features at 'integer' have shape \[2, 32, 32\], torch.int64"),
    ],
)
def test_modules_that_cannot_be_boosted(at, message):
    network = Odd()
    keys = list(network.state_dict())
    with pytest.raises(ValueError, match=message):
        boost(network, booster_of, at=at)
    assert list(network.state_dict()) == keys
    assert not any(isinstance(module, BoostedModule) for module in network.modules())


def test_other_wrong_input():
    network, _ = build("ResNet")
    with pytest.raises(
        ValueError, match="channels=8 does not fit the map of 64 channels at 'layer4': give it channels=64"
    ):
        boost(network, booster_of(8))
    with pytest.raises(ValueError, match="this UNet has no pooled joint: give the name of a module, or leave out at"):
        boost(build("UNet")[0], booster_of, at="pooled")
    with pytest.raises(ValueError, match="before belongs to a module that at names, not to at=None"):
        boost(network, booster_of, before=True)
    with pytest.raises(TypeError, match="the booster is str: give a module, or a function of the channels"):
        boost(network, "embedded")
    with pytest.raises(TypeError, match="the booster is int: let the function return a module"):
        boost(network, lambda channels: channels)
    with pytest.raises(ValueError, match="the network is wrapped in DataParallel: boost it first, then wrap it"):
        boost(nn.DataParallel(network), booster_of)
    with pytest.raises(ValueError, match=r"fails on an example of shape \[2, 3, 64, 64\] .*: give another one"):
        boost(network, booster_of, example=torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="cannot tell what Sequential takes, it has no convolution: give one, such as"):
        boost(nn.Sequential(nn.Linear(2, 2)), booster_of, at="0")
    assert not any(isinstance(module, BoostedModule) for module in network.modules())
    boost(network, booster_of, at="layer4")
    with pytest.raises(ValueError, match=r"'layer4' has a booster: use unboost\(network, at='layer4'\) first"):
        boost(network, booster_of, at="layer4")
    with pytest.raises(ValueError, match="there is no booster at 'layer2': leave out at"):
        unboost(network, at="layer2")
    with pytest.raises(ValueError, match="there are no features to boost, their shape is"):
        network.layer4.boost(torch.zeros(2, 64, 0, 4))
    with pytest.raises(ValueError, match=r"no weights of the plain ResNet: only this network has 63 weights \(bn1"):
        load_plain_weights(network, {"fc.weight": network.fc.weight, "fc.bias": network.fc.bias})
    assert boost(network, None) is network


def test_a_one_dimensional_network():
    """Three axes may be tokens or a map; the channels of the booster tell."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv1d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    with pytest.raises(ValueError, match="may be tokens or a 1-D map: give a booster with channels"):
        boost(network, booster_of, at="0")
    with pytest.raises(ValueError, match="may be tokens or a 1-D map: give an example of another size"):
        boost(network, booster_of(8), at="0", example=torch.zeros(1, 1, 8))
    boost(network, booster_of(8), at="0")
    assert network[0].form == "map"
    assert network(torch.rand(2, 1, 50)).shape == (2, 2)


@pytest.mark.parametrize("at", ["last", "middle", "head", None, "deepest", "pooled"])
def test_a_network_of_this_package_places_the_booster_itself(at):
    sizes = {"in_channels": 1, "num_classes": 2, "img_size": 16, "patch_size": 8, "hidden_size": 32, "num_heads": 4}
    position = {None: "last", "deepest": "last", "pooled": "head"}.get(at, at)
    expected = ViT3D(**sizes, booster=booster_of(32, start="published"), position=position)
    network = boost(ViT3D(**sizes), lambda c: booster_of(c, start="published"), at=at)
    network.load_state_dict(expected.state_dict(), strict=True)
    x = torch.rand(2, 1, 16, 16, 16)
    assert torch.equal(network(x), expected(x))
    with pytest.raises(ValueError, match="this ViT3D has a booster: use unboost first"):
        boost(network, booster_of, at="head")
    other = ViT3D(**sizes)
    load_plain_weights(network, other.state_dict())
    assert network.position == position
    network.booster.decode.weight.data.zero_()
    network.booster.outer, network.booster.inner = True, False
    assert torch.equal(network(x), other(x))
    with pytest.raises(ValueError, match="no weights of the plain ViT3D: the checkpoint was made with"):
        load_plain_weights(network, ViT3D(**{**sizes, "num_heads": 8}).state_dict())
    plain = unboost(network)
    assert list(plain.state_dict()) == list(ViT3D(**sizes).state_dict())
    with pytest.raises(ValueError, match="before has no effect in a ViT3D: choose a position by at"):
        boost(plain, booster_of, before=True)
    with pytest.raises(ValueError, match="unknown position of a ResNet3D 'middle'; choose from head, last"):
        boost(ResNet3D(1, 2, img_size=28, hidden_size=16), booster_of, at="middle")


def test_the_head_of_a_network_of_this_package_keeps_no_queries_and_keys():
    network = ResNet3D(1, 2, img_size=28, hidden_size=16, booster=booster_of(16))
    assert not [name for name, _ in network.named_buffers() if "query" in name]
    trained = ResNet3D(1, 2, img_size=28, hidden_size=16, booster=booster_of(16, "pretrained-trained"))
    assert "booster.block.layers.0.query.weight" in trained.state_dict(), "as in checkpoints of earlier versions"


def test_parts_in_another_mode_stay_in_it():
    network, _ = build("ResNet")
    network.train().layer4[0].bn1.eval()  # frozen statistics, as in fine-tuning
    boost(network, booster_of)
    module = network.layer4
    assert module.training and module.booster.training and module.inner.training
    assert not module.inner[0].bn1.training
