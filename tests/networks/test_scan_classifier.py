# SPDX-License-Identifier: Apache-2.0
"""scan_classifier: MONAI's networks with class names, pre-trained weights and a booster; the bundle's networks."""

import copy
import io
import json
import logging
from functools import partial

import monai.networks.nets as nets
import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from monai.networks.nets.segresnet_ds import SegResNetDS
from monai.networks.nets.swin_unetr import SwinUNETR
from safetensors.torch import save_file
from test_encoders import segresnet_encoder, swin_encoder
from torch import nn

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.bundle.find import job_configs
from monai_llmboost.bundle.options import Rules, check_options
from monai_llmboost.llm import BlockGeometry, random_block
from monai_llmboost.networks import ResNet3D, ViT3D, boost, load_encoder_weights, scan_classifier
from monai_llmboost.networks.class_names import class_names_of

GEOMETRY = BlockGeometry(width=24, mlp_width=40, num_heads=4, num_kv_heads=2, head_size=8)
NAMES = ["benign", "malignant"]
NETWORKS = ROOT / "bundles" / "scans_classification" / "configs" / "networks"
script_warnings = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning", "ignore:The TorchScript type:UserWarning"
)


def resnet(channels=1, num_classes=2, seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"conv1_t_stride": 2, "bias_downsample": False, **changes}
    return nets.ResNet("basic", [1] * 4, [4, 8, 8, 16], n_input_channels=channels, num_classes=num_classes, **sizes)


def densenet():
    return nets.DenseNet(3, 1, 2, init_features=4, growth_rate=2, block_config=(1, 1))


def resnet3d():
    return ResNet3D(1, 2, img_size=18, hidden_size=8, stem_stride=2)


def vit3d():
    return ViT3D(1, 2, img_size=(8, 8, 16), patch_size=None, hidden_size=8, mlp_dim=8, num_layers=1, num_heads=2)


MAKERS = {
    "resnet": (resnet, (2, 1, 32, 32, 32)),
    "densenet": (densenet, (2, 1, 16, 16, 16)),
    "segresnet": (segresnet_encoder, (2, 1, 16, 16, 16)),
    "swinunetr": (swin_encoder, (2, 1, 32, 32, 32)),
    "resnet3d": (resnet3d, (2, 1, 18, 18, 18)),
    "vit3d": (vit3d, (2, 1, 8, 8, 16)),
}


def booster(channels):
    torch.manual_seed(3)
    return ResidualBooster(channels, random_block(GEOMETRY))


@pytest.mark.parametrize("at", ["pooled", "deepest"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_classifier_starts_as_its_plain_network_and_its_checkpoint_holds_the_texts(name, at):
    make, shape = MAKERS[name]
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    plain = make().eval()
    network = scan_classifier(copy.deepcopy(plain), NAMES, booster, at)
    assert torch.equal(network(x), plain(x))
    assert class_names_of(network) == NAMES
    network.preprocessing.text, network.training_cases.text = "scale", "fold 0"

    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    again = scan_classifier(make().eval(), ["a", "b"], booster, at)
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True), strict=True)
    assert class_names_of(again) == NAMES
    assert (again.preprocessing.text, again.training_cases.text) == ("scale", "fold 0")
    assert torch.equal(again(x), plain(x))

    twin = copy.deepcopy(again)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert torch.equal(again(x), plain(x)), "a copy has weights of its own"
    assert not torch.equal(twin(x), plain(x))


@script_warnings
@pytest.mark.parametrize("name", ["resnet", "densenet", "segresnet"])
def test_a_classifier_can_be_scripted(name):
    make, shape = MAKERS[name]
    x = torch.rand(shape)
    network = scan_classifier(make(), NAMES, booster).eval()
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))


def test_texts_that_a_network_has_stay():
    network = resnet3d()
    network.preprocessing.text = "scale"
    kept = network.preprocessing
    assert scan_classifier(network, NAMES).preprocessing is kept


