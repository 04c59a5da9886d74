# SPDX-License-Identifier: Apache-2.0
"""Teachers, what they make of batches, and the trainings of a student with them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from monai.networks.nets import DenseNet121, SegResNet, UNet, resnet10
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from monai_llmboost.engines.distillation import (
    FeatureDistiller,
    LastLayer,
    LogitDistiller,
    ReprogrammingDistiller,
    Teacher,
    TeacherBatches,
    linear_cka,
)
from monai_llmboost.networks import ResNet3D, ViT3D, scan_classifier

EXAMPLE = torch.zeros(2, 1, 16, 16, 16)


def student(width: int = 16) -> nn.Module:
    torch.manual_seed(3)
    return ResNet3D(1, 2, img_size=16, hidden_size=width, stem_stride=1)


def teacher(*widths: int, **named: Any) -> Teacher:
    torch.manual_seed(4)
    networks = [ResNet3D(1, 2, img_size=16, hidden_size=width, stem_stride=1) for width in widths or (24,)]
    return Teacher(networks, EXAMPLE, **named)


def batch(cases: int = 6) -> dict[str, Any]:
    images = torch.randn(cases, 1, 16, 16, 16, generator=torch.Generator().manual_seed(5))
    return {"image": images, "label": torch.arange(cases) % 2, "case": [f"case {n}" for n in range(cases)]}


@pytest.mark.parametrize(
    ("make", "size", "name", "shape"),
    [
        (lambda: ResNet3D(1, 2, img_size=16, hidden_size=16, stem_stride=1), 16, "head", [16]),
        (lambda: ViT3D(1, 2, 16, 8, hidden_size=32, num_heads=2, num_layers=1, mlp_dim=32), 16, None, [32]),
        (lambda: resnet10(spatial_dims=3, n_input_channels=1, num_classes=2), 32, "fc", [512]),
        (lambda: DenseNet121(3, 1, 2, block_config=(1, 1)), 32, "class_layers.out", None),
        (lambda: UNet(3, 1, 2, channels=(4, 8), strides=(2,)), 16, None, None),
        (lambda: SegResNet(3, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)), 16, "conv_final.2.conv", [8, 16, 16, 16]),
    ],
)  # fmt: skip
def test_last_layer(make, size, name, shape):
    network = make()
    last = LastLayer(network, torch.zeros(2, 1, size, size, size))
    assert name in (None, last.name)
    assert shape in (None, [*last.take_features().shape[1:]])
    with pytest.raises(RuntimeError, match="was not called: run the network first"):
        last.take_features()
    logits = network.eval()(torch.rand(2, 1, size, size, size))
    torch.testing.assert_close(logits, last.module(last.take_features()).reshape(logits.shape))


def test_a_last_layer_that_cannot_be_known():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU())
    with pytest.raises(ValueError, match="cannot tell which layer of Sequential returns its logits: name it"):
        LastLayer(network, EXAMPLE)
    assert LastLayer(network, EXAMPLE, "0").module is network[0]
    with pytest.raises(ValueError, match="Sequential has no layer 'fc': give a name in named_modules"):
        LastLayer(network, EXAMPLE, "fc")


def test_a_teacher_stays_frozen():
    taught = teacher(16, 24)
    before = {name: value.clone() for name, value in taught.state_dict().items()}
    found = taught.train()(batch()["image"])
    assert not found.logits.requires_grad
    assert not any(module.training for module in taught.modules())
    assert all(torch.equal(value, before[name]) for name, value in taught.state_dict().items())


def test_an_ensemble():
    images = batch()["image"]
    two = teacher(16, 16)
    one, other = (Teacher([network], EXAMPLE)(images) for network in two.networks)
    together = two(images)
    torch.testing.assert_close(together.logits, (one.logits + other.logits) / 2)
    torch.testing.assert_close(together.features, torch.cat([one.features, other.features], dim=1))
    mean = Teacher(list(two.networks), EXAMPLE, combine="mean")(images)
    torch.testing.assert_close(mean.features, (one.features + other.features) / 2)


def test_an_ensemble_of_networks_that_do_not_fit():
    with pytest.raises(ValueError, match=r"teacher 2 has features \[24\], and the first \[16\]: concatenate them"):
        teacher(16, 24, combine="mean")
    wide = nn.Sequential(nn.Conv3d(1, 4, 1), nn.Conv3d(4, 2, 1))
    coarse = nn.Sequential(nn.Conv3d(1, 4, 2, 2), nn.ConvTranspose3d(4, 2, 2, 2))
    with pytest.raises(
        ValueError, match=r"teacher 2 has features \[4, 8, 8, 8\], and the first \[4, 16, 16, 16\]: give one"
    ):
        Teacher([wide, coarse], EXAMPLE)
    named = [scan_classifier(student(), names) for names in (["a", "b"], ["b", "a"])]
    with pytest.raises(ValueError, match="teacher 2 tells b, a apart, and the first a, b: give networks for one task"):
        Teacher(named, EXAMPLE)
    with pytest.raises(ValueError, match="a teacher of no network"):
        Teacher([], EXAMPLE)


def test_batches_are_those_of_the_teacher(tmp_path):
    taught, given = teacher(), batch()
    expected = taught(given["image"])
    halves = [{key: value[part] for key, value in given.items()} for part in (slice(3, 6), slice(0, 3))]
    for loader, cache_dir in ((halves, None), (halves, tmp_path), (halves, tmp_path), (None, None)):
        prepare = TeacherBatches(taught, "plain" if loader else "augmented", loader, cache_dir)
        for part in (slice(0, 6), slice(2, 5)):
            image, label, found, _ = prepare({key: value[part] for key, value in given.items()}, "cpu")
            assert torch.equal(image, given["image"][part])
            assert torch.equal(label, given["label"][part])
            torch.testing.assert_close(found[0], expected.features[part])
            torch.testing.assert_close(found[1], expected.logits[part])
    assert len(list(tmp_path.iterdir())) == 1


def test_the_teacher_runs_once(tmp_path, monkeypatch):
    taught, given = teacher(), batch()
    TeacherBatches(taught, "plain", [given], tmp_path)(given, "cpu")
    monkeypatch.setattr(Teacher, "forward", None)  # the file is enough
    TeacherBatches(taught, "plain", [given], tmp_path)(given, "cpu")


def test_another_teacher_or_image_is_another_file(tmp_path):
    given = batch()
    TeacherBatches(teacher(), "plain", [given], tmp_path)(given, "cpu")
    TeacherBatches(teacher(16), "plain", [given], tmp_path)(given, "cpu")
    changed = {**given, "image": given["image"].clone()}
    changed["image"][3, 0, 0, 0, 0] += 1e-3
    TeacherBatches(teacher(), "plain", [changed], tmp_path)(given, "cpu")
    assert len(list(tmp_path.iterdir())) == 3


def test_cached_features_of_another_teacher(tmp_path):
    given = batch()
    for taught in (teacher(), teacher(16)):
        TeacherBatches(taught, "plain", [given], tmp_path)(given, "cpu")
    one, other = sorted(tmp_path.iterdir())
    other.write_bytes(one.read_bytes())
    one.write_bytes(b"cut")
    for taught in (teacher(), teacher(16)):
        with pytest.raises(ValueError, match=r"(is of another teacher|cannot be read).*: remove it"):
            TeacherBatches(taught, "plain", [given], tmp_path)(given, "cpu")


def test_cached_features_without_a_key(tmp_path):
    given = batch()
    prepare = TeacherBatches(teacher(), "plain", [given], tmp_path)
    prepare(given, "cpu")
    (file,) = tmp_path.iterdir()
    save_file(load_file(file), file)
    with pytest.raises(ValueError, match="is of another teacher, or of other cases"):
        TeacherBatches(teacher(), "plain", [given], tmp_path)(given, "cpu")


def test_repeated_cases_are_seen_once(tmp_path):
    given, taught = batch(), teacher()
    first = {key: value[:2] for key, value in given.items()}
    for cache_dir in (None, tmp_path):
        prepare = TeacherBatches(taught, "plain", [first, given, first], cache_dir)
        *_, found, _ = prepare(given, "cpu")
        torch.testing.assert_close(found[1], taught(given["image"]).logits)
    (file,) = tmp_path.iterdir()
    assert len(load_file(file)["logits"]) == 6


def test_cases_that_the_teacher_has_not_seen():
    given = batch()
    few = {key: value[:4] for key, value in given.items()}
    with pytest.raises(ValueError, match="the teacher has not seen the case 'case 4': give it all the training cases"):
        TeacherBatches(teacher(), "plain", [few])(given, "cpu")
    twice = {**given, "case": ["one"] * 6}
    with pytest.raises(ValueError, match="two cases of the teacher have the name 'one': give each case its own"):
        TeacherBatches(teacher(), "plain", [twice])(twice, "cpu")
    with pytest.raises(ValueError, match="a teacher that sees plain volumes needs a loader of them"):
        TeacherBatches(teacher(), "plain")
    with pytest.raises(ValueError, match="unknown teacher_sees 'all'; choose from plain, augmented"):
        TeacherBatches(teacher(), "all")


def test_training_goes_on_as_without_the_teacher():
    given = batch()

    class Drawing(list):
        def __iter__(self) -> Any:
            torch.rand(3)  # as a loader with workers draws its seed
            return super().__iter__()

    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    TeacherBatches(teacher_of_seed_kept(), "plain", Drawing([given]))(given, "cpu")
    assert torch.equal(torch.rand(2), expected)


def teacher_of_seed_kept() -> Teacher:
    with torch.random.fork_rng():
        return teacher()


class Weighted(nn.CrossEntropyLoss):
    pass


@pytest.mark.parametrize("kind", [LogitDistiller, FeatureDistiller, ReprogrammingDistiller])
def test_each_distillation_trains_the_student_and_nothing_of_the_teacher(kind):
    given, taught = batch(), teacher()
    distiller = kind(student(), taught, EXAMPLE, Weighted())
    found = taught(given["image"])
    loss = distiller.loss(distiller(given["image"], *found), given["label"])
    loss.backward()
    assert all(parameter.grad is not None for parameter in distiller.student.parameters())
    assert not any(name.startswith("networks") for name, _ in distiller.named_parameters())
    assert all(parameter.grad is None for parameter in taught.parameters())
    weightless = kind(student(), taught, EXAMPLE, Weighted(), weight=1e-30)
    first, plain_first = (next(each.student.parameters()) for each in (distiller, weightless))
    weightless.loss(weightless(given["image"], *found), given["label"]).backward()
    assert not torch.allclose(first.grad, plain_first.grad)
    copy.deepcopy(distiller.student)


def test_the_loss_of_reprogramming_distillation_is_its_formula():
    given, taught = batch(), teacher()
    task = nn.CrossEntropyLoss()
    distiller = ReprogrammingDistiller(student(), taught, EXAMPLE, task, weight=0.7)
    found = taught(given["image"])
    network, mapped = distiller.student, distiller.head(found.features)
    network.train()
    loss = distiller.loss(distiller(given["image"], *found), given["label"])
    features = network.forward_features(given["image"])[:, 0]
    expected = (
        task(network.head(features), given["label"])
        + task(network.head(mapped), given["label"])
        + 0.7 * (1 - linear_cka(mapped, features))
    )
    torch.testing.assert_close(loss, expected)


def test_small_batches():
    taught = teacher()
    distiller = ReprogrammingDistiller(student(), taught, EXAMPLE, nn.CrossEntropyLoss())

    def loss_of(cases: int) -> Tensor:
        given = batch(cases)
        return distiller.loss(distiller(given["image"], *taught(given["image"])), given["label"])

    with pytest.raises(ValueError, match=r"3 samples are too few for the unbiased CKA.*: raise the batch size"):
        loss_of(3)
    loss_of(4)
    loss_of(3)  # the last batch of an epoch is trained on without the alignment


def test_wrong_arguments():
    for weight in (0, -1, True, "1"):
        with pytest.raises(ValueError, match="distil_weight must be a number above 0"):
            LogitDistiller(student(), teacher(), EXAMPLE, nn.CrossEntropyLoss(), weight=weight)  # type: ignore[arg-type]
    masks = Teacher([SegResNet(3, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,))], EXAMPLE, ["a", "b"])
    with pytest.raises(
        ValueError, match=r"logits are of shape \[2, 16, 16, 16\], and the student's \[2\]: give networks"
    ):
        ReprogrammingDistiller(student(), masks, EXAMPLE, nn.CrossEntropyLoss())


def test_a_student_that_is_its_teacher():
    """Its weights would not be trained, without a word."""
    x = torch.rand(2, 1, 16, 16, 16)
    network = resnet10(spatial_dims=3, n_input_channels=1, num_classes=2, widen_factor=0.125)
    taught = Teacher([network], x)
    with pytest.raises(ValueError, match=r"the student has weights of the teacher, .*: give it a copy of them"):
        LogitDistiller(network, taught, x, nn.CrossEntropyLoss())
