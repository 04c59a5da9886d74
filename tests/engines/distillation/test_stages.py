"""Stages of networks: which are chosen, what they return, and the network run on from them with other features."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from monai.networks.nets import (
    UNETR,
    DenseNet121,
    SegResNet,
    SegResNetDS,
    SegResNetVAE,
    UNet,
    ViT,
    resnet10,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from monai_llmboost.engines.distillation import ContinuedStages, Stages, find_stages
from monai_llmboost.networks import ResNet3D, ViT3D, planned_unet

NETWORKS = {
    "resnet": (lambda: resnet10(spatial_dims=3, n_input_channels=1, num_classes=2), ["layer2", "layer3", "layer4"]),
    "densenet": (
        lambda: DenseNet121(3, 1, 2, init_features=8, growth_rate=4),
        [f"features.denseblock{n}" for n in (1, 2, 3)],
    ),
    "unet": (
        lambda: UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1),
        ["model.0", "model.1.submodule.1"],
    ),
    "segresnet": (lambda: SegResNet(3, 8, 1, 2), [f"down_layers.{n}" for n in (1, 2, 3)]),
    "segresnet ds": (lambda: SegResNetDS(3, 8, 1, 2), [f"encoder.layers.{n}.blocks" for n in (1, 2, 3)]),
    "planned": (lambda: planned_unet(1, 3, [32] * 3, filters=4), ["downsamples.0", "downsamples.1", "bottleneck"]),
    "unetr": (
        lambda: UNETR(1, 2, (32,) * 3, feature_size=4, hidden_size=24, mlp_dim=24, num_heads=2),
        ["vit.norm"],
    ),
    "resnet3d": (lambda: ResNet3D(1, 2, img_size=32, hidden_size=16), [f"features.layer{n}" for n in (2, 3, 4)]),
    "vit3d": (
        lambda: ViT3D(1, 2, 32, 8, hidden_size=32, num_heads=2, num_layers=4, mlp_dim=32),
        ["layers.0", "layers.1", "layers.3"],
    ),
    "vit": (
        lambda: ViT(1, (32,) * 3, (8,) * 3, 32, 32, num_layers=6, num_heads=2, classification=True),
        ["blocks.1", "blocks.3", "blocks.5"],
    ),
}


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return NETWORKS[name][0](), torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))


def tensor(output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_chosen_stages_run_on(name):
    """A network with the features of other volumes at a stage is the one with a hook that replaces them."""
    network, x = made(name)
    stages = ContinuedStages(network, None, x)
    assert stages.names == NETWORKS[name][1]
    network.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        this, other = stages.run(x), stages.run(x.flip(0))
        torch.testing.assert_close(tensor(this.output), tensor(network(x)), rtol=0, atol=0)
        for number, stage in enumerate(stages.names):
            replaced = other.features[number]
            found = tensor(stages.run_from(number, replaced, this, x))
            hook = network.get_submodule(stage).register_forward_hook(lambda *_, new=replaced: new)
            torch.testing.assert_close(found, tensor(network(x)), rtol=0, atol=0)
            hook.remove()
            assert not torch.equal(found, tensor(this.output))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any("forward" in module.__dict__ for module in network.modules())


@pytest.mark.parametrize("name", ["resnet", "densenet", "unet", "segresnet", "planned", "vit3d"])
def test_gradients_are_those_of_a_replaced_output(name):
    """In training, also of what was computed before the stage; only the statistics of the pass are kept."""
    network, x = made(name)
    stages = ContinuedStages(network, None, x)
    network.train()
    with torch.random.fork_rng():
        this = stages.run(x)
    after = {key: value.clone() for key, value in network.state_dict().items()}
    middle = len(stages.names) - 2
    features = this.features[middle].detach().flip(0).requires_grad_()
    tensor(stages.run_from(middle, features, this, x)).square().sum().backward()
    assert all(torch.equal(value, after[key]) for key, value in network.state_dict().items())
    found = {key: weight.grad for key, weight in network.named_parameters()}
    network.zero_grad()
    mine, features.grad = features.grad, None
    hook = network.get_submodule(stages.names[middle]).register_forward_hook(lambda *_: features.clone())
    tensor(network(x)).square().sum().backward()
    hook.remove()
    torch.testing.assert_close(mine, features.grad)
    for key, weight in network.named_parameters():
        zero = torch.zeros_like(weight)
        torch.testing.assert_close(*(zero if grad is None else grad for grad in (found[key], weight.grad)))


def test_the_network_stays_as_it_is():
    network, x = made("unet")
    stages = ContinuedStages(network, None, x)
    this = stages.run(x)
    stages.run_from(0, this.features[0], this, x)
    copy.deepcopy(network)
    pickle.dumps(network)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_what_is_finished_is_not_computed_again(monkeypatch):
    network, x = made("resnet")
    stages = ContinuedStages(network, ["layer3"], x)
    this = stages.run(x)
    computed = []
    compute = nn.Conv3d._conv_forward
    monkeypatch.setattr(nn.Conv3d, "_conv_forward", lambda self, *given: computed.append(self) or compute(self, *given))
    stages.run_from(0, this.features[0], this, x)
    assert computed
    assert {*computed} == {part for part in network.layer4.modules() if isinstance(part, nn.Conv3d)}


class Reused(nn.Module):
    """Calls one layer before and after a stage, and changes features in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.stage, self.last = nn.Conv3d(1, 4, 3), nn.Conv3d(4, 4, 1), nn.Conv3d(4, 2, 1)
        self.act = nn.LeakyReLU(0.5, inplace=True)

    def forward(self, x):
        return self.last(self.act(self.stage(self.act(self.first(x)))))


