# SPDX-License-Identifier: Apache-2.0
"""A booster in training only: what the student computes with it and without, and what is left of it."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from functools import partial
from typing import Any

import pytest
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import ResNet, UNet, ViT
from processes import run_two
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_llmboost.boosters import ResidualBooster, mlp_booster, parameter_groups
from monai_llmboost.engines import HeadsLoss
from monai_llmboost.engines.distillation import BoosterInTraining, LinearDecay
from monai_llmboost.llm import load_block, random_block
from monai_llmboost.networks import ResNet3D, ViT3D, boost, planned_unet, scan_classifier

NO_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
VIT = {"hidden_size": 32, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}
RESNET = partial(ResNet, "basic", [1] * 4, [8, 8, 16, 16], spatial_dims=3, n_input_channels=1, num_classes=2)
UNET = partial(planned_unet, 1, 2, [16, 16, 16], filters=4)


class Logits(ViT):
    """MONAI's ViT, which returns more than its logits."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)[0]
        return logits


MONAI_VIT = partial(Logits, 1, 16, 8, classification=True, post_activation="", **VIT)

# Networks with each form of features at the joint, and the joint.
STUDENTS = {
    "vit3d last": (lambda: ViT3D(1, 2, 16, 8, **VIT), None),
    "vit3d middle": (lambda: ViT3D(1, 2, 16, 8, position="middle", **VIT), None),
    "vit3d head": (lambda: ViT3D(1, 2, 16, 8, **VIT), "pooled"),
    "vit3d mean": (lambda: ViT3D(1, 2, 16, 8, pool="mean", **VIT), "deepest"),
    "resnet3d": (lambda: ResNet3D(1, 2, img_size=16, hidden_size=16, stem_stride=1), "last"),
    "map": (RESNET, "deepest"),
    "vector": (RESNET, "pooled"),
    "tokens": (MONAI_VIT, None),
    "before": (MONAI_VIT, "pooled"),
    "unet": (UNET, None),
}


def booster(channels: int) -> ResidualBooster:
    return ResidualBooster(channels, load_block("embedded"))


def student(name: str = "vit3d last") -> tuple[nn.Module, str | None]:
    torch.manual_seed(3)
    make, at = STUDENTS[name]
    return make(), at


def images(cases: int = 4) -> Tensor:
    return torch.randn(cases, 1, 16, 16, 16, generator=torch.Generator().manual_seed(5))


EXAMPLE = images(2)


def trained(name: str = "vit3d last", trains: bool = True, **named: Any) -> BoosterInTraining:
    """Return a student with a booster, which has learnt something."""
    network, at = student(name)
    loss = HeadsLoss(DiceCELoss(softmax=True, to_onehot_y=True)) if name == "unet" else nn.CrossEntropyLoss()
    given = {"example": EXAMPLE, "at": at, "dropout": 0.0, "decay": False, **named}
    if given["dropout"] == 0 and not given["decay"]:  # for good, which only a test wants
        made = BoosterInTraining(network, booster, loss, **{**given, "dropout": 0.5})
        made.dropout = 0.0
    else:
        made = BoosterInTraining(network, booster, loss, **given)
    if trains:
        nn.init.normal_(made.head.booster.decode.weight, std=0.1, generator=torch.Generator().manual_seed(6))
    return made


def labels_for(name: str, cases: int = 4) -> Tensor:
    return torch.arange(cases) % 2 if name != "unet" else (images(cases) > 0).to(torch.uint8)


@pytest.mark.parametrize("name", STUDENTS)
def test_the_student_is_the_plain_network(name):
    plain, _ = student(name)
    made = trained(name)
    assert made.student.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in made.student.state_dict().items())
    assert torch.equal(made.eval()(images()), plain.eval()(images()))
    with torch.no_grad():  # MONAI's DynUNet keeps the logits of its heads
        made.train()(images())
    hooks = [part for part in made.student.modules() if part._forward_hooks or part._forward_pre_hooks]
    assert not hooks
    assert not any("booster." in key for key, _ in made.student.named_parameters())
    for copied in (copy.deepcopy(made.student), pickle.loads(pickle.dumps(made.student))):
        assert torch.equal(copied.eval()(images()), made.eval()(images()))
    copied = copy.deepcopy(made)
    nn.init.zeros_(copied.head.booster.decode.weight)
    assert not torch.equal(first(copied.train()(images())), first(made.train()(images())))