def test_wrong_numbers_of_classes_and_networks_without_logits_are_refused():
    with pytest.raises(ValueError, match="this ResNet has 3 logits for 2 class names"):
        scan_classifier(resnet(num_classes=3), NAMES)
    with pytest.raises(ValueError, match="this ResNet3D has 2 logits for 3 class names"):
        scan_classifier(resnet3d(), ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"this SegResNetDS returns \[1, 2, 32, 32, 32\].* EncoderClassifier makes"):
        scan_classifier(SegResNetDS(3, 8, 1, 2, blocks_down=(1, 1)), NAMES)
    vit = nets.ViT(1, (32,) * 3, (16,) * 3, 8, 8, 1, 2, classification=True)
    with pytest.raises(ValueError, match=r"this ViT returns tuple for a volume, not logits \(1, 2\)"):
        scan_classifier(vit, NAMES)
    with pytest.raises(TypeError, match="the network is str: give a module"):
        scan_classifier("resnet", NAMES)
    with pytest.raises(ValueError, match="are no list of texts"):
        scan_classifier(resnet(), "ab")


def swin_ssl(feature_size=12):
    """Names as in the self-supervised weights of SwinUNETR: of the transformer, with MLPs of earlier versions."""
    state = swin_encoder(feature_size).encoder.state_dict()
    return {name.replace("mlp.linear", "mlp.fc"): torch.randn_like(value.float()).to(value.dtype)
            for name, value in state.items()}  # fmt: skip


def autoencoder(state):
    """Names as in the disentangled autoencoder's weights, which have one more level."""
    return {f"encoder.{name.replace('.0.', '.0.0.', 1) if name.startswith('layers') else name}": value
            for name, value in state.items()}  # fmt: skip


def unetr_state(seed=5):
    torch.manual_seed(seed)
    return SwinUNETR(1, 3, feature_size=12, depths=(1, 1, 1, 1), window_size=2).state_dict()


SWIN_FILES = {
    "plain": lambda: swin_ssl(),
    "module": lambda: {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in swin_ssl().items()}},
    "norm": lambda: {"state_dict": {**swin_ssl(), "norm.weight": torch.ones(192), "norm.bias": torch.ones(192)}},
    "autoencoder": lambda: {"model": autoencoder(swin_ssl())},
    "swinunetr": lambda: unetr_state(),
    "lightning": lambda: {"state_dict": {f"model.module.{name}": value for name, value in unetr_state().items()}},
}


@pytest.mark.parametrize("kind", SWIN_FILES)
def test_weights_of_a_swin_transformer_load_from_files_of_other_trainings(kind, tmp_path, caplog):
    content = SWIN_FILES[kind]()
    torch.save(content, tmp_path / "swin.pt")
    network = swin_encoder()
    head = network.head.weight.clone()
    with caplog.at_level(logging.INFO, "monai_llmboost"):
        load_encoder_weights(network, tmp_path / "swin.pt")
    state = content.get("state_dict", content.get("model", content))
    theirs = [value for name, value in state.items() if not name.startswith(("norm.", "encoder1", "decoder", "out"))]
    own = list(network.encoder.state_dict().values())
    assert all(torch.equal(value, other) for value, other in zip(own, theirs)), "in the same order"
    assert torch.equal(network.head.weight, head)
    assert f"gives {len(own)} of {len(own) + 4} weights of EncoderClassifier" in caplog.text
    assert "random as before: norm.weight, norm.bias, head.weight and 1 more" in caplog.text
    assert ("not used: " in caplog.text) == (kind in ("norm", "swinunetr", "lightning"))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_a_segmentation_load_into_its_encoder(prefix, tmp_path):
    torch.manual_seed(5)
    whole = SegResNetDS(3, 8, 1, 2, blocks_down=(1, 1, 1))
    save_file({prefix + name: value for name, value in whole.state_dict().items()}, tmp_path / "seg.safetensors")
    network = scan_classifier(segresnet_encoder(), NAMES, booster, weights=tmp_path / "seg.safetensors")
    x = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(network.encoder(x)[-1], whole.eval().encoder(x)[-1])


