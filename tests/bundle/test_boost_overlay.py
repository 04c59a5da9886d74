# SPDX-License-Identifier: Apache-2.0
"""The overlay `boost` places a booster in the network of any bundle, with MONAI's own command and with ours."""

import json

import pytest
import torch
from conftest import BUNDLE, ROOT
from monai.bundle import run as monai_run
from segmentation_bundle import METADATA, TRAIN, write_segmentation_bundle
from typer.testing import CliRunner

from monai_llmboost.bundle import BundleJob, bundle_path, job_configs, run_bundle
from monai_llmboost.bundle.find import arms_of, overlay_file
from monai_llmboost.command_line.app import app
from monai_llmboost.networks.insertion import BoostedModule

pytestmark = pytest.mark.filterwarnings("ignore")
OVERLAYS = ROOT / "bundles" / "overlays"
JOINT = "model.1.submodule.1.submodule"
KEYS = [f"{JOINT}.booster.{name}" for name in ("signature.code", "encode.weight", "decode.weight")]
KEYS.insert(2, f"{JOINT}.booster.block.signature.code")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of the bundle, trained for an epoch with MONAI's own command line."""
    folder = tmp_path_factory.mktemp("segmentation")
    bundle = write_segmentation_bundle(folder)
    monai(bundle, ["train", OVERLAYS / "boost.json", OVERLAYS / "booster_rates.json"])
    return bundle


def monai(bundle, configs):
    monai_run(
        config_file=[str(bundle / "configs" / f"{one}.json" if isinstance(one, str) else one) for one in configs],
        meta_file=str(bundle / "configs" / "metadata.json"), logging_file=False, bundle_root=str(bundle),
        dataset_dir=str(bundle.parent / "data"),
    )  # fmt: skip


def run(bundle, job, *overlays, **options):
    run_bundle(bundle, job, logging_file=False, overlays=overlays, dataset_dir=str(bundle.parent / "data"), **options)


def boosters(network):
    return [module.booster for module in network.modules() if isinstance(module, BoostedModule)]


def test_it_is_short_and_no_bundle():
    assert len((OVERLAYS / "boost.json").read_text().splitlines()) <= 10
    with pytest.raises(
        FileNotFoundError, match=f"there is no bundle 'overlays': .* one of {BUNDLE}, scans_classification, .*$"
    ):
        bundle_path("overlays")


def test_a_checkpoint_of_a_boosted_network(trained):
    """The trained maps are in it, changed from their start, and the frozen block is not."""
    state = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert [name for name in state if ".booster." in name] == KEYS
    assert state[KEYS[1]].shape == (256, 16)
    assert state[KEYS[3]].abs().sum() > 0, "it starts at zero"
    plain = BundleJob.read(job_configs(trained, "train"), {}).network
    assert {name for name in state if ".booster." not in name} == set(plain.state_dict())


def test_evaluation_and_inference_by_monai(trained):
    monai(trained, ["train", "evaluate", OVERLAYS / "boost.json"])
    assert "val_mean_dice" in (trained / "eval" / "metrics.csv").read_text()
    monai(trained, ["inference", OVERLAYS / "boost.json"])
    assert len(list((trained / "eval").glob("*_trans.nii.gz"))) == 4


def test_jobs_by_our_command(trained):
    run(trained, "evaluate", "boost", "booster_rates.json", arm="pretrained")
    run(trained, "inference", "boost")
    with pytest.raises(RuntimeError, match=r"tiny-english .*, but this network has the block .random"):
        run(trained, "inference", "boost", arm="random")
    with pytest.raises(RuntimeError, match=rf"Unexpected key\(s\) in state_dict: \"{KEYS[0]}\""):
        run(trained, "inference")