def first(logits: Any) -> Tensor:
    return logits if isinstance(logits, Tensor) else logits[0]


@pytest.mark.parametrize("name", STUDENTS)
def test_in_training_the_network_is_the_boosted_one(name):
    made = trained(name)
    network, at = student(name)
    boosted = boost(network, booster, at, example=EXAMPLE)
    (own,) = (part for part in boosted.modules() if isinstance(part, ResidualBooster))
    own.load_state_dict(made.head.booster.state_dict())
    expected, found = (first(each.train()(images())) for each in (boosted, made))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    plain = first(student(name)[0].train()(images()))
    assert not torch.allclose(found, plain, rtol=1e-3)
    untrained = trained(name, trains=False, dropout=0.5).train()
    assert torch.equal(first(untrained(images())), plain)


@pytest.mark.parametrize("name", ["vit3d last", "vit3d head", "tokens", "before"])
def test_cases_are_dropped_by_chance(name):
    made = trained(name, dropout=0.75).train()
    x = images(80)
    plain = made.eval()(x)
    made.train().dropout = 0.0
    boosted = made(x)
    made.dropout = 0.75
    torch.manual_seed(0)
    found = made(x)
    like_plain, like_boosted = (torch.isclose(found, each, atol=1e-5).all(dim=1) for each in (plain, boosted))
    assert bool((like_plain ^ like_boosted).all())  # kept changes are not divided by 1 - dropout
    assert 50 <= int(like_plain.sum()) <= 70
    torch.manual_seed(0)
    assert torch.equal(made(x), found)


def test_the_change_has_the_size_of_the_share():
    made = trained("vector").train()
    with torch.no_grad():
        whole, half, none = (logits_with(made, share) for share in (1.0, 0.5, 0.0))
    torch.testing.assert_close(half, (whole + none) / 2)  # there is only a linear layer after this joint
    assert torch.equal(none, first(made.student(images())))


def logits_with(made: BoosterInTraining, share: float) -> Tensor:
    made.share = share
    return made(images())


@pytest.mark.parametrize("name", STUDENTS)
def test_each_weight_has_a_gradient_if_all_cases_are_dropped(name, monkeypatch):
    made = trained(name, dropout=0.5).train()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *size, **named: torch.zeros(*size))
        made.loss(made(images()), labels_for(name)).backward()
    plain, _ = student(name)
    made.loss(plain.train()(images()), labels_for(name)).backward()
    expected = {key: value.grad for key, value in plain.named_parameters()}
    for key, value in made.student.named_parameters():
        assert (value.grad is None) == (expected[key] is None)
        if value.grad is not None:
            torch.testing.assert_close(value.grad, expected[key])
    assert all(value.grad is not None and not value.grad.any() for value in made.head.parameters())


def test_both_are_trained():
    for name in ("map", "unet"):
        made = trained(name, dropout=0.25).train()
        torch.manual_seed(0)
        made.loss(made(images()), labels_for(name)).backward()
        assert all(value.grad.any() for value in made.head.parameters())
        assert all(value.grad is not None for value in made.student.parameters())


def test_heads_of_a_unet_in_training():
    made = trained("unet", dropout=0.5).train()
    logits = made(images())
    assert logits.shape == (4, 2, 2, 16, 16, 16)
    assert made.eval()(images()).shape == (4, 2, 16, 16, 16)


def test_the_booster_has_its_own_learning_rates():
    made = trained("map")
    groups = parameter_groups(made, lr=1.0, booster_factor=0.1)
    rates = {id(value): group["lr"] for group in groups for value in group["params"]}
    assert {rates[id(value)] for value in made.student.parameters()} == {1.0}
    maps = made.head.booster
    assert rates[id(maps.encode.weight)] == pytest.approx(0.1)
    assert rates[id(maps.decode.weight)] == pytest.approx(0.1 * 16 / 256)


