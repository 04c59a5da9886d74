"""Deep reprogramming distillation: its loss, classes and segmentations, unlike kinds of networks, wrong input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DenseNet121, SegResNet, UNet, resnet10
from torch import Tensor, nn

from monai_llmboost.engines import HeadsLoss
from monai_llmboost.engines.distillation import (
    DeepReprogrammingDistiller,
    FeatureDistiller,
    LogitDistiller,
    ReprogrammingDistiller,
    Teacher,
    TeacherBatches,
    linear_cka,
)
from monai_llmboost.networks import ResNet3D, ViT3D, planned_unet

X = torch.rand(4, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 0, 1])
MASKS = (X > 0.5).long()
CLASSIFIERS = {
    "resnet": lambda: resnet10(spatial_dims=3, n_input_channels=1, num_classes=2, widen_factor=0.125),
    "densenet": lambda: DenseNet121(3, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2, 2)),
    "resnet3d": lambda: ResNet3D(1, 2, img_size=32, hidden_size=16),
    "vit3d": lambda: ViT3D(1, 2, 32, 8, hidden_size=24, num_heads=2, num_layers=3, mlp_dim=32),
}
SEGMENTERS = {
    "unet": lambda: UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1),
    "segresnet": lambda: SegResNet(3, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
    "planned": lambda: planned_unet(1, 2, [32] * 3, filters=4),
}


def made(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return {**CLASSIFIERS, **SEGMENTERS}[name]()


def taught(student: nn.Module, teacher: Teacher, **named: Any) -> tuple[DeepReprogrammingDistiller, Tensor]:
    is_classes = teacher(X[:1]).logits.dim() == 2
    loss = nn.CrossEntropyLoss() if is_classes else HeadsLoss(DiceCELoss(softmax=True, to_onehot_y=True))
    return DeepReprogrammingDistiller(student, teacher, X[:2], loss, **named), CLASSES if is_classes else MASKS


PAIRS = [(one, other) for kinds in (CLASSIFIERS, SEGMENTERS) for one in kinds for other in kinds]


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_a_step(teacher, student):
    """Every weight of the student and of the maps is trained, and the student is then as it would be alone."""
    network = made(student, 1)
    names = {*network.state_dict()}
    frozen = Teacher([made(teacher)], X[:1], stages="deepest")
    distiller, labels = taught(network, frozen)
    assert len(distiller.head) == min(len(frozen(X[:1]).stages), 2 if student == "unet" else 3)
    distiller.train()
    lesson = distiller(X, *frozen(X).tensors())
    distiller.loss(lesson, labels).backward()
    missing = [name for name, weight in distiller.named_parameters() if weight.grad is None]
    assert not missing
    assert {*network.state_dict()} == names
    if student != "planned":  # MONAI's DynUNet holds its heads' logits
        copy.deepcopy(distiller)
    torch.testing.assert_close(network.eval()(X), distiller.stages.run(X).output)


def test_the_loss_is_its_definition():
    frozen = Teacher([made("resnet")], X[:1], stages="layer1,layer3")
    distiller, _ = taught(made("densenet", 1).eval(), frozen, stages=["features.denseblock1", "features.denseblock2"],
                          weight=0.5, hybrid_weight=2.0, divergence_weight=3.0)  # fmt: skip
    distiller.share = 0.25
    own = distiller(X, *frozen(X).tensors())
    cross = nn.functional.cross_entropy
    expected = cross(own.output, CLASSES)
    student = distiller.student
    for number, name in enumerate(("features.denseblock1", "features.denseblock2")):
        mapped = distiller.head[number](frozen(X).stages[number])
        features = []
        module = student.get_submodule(name)
        hook = module.register_forward_hook(lambda *call, kept=features: kept.append(call[2].clone()))
        student(X)
        hook.remove()
        hook = module.register_forward_hook(lambda *_, new=mapped: new.clone())
        hybrid = student(X)
        hook.remove()
        divergence = (hybrid.softmax(1) * (hybrid.log_softmax(1) - own.output.log_softmax(1))).sum(1).mean()
        expected = expected + 0.25 * (2 * cross(hybrid, CLASSES) + 3 * divergence)
        one, other = (each.movedim(1, -1).flatten(0, 3) for each in (mapped, features[0]))
        expected = expected + 0.5 * (1 - linear_cka(one, other))
    torch.testing.assert_close(distiller.loss(own, CLASSES), expected)


def test_the_divergence_does_not_train_the_hybrid():
    frozen = Teacher([made("resnet")], X[:1], stages="layer3")
    distiller, _ = taught(made("resnet", 1).eval(), frozen, stages="layer3", hybrid_weight=0.0, weight=1e-12)
    distiller.loss(distiller(X, *frozen(X).tensors()), CLASSES).backward()
    assert max(float(weight.grad.abs().max()) for weight in distiller.head.parameters()) < 1e-9


def test_a_student_with_fewer_stages_takes_the_last_ones():
    frozen = Teacher([made("resnet")], X[:1], stages="deepest")
    network = UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2))
    pooled = nn.Sequential(network, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 2))
    distiller, _ = taught(pooled, frozen)
    assert distiller.first == 1
    assert distiller.head[-1].shape == [*frozen(X[:1]).stages[-1].shape[1:]]


def test_an_ensemble_has_stages():
    networks = [made("resnet", seed) for seed in (1, 2)]
    for combine, wider in (("mean", 1), ("concatenate", 2)):
        stages = Teacher(networks, X[:1], combine=combine, stages="layer2,layer3")(X).stages
        assert [each.shape[1] for each in stages] == [16 * wider, 32 * wider]
    alone = [Teacher([each], X[:1], stages="layer2")(X).stages[0] for each in networks]
    torch.testing.assert_close(Teacher(networks, X[:1], combine="mean", stages="layer2")(X).stages[0], sum(alone) / 2)
    with pytest.raises(ValueError, match="ViT3D has no stage 'layer2'"):
        Teacher([made("resnet"), made("vit3d")], X[:1], stages="layer2")
    other = resnet10(spatial_dims=3, n_input_channels=1, num_classes=2, no_max_pool=True, widen_factor=0.125)
    with pytest.raises(ValueError, match=r"teacher 2 has features \[.*\] at the stage 'layer2', and the first \[16, 8"):
        Teacher([made("resnet"), other], X[:1], stages="layer2")


def test_a_teacher_whose_last_layer_is_not_known():
    """Its logits and stages can be learned from."""
    network = made("unet", 1)
    frozen = Teacher([made("unet")], X[:1])
    assert frozen(X).features.shape == (4, 0)
    loss = HeadsLoss(DiceCELoss(softmax=True, to_onehot_y=True))
    distiller = LogitDistiller(network, frozen, X[:1], loss)
    distiller.loss(distiller(X, *frozen(X).tensors()), MASKS).backward()
    for kind in (FeatureDistiller, ReprogrammingDistiller):
        with pytest.raises(ValueError, match=r"the teacher has no features for this method \(cannot tell which layer"):
            kind(made("segresnet"), frozen, X[:1], loss)


def test_stages_are_kept_on_disk(tmp_path):
    given = {"image": X, "label": CLASSES, "case": list("abcd")}
    frozen = Teacher([made("resnet")], X[:1], stages="layer2,layer3")
    for _ in range(2):
        found = TeacherBatches(frozen, "plain", [given], tmp_path)(given, "cpu")[2]
        for part, expected in zip(found, frozen(X).tensors(), strict=True):
            torch.testing.assert_close(part, expected)
    for stages in ("layer3", None):  # another file
        TeacherBatches(Teacher([made("resnet")], X[:1], stages=stages), "plain", [given], tmp_path)(given, "cpu")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("kind", [LogitDistiller, FeatureDistiller, ReprogrammingDistiller])
def test_the_other_methods_teach_masks(kind):
    """The logits of the full resolution are taught to a student that returns several heads in training."""
    network = made("planned", 1)
    frozen = Teacher([made("segresnet")], X[:1])
    distiller = kind(network, frozen, X[:1], HeadsLoss(DiceCELoss(softmax=True, to_onehot_y=True)))
    distiller.train()
    loss = distiller.loss(distiller(X[:1], *frozen(X[:1]).tensors()), MASKS[:1])
    loss.backward()
    assert float(loss.detach()) > 0
    assert all(weight.grad is not None for weight in distiller.head.parameters())


@pytest.mark.parametrize(
    ("teacher_stages", "given", "error"),
    [
        (None, {}, "the teacher has no stages: name some, such as teacher_stages deepest"),
        ("layer2,layer3", {"stages": "layer2"}, "the student has 1 stages, layer2, and the teacher 2, layer2, layer3"),
        ("layer2", {"stages": "layr2"}, "ResNet has no stage 'layr2': did you mean 'layer2'"),
        ("layer2", {"stages": "layer2", "hybrid_weight": -1}, "hybrid_weight must be a number from 0, not -1"),
        ("layer2", {"stages": "layer2", "divergence_weight": True}, "divergence_weight must be a number from 0"),
        ("fc", {"stages": "layer2"}, r"features of shape \[2\] are a vector, which says nothing of places"),
        ("layer9", {}, "ResNet has no stage 'layer9'"),
    ],
)
def test_wrong_stages(teacher_stages, given, error):
    with pytest.raises(ValueError, match=error):
        taught(made("resnet", 1), Teacher([made("resnet")], X[:1], stages=teacher_stages), **given)


def test_a_teacher_of_another_task():
    with pytest.raises(ValueError, match="give networks for one task"):
        taught(made("resnet"), Teacher([made("unet")], X[:1], stages="deepest"))
    network = resnet10(spatial_dims=3, n_input_channels=1, num_classes=3)
    with pytest.raises(
        ValueError, match=r"logits are of shape \[2\], and the student's \[3\]: give networks for one task"
    ):
        taught(network, Teacher([made("resnet")], X[:1], stages="deepest"))