@pytest.mark.parametrize("channels", [1, 2])
def test_weights_of_one_input_channel_without_head_load(channels, tmp_path, caplog):
    """As MedicalNet's, whose names begin with module."""
    theirs = resnet(seed=7, feed_forward=False).eval()
    state = {f"module.{name}": value for name, value in theirs.state_dict().items() if "batches" not in name}
    torch.save({"state_dict": state}, tmp_path / "resnet.pth")
    with caplog.at_level(logging.INFO, "monai_llmboost"):
        network = scan_classifier(resnet(channels), NAMES, weights=str(tmp_path / "resnet.pth")).eval()
    x = torch.rand(2, 1, 32, 32, 32)
    network.fc = nn.Identity()
    torch.testing.assert_close(network(x.expand(-1, channels, -1, -1, -1)), theirs(x))
    assert "from its module.*" in caplog.text
    assert "random as before: fc.weight, fc.bias" in caplog.text and "not used" not in caplog.text
    assert ("divided among 2 input channels: conv1.weight" in caplog.text) == (channels == 2)


def test_weights_load_into_a_boosted_network_and_from_a_boosted_checkpoint(tmp_path):
    torch.save({"model": scan_classifier(resnet(seed=4), NAMES, booster).state_dict()}, tmp_path / "last.pt")
    plain = load_encoder_weights(resnet(num_classes=3), tmp_path / "last.pt")
    assert torch.equal(plain.layer4[0].conv1.weight, resnet(seed=4).layer4[0].conv1.weight)
    boosted = scan_classifier(resnet(num_classes=3), ["a", "b", "c"], booster)
    kept = [value.clone() for name, value in boosted.state_dict().items() if "avgpool" in name]
    load_encoder_weights(boosted, tmp_path / "last.pt")
    assert torch.equal(boosted.layer4[0].conv1.weight, plain.layer4[0].conv1.weight)
    after = [value for name, value in boosted.state_dict().items() if "avgpool" in name]
    assert kept and all(map(torch.equal, kept, after))
    assert class_names_of(boosted) == ["a", "b", "c"]
    torch.save((other := resnet3d()).state_dict(), tmp_path / "own.pt")
    own = load_encoder_weights(boost(resnet3d(), booster, at="pooled"), tmp_path / "own.pt").eval()
    x = torch.rand(2, 1, 18, 18, 18)
    assert torch.equal(own(x), other.eval()(x))


REFUSED = {
    "other network": (lambda: densenet().state_dict(), r"gives \d+ of the \d+ weights .* too few: the file has "
                      r"features.conv0.weight, .* the network encoder.patch_embed.proj.weight"),
    "other size": (lambda: swin_ssl(24), r"of another size is encoder.patch_embed.proj.weight, "
                   r"\[24, 1, 2, 2, 2\] in the file and \[12, 1, 2, 2, 2\] here; give weights"),
    "two sets": (lambda: {who + name: value for who in ("student.", "teacher.") for name, value in swin_ssl().items()},
                 r"holds 2 sets of weights that fit, student\.\*, teacher\.\*: save the one"),
    "no weights": (lambda: {"epoch": 3, "lr": 0.1}, "holds no weights by their names, but epoch, lr: give"),
    "a list": (lambda: [torch.zeros(2)], "holds no weights by their names, but list: give"),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_files_that_do_not_fit_are_refused_and_change_nothing(why, tmp_path):
    content, match = REFUSED[why]
    torch.save(content(), tmp_path / "weights.pt")
    network = swin_encoder()
    with pytest.raises(ValueError, match=match):
        scan_classifier(network, NAMES, weights=tmp_path / "weights.pt")
    assert all(map(torch.equal, network.state_dict().values(), swin_encoder().state_dict().values()))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match=r"cannot read .*weights.safetensors: .* Copy it again"):
        load_encoder_weights(resnet(), tmp_path / "weights.safetensors")
    torch.save({"network": resnet()}, tmp_path / "network.pt")
    with pytest.raises(ValueError, match="only tensors, numbers and text are read"):
        load_encoder_weights(resnet(), tmp_path / "network.pt")
    with pytest.raises(OSError, match=r"no\.pt"):
        load_encoder_weights(resnet(), tmp_path / "no.pt")