class Leaking(Reused):
    """Reads more of a stage than its output."""

    def forward(self, x):
        x = self.first(x)
        return self.last(self.stage(x) + self.stage.weight.mean() * self.hidden(x))

    def hidden(self, x):
        return self.stage(x)


class Changing(Reused):
    """Changes what a finished module returned in place, outside any module."""

    def forward(self, x):
        x = self.first(x)
        x += 1
        return self.last(self.stage(x) + x)


def test_modules_that_are_called_again():
    torch.manual_seed(0)
    network, x = Reused(), torch.randn(2, 1, 8, 8, 8)
    stages = ContinuedStages(network, ["stage"], x)
    this = stages.run(x)
    torch.testing.assert_close(stages.run_from(0, this.features[0], this, x), network(x), rtol=0, atol=0)
    stages.run_from(0, this.features[0].detach() + 1, this, x).sum().backward()


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["layr2"], r"ResNet has no stage 'layr2': did you mean 'layer2'"),
        ([""], "ResNet has no stage .*: name some of conv1, bn1, act, maxpool, layer1, layer2, layer3, layer4, avg"),
        ([], r"the stages \(none\) of ResNet: name each stage once"),
        (["layer2", "layer2"], "the stages layer2, layer2 of ResNet: name each stage once"),
        (["layer1.0.act"], "the stage 'layer1.0.act' of ResNet is called 2 times: name a module around it"),
    ],
)
def test_stages_that_are_none(names, error):
    network, x = made("resnet")
    for kind in (Stages, ContinuedStages):
        with pytest.raises(ValueError, match=error):
            kind(network, names, x)


def test_stages_from_which_a_network_cannot_be_run_on():
    x = torch.randn(2, 1, 8, 8, 8)
    with pytest.raises(ValueError, match="the stage 'stage' of Leaking is called 2 times"):
        ContinuedStages(Leaking(), ["stage"], x)
    with pytest.raises(
        ValueError, match="Changing cannot be run on from the stage 'stage', because it uses more of it"
    ):
        ContinuedStages(Changing(), ["stage"], x)
    with pytest.raises(
        ValueError, match=r"the output of SegResNetDS does not depend on the stage 'encoder\.layers\.3\.down"
    ):
        ContinuedStages(SegResNetDS(3, 8, 1, 2), ["encoder.layers.3.downsample"], torch.rand(1, 1, 32, 32, 32))
    network = nn.LSTM(4, 4, batch_first=True)
    with pytest.raises(ValueError, match="LSTM has no feature maps and no tokens"):
        find_stages(network, torch.rand(2, 3, 4))
    stages = ContinuedStages(Reused(), ["stage"], x)
    with pytest.raises(
        ValueError, match=r"features \[4, 5, 5, 5\] do not fit the stage 'stage' of Reused, \[4, 6, 6, 6\]"
    ):
        stages.run_from(0, torch.zeros(2, 4, 5, 5, 5), stages.run(x), x)


class Skipping(Reused):
    """Leaves a stage out in training, as with stochastic depth."""

    def forward(self, x):
        x = self.first(x)
        return self.last(x if self.training else self.stage(x))


class Windows(Reused):
    """Has a stage whose first axis is that of windows, not of the cases."""

    def forward(self, x):
        x = self.first(x).unflatten(2, (2, -1)).movedim(2, 1)
        return self.last(self.stage(x.flatten(0, 1)).unflatten(0, (-1, 2)).movedim(1, 2).flatten(2, 3))


class Checkpointed(nn.Module):
    """Computes layers again in the backward pass, each alone or all together."""

    def __init__(self, together: bool, use_reentrant: bool) -> None:
        super().__init__()
        self.together, self.use_reentrant = together, use_reentrant
        self.first, self.last = nn.Conv3d(1, 4, 1), nn.Conv3d(4, 2, 1)
        self.layers = nn.Sequential(*(nn.Sequential(nn.Conv3d(4, 4, 1), nn.GELU()) for _ in range(3)))

    def forward(self, x):
        x = self.first(x)
        for layers in [self.layers] if self.together else self.layers:
            x = checkpoint(layers, x, use_reentrant=self.use_reentrant)
        return self.last(x)


