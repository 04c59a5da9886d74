# SPDX-License-Identifier: Apache-2.0
"""Segmentation networks with class names, label values and a booster; stages of the U-Net; its loss."""

from functools import partial

import pytest
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet, SegResNet

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.bundle import BundleJob, bundle_path, job_configs
from monai_llmboost.engines import HeadsLoss
from monai_llmboost.llm import load_block
from monai_llmboost.networks import planned_unet, scan_segmenter
from monai_llmboost.networks.class_names import class_names_of, label_values_of
from monai_llmboost.networks.unet import plan_stages

NAMES, PATCH = ["background", "a", "b"], [1, 16, 24, 16]


def unet(**options):
    return planned_unet(1, 3, PATCH[1:], filters=4, **options)


def booster():
    return partial(ResidualBooster, block=load_block("embedded"))


def test_it_starts_as_the_plain_network_and_keeps_names_and_values():
    torch.manual_seed(0)
    plain = unet().eval()
    x = torch.rand(1, *PATCH)
    before = plain(x)
    network = scan_segmenter(plain, NAMES, [1, 4], PATCH, booster()).eval()
    assert torch.equal(network(x), before)
    other = scan_segmenter(unet(), ["background", "x", "y"], [7, 8], PATCH, booster())
    other.load_state_dict(network.state_dict())
    assert class_names_of(other) == NAMES and label_values_of(other) == [1, 4]
    assert torch.equal(other.eval()(x), before)


@pytest.mark.parametrize(
    ("names", "values", "shape", "message"),
    [
        (NAMES, [1], PATCH, r"1 label values for the structures \['a', 'b'\]: give one for each"),
        (NAMES, [1, 1], PATCH, "the label values .1, 1. are not all different"),
        (NAMES, [1, 0], PATCH, "each label value must be a whole number from 1"),
        (NAMES[:2], [1], PATCH, r"returns \[1, 3, 16, 24, 16\] for a patch .* not logits \[1, 2, 16, 24, 16\]"),
        (NAMES, [1, 2], [1, 15, 24, 16], r"does not accept a patch of shape \[1, 15, 24, 16\]"),
    ],
)
def test_what_does_not_fit_is_refused(names, values, shape, message):
    with pytest.raises(ValueError, match=message):
        scan_segmenter(unet(), names, values, shape)


def test_another_kind_of_network_is_refused():
    with pytest.raises(TypeError, match="the network is list: give a module"):
        scan_segmenter([], NAMES, [1, 2], PATCH)
    with pytest.raises(ValueError, match="not logits"):
        scan_segmenter(torch.nn.Sequential(torch.nn.Conv3d(1, 3, 3)), NAMES, [1, 2], PATCH)


def test_stages_follow_the_patch_and_the_spacing():
    kernels, strides = plan_stages([64, 64, 16], [0.5, 0.5, 2.0])
    assert strides == [[1, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]]
    assert kernels == [[3, 3, 1], [3, 3, 1], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert len(plan_stages([256] * 3, [1, 1, 1])[1]) == 6


@pytest.mark.parametrize("sides", [[8, 8, 8], [12, 12, 12], [7, 9, 11]])
def test_a_patch_that_cannot_be_halved_twice_is_refused(sides):
    with pytest.raises(ValueError, match="the U-Net needs two: give an --image_shape with more voxels"):
        planned_unet(1, 2, sides)


def test_all_heads_count_in_training_and_one_is_returned_else():
    network = unet()
    x, labels = torch.rand(2, *PATCH), torch.randint(0, 3, (2, 1, *PATCH[1:]), dtype=torch.uint8)
    heads = network.train()(x)
    assert heads.shape == (2, 2, 3, *PATCH[1:])
    single = DiceCELoss(softmax=True, to_onehot_y=True)
    expected = single(heads[:, 0], labels) + 0.5 * single(heads[:, 1], labels)
    assert torch.allclose(HeadsLoss(single)(heads, labels), expected)
    assert network.eval()(x).shape == (2, 3, *PATCH[1:])
    assert unet(deep_supervision=False).train()(x).shape == (2, 3, *PATCH[1:])


@pytest.mark.parametrize("network", [None, "segresnet", "swinunetr", "unetr"])
@pytest.mark.parametrize("arm", ["none", "pretrained"])
def test_every_network_of_the_bundle_can_be_made_with_and_without_a_booster(network, arm):
    options = {"class_names": NAMES, "label_values": [1, 2], "image_shape": [2, 32, 64, 32], "filters": 4}
    if network == "swinunetr":
        options |= {"feature_size": 12}
    options = {key: value for key, value in options.items() if key != "filters" or network is None}
    job = BundleJob.read(job_configs(bundle_path("scans_segmentation"), "train", arm, network), options)
    made = job.network_definition.eval()
    with torch.inference_mode():
        assert made(torch.zeros(1, 2, 32, 64, 32)).shape == (1, 3, 32, 64, 32)


def test_a_booster_may_stand_in_the_decoder():
    plain = SegResNet(init_filters=8, in_channels=1, out_channels=3)
    network = scan_segmenter(plain, NAMES, [1, 2], [1, 16, 16, 16], booster(), at="up_layers.0")
    assert network(torch.rand(1, 1, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


# What torch and MONAI's DynUNet report whenever it is scripted.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The TorchScript type system")
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_its_script_computes_the_same_and_its_names_are_those_of_monai(deep_supervision):
    network = scan_segmenter(unet(deep_supervision=deep_supervision), NAMES, [1, 2], PATCH, booster()).eval()
    x = torch.rand(1, *PATCH)
    assert torch.allclose(torch.jit.script(network)(x), network(x), atol=1e-6)
    kernels, strides = plan_stages(PATCH[1:], [1, 1, 1])
    plain = DynUNet(
        3, 1, 3, kernels, strides, strides[1:], [4, 8, 16], deep_supervision=deep_supervision, deep_supr_num=1
    )
    assert unet(deep_supervision=deep_supervision).state_dict().keys() == plain.state_dict().keys()
