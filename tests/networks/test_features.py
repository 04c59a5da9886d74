# SPDX-License-Identifier: Apache-2.0
"""Frozen features equal their plain definitions, depend on nothing but volume and weights, and refuse what is wrong."""

import copy
import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.networks.nets import resnet10
from processes import run_python
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.data import EmbedScand
from monai_llmboost.engines import LogisticStart
from monai_llmboost.llm import load_block
from monai_llmboost.networks import EncoderClassifier, FeatureClassifier, ResNet3D, scan_classifier
from monai_llmboost.networks.features import (
    Embedding,
    EncoderFeatures,
    SliceFeatures,
    UntrainedConvolutions,
    frozen_features,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:monai")
SHAPE = (1, 9, 10, 11)
VISION = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
KINDS = {"vit": {"intermediate_size": 16}, "dinov2": {}, "dinov2_with_registers": {"num_register_tokens": 2}}


def save_model(folder, kind, **options):
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, **options)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def transformers(tmp_path_factory):
    """Return folders with tiny vision transformers, by the name of their kind."""
    return {kind: save_model(tmp_path_factory.mktemp(kind), kind, **VISION, **more) for kind, more in KINDS.items()}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Return a function that makes a network, and a file of its weights."""
    torch.manual_seed(1)
    make = partial(resnet10, spatial_dims=3, n_input_channels=1, num_classes=3)
    file = tmp_path_factory.mktemp("encoder") / "resnet.pt"
    torch.save(make().state_dict(), file)
    return make, file


@pytest.mark.parametrize("kind", KINDS)
def test_slice_features_are_those_of_the_formula(transformers, kind):
    from transformers import AutoModel

    features = SliceFeatures(transformers[kind], SHAPE, projection=3, seed=5)
    volume = torch.rand(SHAPE[1:])
    model = AutoModel.from_pretrained(transformers[kind]).eval()
    projection = torch.randn(12, 3, generator=torch.Generator().manual_seed(5))
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = []
    for axis in range(3):
        tokens = []
        for index in range(volume.shape[axis]):
            grey = volume.select(axis, index)[None, None]
            image = functional.interpolate(grey, (8, 8), mode="bicubic").clamp(0, 1).repeat(1, 3, 1, 1)
            with torch.no_grad():
                hidden = model(pixel_values=(image - mean) / deviation).last_hidden_state[0]
            tokens.append(hidden[{"vit": 1, "dinov2": 1, "dinov2_with_registers": 3}[kind] :])
        expected.append((torch.stack(tokens).mean(0) @ projection).T)  # (K, N)
    found = features(volume[None, None])
    assert found.shape == (1, 3 * 3 * 4) and features.num_features == 36
    torch.testing.assert_close(found[0], torch.cat(expected).flatten(), rtol=1e-4, atol=1e-4)


def test_the_folder_says_size_and_colours(transformers, tmp_path):
    folder = save_model(tmp_path / "sized", "dinov2", **VISION)
    said = {"crop_size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    features = SliceFeatures(folder, SHAPE, projection=2)
    assert features.num_features == 3 * 2 * 16
    assert features.image_mean.flatten().tolist() == [0.5] * 3
    assert "slices of 16" in str(features)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 16, "width": 12}}))
    with pytest.raises(ValueError, match=r"slices or patches of .* are not square"):
        SliceFeatures(folder, SHAPE)


def make_all(transformers, encoder, shape=SHAPE):
    make, file = encoder
    return [
        UntrainedConvolutions(shape, seed=3),
        SliceFeatures(transformers["dinov2"], shape, projection=2, seed=3),
        EncoderFeatures(make, file, (1, 32, 32, 32)),
    ]


def test_features_do_not_depend_on_the_batch_or_on_training(transformers, encoder):
    for features in make_all(transformers, encoder):
        volumes = torch.rand(5, *features.image_shape)
        together = features.train()(volumes)
        assert together.shape == (5, features.num_features) and not together.requires_grad
        apart = torch.cat([features(volume[None]) for volume in volumes])
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
        assert not list(features.parameters()), "frozen weights are buffers"
        assert not features.training
        assert torch.equal(copy.deepcopy(features)(volumes), together)


def test_each_channel_has_its_own_features(transformers):
    both = SliceFeatures(transformers["vit"], (2, 8, 8, 8), projection=2)
    one = SliceFeatures(transformers["vit"], (1, 8, 8, 8), projection=2)
    volumes = torch.rand(3, 2, 8, 8, 8)
    torch.testing.assert_close(both(volumes), torch.cat([one(volumes[:, :1]), one(volumes[:, 1:])], 1))


def test_another_process_has_the_same_features_and_the_same_text(transformers):
    code = (
        "import sys, torch; from monai_llmboost.networks.features import SliceFeatures, UntrainedConvolutions\n"
        "torch.manual_seed(9)\n"
        f"made = [UntrainedConvolutions({SHAPE}, 3), SliceFeatures(sys.argv[1], {SHAPE}, 2, 3)]\n"
        f"x = torch.linspace(0, 1, {np.prod(SHAPE)}).reshape(1, *{SHAPE})\n"
        "print(*(f'{each}|{each(x).double().sum().item()}' for each in made), sep='\\n')"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(transformers["dinov2"])]
    printed = run_python(command, check=True).stdout.splitlines()
    x = torch.linspace(0, 1, int(np.prod(SHAPE))).reshape(1, *SHAPE)
    here = [UntrainedConvolutions(SHAPE, 3), SliceFeatures(transformers["dinov2"], SHAPE, 2, 3)]
    for features, line in zip(here, printed, strict=True):
        text, total = line.split("|")
        assert text == str(features)
        assert float(total) == pytest.approx(features(x).double().sum().item(), rel=1e-6)
    assert str(here[0]) != str(UntrainedConvolutions(SHAPE, 4))
    assert str(here[1]) != str(SliceFeatures(transformers["dinov2"], SHAPE, 2, 4))


def test_encoder_features_are_pooled(encoder):
    make, file = encoder
    network = make().eval()
    network.load_state_dict(torch.load(file, weights_only=True))
    x = torch.rand(2, 1, 32, 32, 32)
    network.fc = torch.nn.Identity()
    features = EncoderFeatures(make, file, (1, 32, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(features(x), network(x))
    assert features.num_features == 512


def test_encoder_features_of_our_networks(tmp_path):
    from monai.networks.nets.segresnet_ds import SegResEncoder

    def segresnet():
        return EncoderClassifier(SegResEncoder(init_filters=8, in_channels=1, blocks_down=(1, 1)), 16, 2, 2)

    for make, width in ((partial(ResNet3D, 1, 2, (32, 32, 32), hidden_size=16), 16), (segresnet, 16)):
        torch.save(make().state_dict(), tmp_path / "weights.pt")
        assert EncoderFeatures(make, tmp_path / "weights.pt", (1, 32, 32, 32)).num_features == width


def test_convolutions_are_those_of_the_definition():
    from torch import nn

    volume = torch.rand(1, 1, 12, 12, 12)
    random, x, expected, channels = torch.Generator().manual_seed(2), volume, [], 1
    for number, width in enumerate((16, 32, 64)):
        layer = nn.Conv3d(channels, width, 5, padding=2, bias=False)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=random)
        x = nn.AvgPool3d(2)(x) if number else x
        x = layer(x).relu().detach()
        expected.append(nn.AdaptiveAvgPool3d(3)(x).flatten(1))
        channels = width
    torch.testing.assert_close(UntrainedConvolutions((1, 12, 12, 12), seed=2)(volume), torch.cat(expected, 1))


def test_the_transform_keeps_features_and_metadata():
    embed = EmbedScand("image", UntrainedConvolutions(SHAPE))
    volume = MetaTensor(torch.rand(SHAPE), meta={"original_affine": np.eye(4)})
    item = embed({"image": volume, "label": 1})
    assert item["image"].shape == (3024, 1, 1, 1) and item["image"].meta["original_affine"] is not None
    assert item["image"].untyped_storage().nbytes() == 3024 * 4, "nothing of the volume is kept"
    assert torch.equal(item["image"].flatten(), UntrainedConvolutions(SHAPE)(volume.as_tensor()[None])[0])


def cases_of(count, seed, width=40):
    random = np.random.default_rng(seed)
    x = random.normal(3, 2, (count, width)).astype(np.float32)
    x[:, -1] = 7  # does not vary
    y = (x[:, 0] + x[:, 1] + random.normal(0, 1, count) > 6).astype(int)
    return [{"image": torch.tensor(row)[:, None, None, None], "label": int(label)} for row, label in zip(x, y)], x, y


def test_the_head_starts_from_the_best_logistic_regression_on_validation():
    (training, x, y), (validation, val_x, val_y) = cases_of(60, 0), cases_of(80, 1)
    network = FeatureClassifier(40, 2)
    LogisticStart(network, training, validation).start(Engine(lambda engine, batch: None))
    mean, deviation = x.astype(float).mean(0), x.astype(float).std(0)
    deviation[-1] = 1
    best = None
    for c in (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0):
        model = LogisticRegression(C=c, max_iter=5000).fit((x - mean) / deviation, y)
        scores = model.predict_proba((val_x - mean) / deviation)[:, 1]
        auc = np.mean(scores[val_y == 1, None] > scores[None, val_y == 0])
        if best is None or auc > best[0]:
            best = auc, scores
    with torch.no_grad():
        found = network.eval()(torch.tensor(val_x)).softmax(1)[:, 1]
    np.testing.assert_allclose(found, best[1], atol=1e-5)
    assert not np.allclose(network.mean, val_x.mean(0), atol=1e-3), "statistics are of the training cases only"
    # A resumed training keeps its weights.
    with torch.no_grad():
        network.head.weight.zero_()
    LogisticStart(network, training, validation).start(Engine(lambda engine, batch: None))
    assert not network.head.weight.any()


def test_three_classes_start_from_a_multinomial_regression():
    random = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = random.normal(0, 0.3, (90, 3)) + np.eye(3)[y]
    cases = [{"image": torch.tensor(row, dtype=torch.float32), "label": int(n)} for row, n in zip(x, y)]
    network = FeatureClassifier(3, 3, ["a", "b", "c"])
    LogisticStart(network, cases, cases, balanced=True).start(Engine(lambda engine, batch: None))
    with torch.no_grad():
        assert (network(torch.tensor(x).float()).argmax(1).numpy() == y).mean() > 0.9


def test_a_booster_changes_nothing_at_the_start():
    torch.manual_seed(0)
    x = torch.rand(4, 30, 1, 1, 1)
    plain = scan_classifier(FeatureClassifier(30, 2), ["a", "b"]).eval()
    boosted = FeatureClassifier(30, 2)
    boosted.load_state_dict(plain.state_dict())
    boosted = scan_classifier(boosted, ["a", "b"], partial(ResidualBooster, block=load_block("embedded"))).eval()
    with torch.no_grad():
        assert torch.equal(boosted(x), plain(x))
    assert len(list(boosted.parameters())) > len(list(plain.parameters()))
    with pytest.raises(ValueError, match="position of a FeatureClassifier"):
        scan_classifier(FeatureClassifier(30, 2), ["a", "b"], boosted.booster, at="deepest")


def test_what_is_wrong_is_named(transformers, encoder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no vision transformer in .*nowhere: give a local folder"):
        SliceFeatures(tmp_path / "nowhere", SHAPE)
    text = save_model(
        tmp_path / "text", "bert", hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        vocab_size=20,
    )  # fmt: skip
    with pytest.raises(ValueError, match="is a bert model, not a 2D vision transformer"):
        SliceFeatures(text, SHAPE)
    pickled = save_model(tmp_path / "pickled", "dinov2", **VISION)
    weights = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights are not read"):
        SliceFeatures(pickled, SHAPE)
    save_file(dict(list(weights.items())[:6]), pickled / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ weights"):
        SliceFeatures(pickled, SHAPE)
    (pickled / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="transformers cannot load"):
        SliceFeatures(pickled, SHAPE)
    with pytest.raises(ValueError, match=r"volumes of shape \[2, 9, 10, 11\] do not fit"):
        UntrainedConvolutions(SHAPE)(torch.zeros(1, 2, 9, 10, 11))
    with pytest.raises(ValueError, match="give four numbers"):
        UntrainedConvolutions((28, 28, 28))
    with pytest.raises(ValueError, match="unknown features 'voxels'"):
        frozen_features("voxels", SHAPE)
    with pytest.raises(ValueError, match=r"convolutions have no weights to load from .*: leave out features_from"):
        frozen_features("convolutions", SHAPE, "x")
    for kind, what in (("slices", "folder of a 2D vision transformer"), ("encoder", "file of the encoder's weights")):
        with pytest.raises(ValueError, match=f"features {kind} need a {what}: give --features_from"):
            frozen_features(kind, SHAPE)
    with pytest.raises(ValueError, match="features encoder need a network"):
        frozen_features("encoder", SHAPE, encoder[1])
    with pytest.raises(TypeError, match="has no head of features"):
        LogisticStart(torch.nn.Linear(2, 2), [], [])
    with pytest.raises(ValueError, match="must be above 0"):
        LogisticStart(FeatureClassifier(2, 2), [], [], strengths=[0.0])
    cases, _, _ = cases_of(10, 0)
    with pytest.raises(ValueError, match=r"no training case is of the class\(es\) \[2\]"):
        LogisticStart(FeatureClassifier(40, 3), cases, cases).start(Engine(lambda engine, batch: None))
    with pytest.raises(NotImplementedError):
        Embedding(SHAPE)(torch.zeros(1, *SHAPE))


def test_the_choice_makes_each_kind(transformers, encoder):
    assert isinstance(frozen_features("convolutions", SHAPE, seed=1), UntrainedConvolutions)
    assert isinstance(frozen_features("slices", SHAPE, transformers["vit"], 1), SliceFeatures)
    assert isinstance(frozen_features("encoder", (1, 32, 32, 32), encoder[1], network=encoder[0]), EncoderFeatures)