@pytest.mark.parametrize(
    ("arm", "block"), [("none", None), ("mlp", "mlp control"), ("random", "random seed 3 like"), ("pretrained", "tiny")]
)
@pytest.mark.parametrize("job", ["train", "inference"])
def test_arms(trained, job, arm, block):
    files = job_configs(trained, job, arm, overlays=["boost"])
    assert [file.name for file in files] == [f"{job}.json", "boost.json", f"{arm}.json"]
    network = BundleJob.read(files, {"block_seed": 3}).network
    assert [booster.block.signature.text.startswith(block) for booster in boosters(network)] == [True] * bool(block)
    if arm in ("random", "pretrained"):
        assert boosters(network)[0].block.layer.down.weight.dtype == torch.float32
        assert boosters(network)[0].block.h_rms > 0


def test_any_module_and_a_block_of_random_weights(trained):
    job = BundleJob.read(job_configs(trained, "train", overlays=["boost"]), {"at": "model.0", "block": "random"})
    (booster,) = boosters(job.network)
    assert (booster.channels, booster.width) == (4, 192)
    assert job.network is job.network_definition


def test_the_rates_of_the_booster(trained):
    job = BundleJob.read(job_configs(trained, "train", overlays=["boost", "booster_rates"]), {})
    groups = job.item("optimizer", "test").param_groups
    assert [round(group["lr"], 6) for group in groups] == pytest.approx([0.01, 0.001, 0.001 * 16 / 256], rel=1e-2)


def test_cost_of_the_arms(trained, tmp_path):
    file = tmp_path / "cost.json"
    words = ["cost", "--bundle", str(trained), "--overlay", "boost", "--rounds", "1", "--json", str(file)]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    cost = json.loads(file.read_text())
    assert (cost["batch_size"], cost["img_size"]) == (2, 16)
    none, mlp, pretrained = (cost["arms"][arm] for arm in ("none", "mlp", "pretrained"))
    assert none["frozen"] == mlp["frozen"] == 0 < pretrained["frozen"]
    assert none["trained"] + 2 * 16 * 256 == mlp["trained"] == pretrained["trained"]
    assert none["forward_flops"] < mlp["forward_flops"] < pretrained["forward_flops"]
    reads = [each["read_out"] for each in (none, mlp, pretrained)]
    assert reads == ["-", "each token for itself", "all tokens are read: F_E folded into queries, keys and values"]


def test_run_by_the_command_line(trained):
    words = [
        "run",
        "evaluate",
        "--bundle",
        str(trained),
        "--overlay",
        "boost",
        "--arm",
        "pretrained",
        "--logging_file",
        "False",
    ]
    done = CliRunner().invoke(app, [*words, "--dataset_dir", str(trained.parent / "data")])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"overlays": ["bost"]}, FileNotFoundError, r"no such overlay, .* \(boost, booster_rates, distil\)"),
        ({"overlays": ["boost"], "arm": "lora"}, ValueError, "unknown arm 'lora'; choose from mlp, none, pre"),
        ({"arm": "mlp"}, ValueError, "unknown arm 'mlp'"),
        ({"overlays": ["boost"], "att": "down"}, ValueError, "no option --att: did you mean --at?"),
        ({"at": "down"}, ValueError, "no option --at"),
        ({"overlays": ["boost"], "at": "pooled"}, ValueError, "this UNet has no pooled joint"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(trained, changes, error, message):
    overlays = changes.pop("overlays", [])
    with pytest.raises(error, match=message):
        run(trained, "train", *overlays, **changes)


def test_an_overlay_of_the_bundle_comes_first(tmp_path):
    bundle = write_segmentation_bundle(tmp_path)
    (bundle / "configs" / "boost.json").write_text('{"epochs": 5}')
    assert overlay_file(bundle, "boost") == bundle / "configs" / "boost.json"
    assert arms_of(bundle, ["boost"]) == []
    assert arms_of(bundle_path(BUNDLE), ["boost"]) == ["mlp", "none", "pretrained", "random"]


def test_the_batch_size_of_any_bundle(tmp_path):
    bundle = write_segmentation_bundle(tmp_path)
    assert "batch_size" not in TRAIN
    assert BundleJob.read(job_configs(bundle, "train"), {}).batch_size == 2
    assert BundleJob.read(job_configs(bundle, "train"), {}).image_shape == (1, 16, 16, 16)
    assert "batch_size" not in METADATA