def test_the_training_draws_the_same_numbers():
    network, at = student()
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    BoosterInTraining(network, booster, nn.CrossEntropyLoss(), EXAMPLE, at)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("name", STUDENTS)
def test_mixed_precision(name):
    made = trained(name, dropout=0.5).train()
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        found = first(made(images()))
        plain = first(student(name)[0].train()(images()))
    assert found.dtype == plain.dtype
    torch.manual_seed(0)
    torch.testing.assert_close(found.float(), first(made(images())), rtol=0.1, atol=0.2)


def test_a_share_that_decays():
    from ignite.engine import Engine

    made = trained(decay=True).train()
    with pytest.raises(RuntimeError, match=r"nothing has set the share of the booster: attach LinearDecay"):
        made(images())
    assert made.eval()(images()).shape == (4, 2)
    shares = []
    trainer = Engine(lambda engine, batch: shares.append(made.train()(images()) is not None and made.share))
    LinearDecay(made).attach(trainer)
    trainer.run([0], max_epochs=2)
    assert shares == [1, 0.5]


def test_a_resumed_head_is_of_the_same_block():
    state = trained().head.state_dict()
    trained().head.load_state_dict(state)
    other = BoosterInTraining(
        student()[0], lambda channels: ResidualBooster(channels, random_block("embedded")), nn.CrossEntropyLoss()
    )
    with pytest.raises(RuntimeError, match="tiny-english"):
        other.head.load_state_dict(state)


def test_a_stride():
    network = UNET()
    made = BoosterInTraining(network, booster, nn.CrossEntropyLoss(), EXAMPLE, "downsamples.0", token_stride=2)
    assert made.head.token_stride == 2


class Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv3d(1, 4, 3, stride=4), nn.ReLU())
        self.head = nn.Conv3d(4, 2, 1)
        self.reentrant = True

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = checkpoint(self.part, x, use_reentrant=self.reentrant)
            return self.head(x).mean(dim=(2, 3, 4))
        return self.head(self.part(x)).mean(dim=(2, 3, 4))


def test_a_joint_that_runs_again_in_the_backward_pass():
    network = Recomputed()
    made = BoosterInTraining(network, booster, nn.CrossEntropyLoss(), EXAMPLE, "part.1", decay=False).train()
    for network.reentrant in (True, False):
        with pytest.raises(RuntimeError, match="the joint is in a part of the network that is computed again"):
            made(images().requires_grad_())
    assert not network.part[1]._forward_hooks


class Twice(Recomputed):
    def forward(self, x: Tensor) -> Tensor:
        x = self.part(x)
        return self.head(self.part[1](x) if self.training else x).mean(dim=(2, 3, 4))


def test_a_joint_that_is_called_twice_in_training():
    made = BoosterInTraining(Twice(), booster, nn.CrossEntropyLoss(), EXAMPLE, "part.1", decay=False).train()
    with pytest.raises(RuntimeError, match="the joint was called 2 times in a forward pass"):
        made(images())


