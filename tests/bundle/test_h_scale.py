# SPDX-License-Identifier: Apache-2.0
"""The bundle's option for the size of tokens in the block, in every arm that has a block."""

import pytest
from conftest import BUNDLE, SMALL, forget_training

from monai_llmboost.bundle import BundleJob, bundle_path, job_configs
from monai_llmboost.llm import find_h_rms, read_block

pytestmark = [
    # What MONAI, Ignite and torch say of themselves on every normal run (MONAI 1.6.1, torch 2.15).
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
FOLDER = bundle_path(BUNDLE)
ARMS = {"pretrained": "tiny-english", "random": "random seed 0", "lora": "lora of", "pretrained-trained": "trained on"}


def block_of(overlays, **options):
    """The block of the network that training makes with these overlays."""
    files = [*job_configs(FOLDER, "train"), *(FOLDER / "configs" / f"{name}.json" for name in overlays)]
    return BundleJob.read(files, {**SMALL, **options}).network_definition.booster.block


@pytest.mark.parametrize("arm", [None, *ARMS])
def test_every_arm_with_a_block_takes_it(arm):
    overlays = [] if arm is None else [f"arms/{arm}"]
    donor = read_block("embedded")
    donor = donor.random(0) if arm == "random" else donor
    block = block_of(overlays)
    assert block.signature.text.startswith(ARMS.get(arm, "tiny-english"))
    assert block.h_rms == find_h_rms(donor)
    assert block_of(overlays, h_scale=0.5).h_rms == 0.5
    assert block_of(overlays, h_scale="published").h_rms is None


def test_arms_without_a_donor_have_no_size():
    for arm in ("mlp", "none"):
        block_files = [*job_configs(FOLDER, "train"), FOLDER / "configs" / "arms" / f"{arm}.json"]
        network = BundleJob.read(block_files, SMALL).network_definition
        assert not any(hasattr(module, "h_rms") for module in network.modules())


def test_the_published_preset_scales_nothing():
    sizes = {key: value for key, value in SMALL.items() if key != "batch_size"}
    assert block_of(["published/network"], **sizes).h_rms is None


def test_a_checkpoint_of_an_earlier_version_needs_the_word(run_job):
    forget_training(run_job("train", epochs=1, h_scale="published"))
    with pytest.raises(
        ValueError,
        match=r"made with the block 'tiny-english .*tokens of size .*; --h_scale published if its block has no",
    ):
        run_job("evaluate")
    run_job("evaluate", h_scale="published")


def test_a_wrong_word_is_refused(run_job):
    with pytest.raises(ValueError, match="h_scale must be donor, published or a number above 0, not 'doner'"):
        run_job("train", epochs=1, h_scale="doner")