@pytest.mark.parametrize("norm", ["batch", ("instance", {"track_running_stats": True})])
def test_running_statistics_are_those_of_the_pass(norm):
    torch.manual_seed(0)
    network, x = UNet(2, 1, 2, channels=(4, 8, 8), strides=(2, 2), norm=norm), torch.randn(2, 1, 32, 32)
    stages = ContinuedStages(network, None, x)
    this = stages.run(x)
    after = {key: value.clone() for key, value in network.named_buffers()}
    assert any("running_mean" in key for key in after)
    stages.run_from(0, this.features[0].detach() + 1, this, x)
    assert all(torch.equal(value, after[key]) for key, value in network.named_buffers())


def test_a_module_with_a_forward_of_its_own_keeps_it():
    network, x = Reused(), torch.randn(2, 1, 8, 8, 8)
    first = network.first.forward
    network.first.forward = wrapped = lambda x: 2 * first(x)
    stages = ContinuedStages(network, ["stage"], x)
    this = stages.run(x)
    torch.testing.assert_close(stages.run_from(0, this.features[0], this, x), network(x), rtol=0, atol=0)
    assert network.first.forward is wrapped


def test_a_layer_that_is_shared_with_a_module_before_the_stage():
    torch.manual_seed(0)
    shared, x = nn.Conv3d(1, 1, 1), torch.randn(2, 1, 8, 8, 8)
    network = nn.Sequential(nn.Sequential(shared, nn.Tanh()), shared, nn.Conv3d(1, 4, 3), nn.Conv3d(4, 2, 1))
    stages = ContinuedStages(network, ["2"], x)
    this = stages.run(x)
    torch.testing.assert_close(stages.run_from(0, this.features[0], this, x), network(x), rtol=0, atol=0)


def test_a_boosted_transformer_has_its_layers():
    """Not parts of the block, such as the keys of each head."""
    from monai_llmboost.boosters import ResidualBooster
    from monai_llmboost.llm import load_block

    sizes = {"hidden_size": 16, "mlp_dim": 16, "num_layers": 3, "num_heads": 2}
    booster = ResidualBooster(16, load_block("embedded"))
    network = ViT3D(1, 2, 16, 8, **sizes, booster=booster)
    assert find_stages(network, torch.zeros(1, 1, 16, 16, 16)) == ["layers.0", "layers.1", "layers.2"]


def test_several_outputs():
    x = torch.rand(1, 1, 16, 16, 16)
    network = SegResNetVAE((16,) * 3, 4, init_filters=8, in_channels=1, out_channels=2)
    assert ContinuedStages(network, ["down_layers.1"], x).names == ["down_layers.1"]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_parts(use_reentrant):
    """A stage may be such a part, unless it has no gradients there, but not a module in one."""
    torch.manual_seed(0)
    x = torch.randn(2, 1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"the stage 'layers\.1', in a part that is computed again in the backward"):
        ContinuedStages(Checkpointed(True, use_reentrant), ["layers.1"], x)
    network = Checkpointed(False, use_reentrant)
    stages = ContinuedStages(network, ["layers.1"], x)
    if use_reentrant:
        with pytest.raises(RuntimeError, match=r"the stage 'layers\.1' .* is checkpointed and has no gradients"):
            stages.run(x)
        assert not any(module._forward_hooks for module in network.modules())
        return
    this = stages.run(x)
    features = this.features[0].detach().flip(0).requires_grad_()
    stages.run_from(0, features, this, x).square().sum().backward()
    found, features.grad = features.grad, None
    network.last(network.layers[2](features)).square().sum().backward()
    torch.testing.assert_close(found, features.grad)


def test_features_of_another_precision():
    """As of a map under autocast; the stage has its own dtype for the layers after it."""
    network, x = Reused(), torch.randn(2, 1, 8, 8, 8)
    stages = ContinuedStages(network, ["stage"], x)
    this = stages.run(x)
    assert stages.run_from(0, this.features[0].bfloat16(), this, x).dtype == torch.float32


def test_a_stage_that_is_left_out_in_training():
    network, x = Skipping(), torch.randn(2, 1, 8, 8, 8)
    stages = ContinuedStages(network, ["stage"], x)
    with pytest.raises(RuntimeError, match="the stage 'stage' of Skipping was called 0 times in a forward pass"):
        stages.run(x)


def test_a_stage_without_an_axis_of_cases():
    with pytest.raises(
        ValueError, match=r"'stage' of Windows returns \[4, 4, .*\] for a batch of 2, which does not st"
    ):
        Stages(Windows(), ["stage"], torch.randn(2, 1, 10, 8, 8))
    assert Stages(Windows(), None, torch.randn(2, 1, 10, 8, 8)).names == ["last"]