CHANNELS = 32


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dropout": 1}, ValueError, "booster_dropout must be a number from 0 and below 1, not 1: 0.5 drops"),
        ({"dropout": -0.1}, ValueError, "booster_dropout must be a number from 0 and below 1, not -0.1"),
        ({"dropout": "half"}, ValueError, "booster_dropout must be a number from 0 and below 1, not 'half'"),
        ({"dropout": True}, ValueError, "booster_dropout must be a number from 0 and below 1, not True"),
        ({"decay": "yes"}, ValueError, "booster_decay"),
        ({"dropout": 0, "decay": False}, ValueError, "with a booster for good, and be used without: give one of"),
        ({"booster": None}, ValueError, "there is no booster to train with"),
        ({"booster": 3}, TypeError, "the booster is int: give a module, or a function of the channels"),
        ({"booster": lambda c: ResidualBooster(c, load_block("embedded"), start="published")}, ValueError,
         "the booster changes tokens before it is trained.*: give one with start='plain' and the residual outer"),
        ({"booster": lambda c: ResidualBooster(c, load_block("embedded"), "outer", start="published")}, ValueError,
         "the booster changes tokens before it is trained"),
        ({"booster": mlp_booster(16, like="random")}, ValueError,
         "a booster with channels=16 does not fit a network with hidden_size=32: give it channels=32"),
        ({"booster": mlp_booster(8, like="random"), "student": RESNET()}, ValueError,
         "a booster with channels=8 does not fit the map of 16 channels at 'layer4'"),
        ({"at": "top"}, ValueError, "unknown position of a ViT3D 'top'"),
        ({"student": Recomputed()}, ValueError, "no joint is known for Recomputed"),
        ({"student": UNet(3, 1, 2, channels=(4, 8), strides=(2,)), "at": "pooled"}, ValueError, "has no pooled joint"),
        ({"student": torch.compile(ViT3D(1, 2, 16, 8, **VIT))}, ValueError,
         "the student is wrapped in OptimizedModule: give the network itself, and wrap this module"),
        ({"student": ViT3D(1, 2, 16, 8, booster=booster(32), **VIT)}, ValueError,
         "this ViT3D has a booster already: give the plain network"),
        ({"student": boost(RESNET(), booster, "pooled")}, ValueError, "this ResNet has a booster already"),
        ({"token_stride": 2}, ValueError, "token_stride=2 pools the voxels of a feature map"),
    ],
)  # fmt: skip
def test_wrong_arguments(changes, error, message):
    network = changes.pop("student") if "student" in changes else student()[0]
    names = list(network.state_dict())
    given = {"booster": booster, "task_loss": nn.CrossEntropyLoss(), "example": EXAMPLE, **changes}
    with pytest.raises(error, match=message):
        BoosterInTraining(network, **given)
    assert list(network.state_dict()) == names


def test_a_classifier_of_scans():
    network = scan_classifier(RESNET(), ["a", "b"])
    made = BoosterInTraining(network, booster, nn.CrossEntropyLoss(), EXAMPLE)
    assert made.student.class_names.names() == ["a", "b"]


TWO = """
import torch, torch.distributed as dist
from torch import nn
from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.engines.distillation import BoosterInTraining
from monai_llmboost.llm import load_block
from monai_llmboost.networks import ResNet3D, parallel_if_distributed

dist.init_process_group("gloo")
torch.manual_seed(0)
student = ResNet3D(1, 2, img_size=16, hidden_size=16, stem_stride=1)
booster = lambda channels: ResidualBooster(channels, load_block("embedded"))
made = BoosterInTraining(student, booster, nn.CrossEntropyLoss(), at="last", decay=False)
network = parallel_if_distributed(made, torch.device("cpu"))
assert network is not made
torch.manual_seed(dist.get_rank())
optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
rand = torch.rand
for step in range(4):
    dropped = step == 1 or (step == 2 and dist.get_rank() == 1)  # all cases, of both processes or of one
    torch.rand = (lambda *size, **named: torch.zeros(*size)) if dropped else rand
    network.train()
    made.loss(network(torch.randn(4, 1, 16, 16, 16)), torch.arange(4) % 2).backward()
    optimizer.step()
    optimizer.zero_grad()
flat = torch.cat([value.detach().flatten() for value in made.parameters()])
both = [torch.zeros_like(flat) for _ in range(2)]
dist.all_gather(both, flat)
assert torch.equal(*both)
assert made.head.booster.decode.weight.any()
network.eval()
assert torch.equal(network(torch.ones(1, 1, 16, 16, 16)), student(torch.ones(1, 1, 16, 16, 16)))
dist.destroy_process_group()
"""


def test_several_processes():
    for done in run_two([sys.executable, "-c", TWO], env=NO_GPU):
        assert done.returncode == 0, done.stderr[-2000:]