def build(name, image_shape, **options):
    """The plain network of an overlay of the bundle."""
    overlay = json.loads((NETWORKS / f"{name}.json").read_text())
    parser = ConfigParser({"image_shape": image_shape, "class_names": NAMES, **overlay, **options})
    return parser.get_parsed_content("plain_network")


CASES = [
    ("resnet", {"depth": 10}),
    ("resnet", {"depth": 18}),
    ("densenet", {}),
    ("swinunetr-encoder", {"feature_size": 12}),
    ("segresnet-encoder", {"init_filters": 4}),
    ("vit3d", {"hidden_size": 8, "mlp_dim": 8}),
]


def test_each_overlay_has_a_case():
    others = {"features"}  # has tests of its own: its network takes features
    assert {name for name, _ in CASES} | others == {file.stem for file in NETWORKS.glob("*.json")}


def test_the_options_of_the_overlays_are_described_and_checked():
    rules = Rules(NETWORKS.parent)
    for file in NETWORKS.glob("*.json"):
        plain = {key for key, value in json.loads(file.read_text()).items() if isinstance(value, (int, float, str))}
        assert {key for key in plain if "#" not in key} - {"input_shape"} <= rules.declared.keys()
    with pytest.raises(ValueError, match="unknown depth 20; choose from 10, 18, 34, 50"):
        check_options(job_configs(NETWORKS.parents[1], "train", network="resnet"), {"depth": 20})


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_overlays_of_the_bundle_are_classifiers(name, options):
    network = scan_classifier(build(name, [2, 32, 32, 64], **options), NAMES, booster).eval()
    assert network(torch.zeros(1, 2, 32, 32, 64)).shape == (1, 2)


@pytest.mark.parametrize("depth", [10, 18, 34, 50])
def test_the_resnet_of_the_bundle_is_that_of_medicalnet(depth):
    """Its file has the names and sizes of MONAI's network with these arguments."""
    biased, shortcut = nets.resnet.get_medicalnet_pretrained_resnet_args(depth)
    with torch.device("meta"):
        theirs = getattr(nets, f"resnet{depth}")(
            n_input_channels=1, shortcut_type=shortcut, bias_downsample=biased, conv1_t_stride=2, feed_forward=False
        )
        ours = build("resnet", [1, 32, 32, 32], depth=depth)
    own = {name: value.shape for name, value in ours.state_dict().items() if not name.startswith("fc.")}
    assert own == {name: value.shape for name, value in theirs.state_dict().items()}
    assert ours.conv1.stride == theirs.conv1.stride


def test_volumes_that_an_overlay_cannot_take_are_refused():
    with pytest.raises(Exception, match="EncoderClassifier") as failed:
        build("swinunetr-encoder", [1, 80, 96, 96], feature_size=12)
    assert "such as to [96, 96, 96]" in str(failed.value.__cause__)


@pytest.mark.parametrize(
    ("img_size", "patch_size"),
    [((28, 28, 28), (4, 4, 4)), ((96, 128, 5), (12, 16, 1)), ((100, 50, 8), (20, 10, 1))],
)
def test_patches_without_a_given_size_divide_the_volume_into_4_to_8(img_size, patch_size):
    tokens = ViT3D(1, 2, img_size, None, hidden_size=8, mlp_dim=8, num_layers=1, num_heads=2).patch_tokens
    assert tokens.grid == [size // patch for size, patch in zip(img_size, patch_size)]


def test_a_size_without_such_patches_is_refused():
    with pytest.raises(ValueError, match=r"an axis of 97 voxels cannot .* give patch_size, or resize .* to 96 voxels"):
        ViT3D(1, 2, (96, 97, 96), None)


def test_partial_boosters_have_the_channels_of_the_joint():
    network = scan_classifier(resnet(), NAMES, partial(ResidualBooster, block=random_block(GEOMETRY)), "deepest")
    assert network.layer4.booster.channels == 16
