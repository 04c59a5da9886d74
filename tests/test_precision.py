"""One option for the precision, which means the same on every device."""

import json
import logging
from collections import namedtuple
from contextlib import nullcontext
from types import MappingProxyType

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE, SMALL
from monai.data import MetaTensor
from monai.inferers import Inferer

from monai_llmboost.bundle import Option, bundle_path, check_options, copy_bundle, job_configs, merged, run_bundle
from monai_llmboost.bundle.job import BundleJob
from monai_llmboost.bundle.trained_options import EARLIER_BLOCK_DTYPE
from monai_llmboost.bundle.workflow import TrainedWorkflow
from monai_llmboost.engines import AutocastInferer
from monai_llmboost.inference import HalvingInferer, WindowInferer, load_network
from monai_llmboost.precision import INSTRUCTIONS, computes_bfloat16, find_precision
from monai_llmboost.studies.collect import device_and_precision
from monai_llmboost.studies.cost.measure import device_name

BUNDLES = [BUNDLE, "scans_classification", "scans_segmentation"]


@pytest.fixture
def processor(monkeypatch):
    """Set what the machine can do."""

    def set_to(cpu=False, gpu=None, allowed=""):
        monkeypatch.setenv(INSTRUCTIONS, allowed)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": cpu}, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or gpu
        )

    return set_to


@pytest.mark.parametrize(
    ("machine", "device", "expected"),
    [
        ({"cpu": True}, "cpu", torch.bfloat16), ({"cpu": False}, "cpu", torch.float32),
        ({"cpu": True, "gpu": False}, "cpu", torch.bfloat16), ({"cpu": False, "gpu": True}, "cpu", torch.float32),
        ({"gpu": True}, "cuda", torch.bfloat16), ({"cpu": True, "gpu": False}, "cuda:1", torch.float16),
        ({"cpu": True}, "meta", torch.float32),
        ({"cpu": True, "allowed": "avx512_core"}, "cpu", torch.float32),
        ({"cpu": True, "allowed": "AVX512_CORE_AMX"}, "cpu", torch.bfloat16),
    ],
)  # fmt: skip
def test_auto_is_the_fastest_native_one(processor, machine, device, expected, caplog):
    processor(**machine)
    with caplog.at_level(logging.INFO, "monai_llmboost"):
        assert find_precision("auto", device) == expected
    assert f"precision {str(expected).removeprefix('torch.')}, the fastest of this" in caplog.text
    assert computes_bfloat16(torch.device(device).type) == (expected == torch.bfloat16)


def test_auto_is_float32_for_training_on_a_cpu(processor, caplog):
    """Gradients of torch in bfloat16 on a CPU are not always right."""
    processor(cpu=True, gpu=True)
    with caplog.at_level(logging.INFO, "monai_llmboost"):
        assert find_precision("auto", "cpu", training=True) == torch.float32
    assert "precision float32, for training on a CPU; --precision chooses another" in caplog.text
    assert find_precision("auto", "cuda", training=True) == torch.bfloat16
    assert find_precision("bfloat16", "cpu", training=True) == torch.bfloat16
    for bundle in BUNDLES:
        for job, expected in (("train", torch.float32), ("evaluate", torch.float32), ("inference", torch.bfloat16)):
            read = BundleJob.read(job_configs(bundle_path(bundle), job, "none"), {"device": "cpu"})
            assert read.item("compute_dtype", "the test") == expected


def test_what_is_asked_for_is_taken(processor, caplog):
    processor(cpu=True, gpu=True)
    for name in ("float32", "bfloat16"):
        assert find_precision(name, "cpu") == find_precision(name, "cuda") == getattr(torch, name)
    assert find_precision("float16", "cuda") == torch.float16
    assert not caplog.text
    processor(cpu=False)
    assert find_precision("bfloat16", "cpu") == torch.bfloat16
    assert "only emulates bfloat16, which is slow: float32 is faster" in caplog.text


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="float16 needs a GPU: use bfloat16, float32 or auto on a CPU"):
        find_precision("float16", torch.device("cpu"))
    with pytest.raises(ValueError, match="unknown precision 'bf16'; choose from auto, float32, bfloat16, float16"):
        find_precision("bf16")


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_option_of_each_bundle(bundle):
    for job in ("train", "evaluate", "inference"):
        configs = job_configs(bundle_path(bundle), job, "none")
        for name in ("auto", "float32", "bfloat16", "float16"):
            check_options(configs, {Option.PRECISION: name})
        with pytest.raises(ValueError, match="unknown precision 'half'"):
            check_options(configs, {Option.PRECISION: "half"})
        with pytest.raises(ValueError, match=r"no option --amp: it is --precision float32, .* now"):
            check_options(configs, {"amp": True})
        assert Option.AMP not in merged(configs)


class Spy(torch.nn.Module):
    """Multiplies, and remembers in which dtype."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        out = self.linear(x)
        self.seen = out.dtype
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inferer", [None, HalvingInferer()])
def test_only_the_network_is_in_mixed_precision(dtype, inferer):
    network, x = Spy(), torch.rand(5, 4)
    out = AutocastInferer(dtype, inferer)(x, network)
    assert (network.seen, out.dtype) == (dtype, torch.float32)
    assert torch.equal(out, network(x)) == (dtype == torch.float32)
    torch.testing.assert_close(out, network(x), rtol=0, atol=2e-2)
    out.sum().backward()
    assert network.linear.weight.grad.dtype == torch.float32


def test_outputs_of_any_form_are_in_float32():
    def network(x):
        half = x.to(torch.bfloat16)
        return [half, {"more": (half, half.argmax(1))}, None]

    first, named, nothing = AutocastInferer(torch.bfloat16)(MetaTensor(torch.rand(2, 3)), network)
    assert first.dtype == named["more"][0].dtype == torch.float32
    assert (named["more"][1].dtype, nothing) == (torch.int64, None)


def test_cases_that_do_not_fit_are_told():
    class Full(Inferer):
        unfit = MappingProxyType({1: "no memory"})

        def __call__(self, inputs, network):
            return network(inputs)

    assert AutocastInferer(torch.bfloat16, Full()).unfit == {1: "no memory"}
    assert AutocastInferer(torch.bfloat16).unfit == {}


def test_windows_are_summed_in_float32():
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1)
    image = torch.rand(1, 1, 20, 16, 24)
    inferer = WindowInferer([16, 16, 16])
    mixed = AutocastInferer(torch.bfloat16, inferer)(image, network)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, inferer(image, network), rtol=0, atol=5e-3)
    torch.testing.assert_close(mixed.sum(1), torch.ones(1, 20, 16, 24), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bundle", BUNDLES[1:])
def test_a_frozen_block_is_kept_in_the_precision(bundle):
    """Else its weights, which autocast does not keep, would be cast in every forward pass."""
    options = {"image_shape": [1, 32, 32, 32], "class_names": ["a", "b"], "label_values": [1], "device": "cpu"}
    for arm in (None, "random"):
        for name in ("float32", "bfloat16"):
            job = BundleJob.read(job_configs(bundle_path(bundle), "inference", arm), {**options, "precision": name})
            dtypes = {
                str(buffer.dtype) for key, buffer in job.network.named_buffers() if "block" in key and buffer.ndim > 1
            }
            assert dtypes == {f"torch.{name}"}, (arm, name)


def test_a_study_says_its_precision():
    for name, ending in (("bfloat16", ", bfloat16"), ("float32", "")):
        job = BundleJob.read(job_configs(bundle_path(BUNDLE), "train", "none"), {"precision": name, "device": "cpu"})
        assert device_and_precision(job) == f"{device_name(job.device)}{ending}"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("arm", ["none", "mlp", "random", "pretrained", "pretrained-trained", "lora"])
def test_every_arm_in_bfloat16(arm, tmp_path, monkeypatch):
    cases = {"train": 24, "val": 12, "test": 12}
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", cases)
    places = {"ckpt_dir": str(tmp_path / "models"), "logging_file": False, "precision": "bfloat16", "device": "cpu"}
    small = {**SMALL, "batch_size": 12, "warmup_epochs": 0, "epochs": 1, "dataset": "phantom"}
    run_bundle(BUNDLE, "train", arm, output_dir=str(tmp_path / "train"), **small, **places)
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    dtypes = {value.dtype for value in state.values() if torch.is_tensor(value) and value.is_floating_point()}
    assert dtypes == {torch.float32}, "weights are trained and saved in float32"
    run_bundle(BUNDLE, "evaluate", arm, output_dir=str(tmp_path / "test"), **places)
    voxels = np.random.default_rng(0).integers(0, 256, (20, 30, 28), dtype=np.uint8)
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 2.0, 1.0])), tmp_path / "scan.nii.gz")
    probabilities = {}
    for precision in ("bfloat16", "float32"):
        out = tmp_path / precision
        options = {**places, "precision": precision, "dataset_dir": str(tmp_path / "scan.nii.gz"), "saliency": True}
        run_bundle(BUNDLE, "inference", arm, output_dir=str(out), **options)
        (case,) = json.loads((out / "predictions.json").read_text())["cases"]
        assert not case.get("refused") and list(out.rglob("preview.webp"))
        assert json.loads((out / "run.json").read_text())["precision"] == precision
        probabilities[precision] = case["probabilities"]
    assert probabilities["bfloat16"] == pytest.approx(probabilities["float32"], abs=0.02)


Named = namedtuple("Named", ["logits", "loss"])


def test_networks_that_take_and_give_more_than_tensors():
    def network(*, x, factor=2.0):
        return Named((x * factor).to(torch.bfloat16), torch.ones(1, dtype=torch.float64))

    class ByName(Inferer):
        def __call__(self, inputs, network):
            return network(x=inputs)

    out = AutocastInferer(torch.bfloat16, ByName())(torch.ones(2, 3), network)
    assert type(out) is Named
    assert (out.logits.dtype, out.loss.dtype) == (torch.float32, torch.float64)


def test_gpus_are_asked_by_their_number(monkeypatch):
    asked = []

    class At:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            asked.append(torch.device(self.device))

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", At)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: asked[-1].index == 0)
    assert find_precision("auto", "cuda:0") == torch.bfloat16
    assert find_precision("auto", "cuda:1") == torch.float16
    assert asked == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(ValueError, match="float16 needs a GPU: use bfloat16, float32 or auto on the device mps"):
        find_precision("float16", "mps", training=True)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_record_with_the_earlier_default_follows_the_precision(tmp_path, monkeypatch):
    """Version 0.1.0 recorded an expression that gave bfloat16 on a GPU, whatever the precision."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    cases = {"train": 12, "val": 6, "test": 6}
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", cases)
    mine = tmp_path / "mine"
    copy_bundle(BUNDLE, mine)
    small = {**SMALL, "batch_size": 6, "warmup_epochs": 0, "epochs": 1, "dataset": "phantom", "logging_file": False}
    run_bundle(mine, "train", **small)
    file = mine / "models" / "model.json"
    record = json.loads(file.read_text())
    assert record["block_dtype"] == "$@compute_dtype" and "compute_dtype" not in record and "precision" not in record
    file.write_text(json.dumps({**record, "block_dtype": EARLIER_BLOCK_DTYPE}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # the expression gives bfloat16 now

    def dtype_of(network):
        return next(buffer.dtype for name, buffer in network.named_buffers() if name.endswith("down.weight"))

    assert dtype_of(load_network(mine).network) == torch.float32
    assert dtype_of(load_network(mine, precision="bfloat16").network) == torch.bfloat16
    assert dtype_of(load_network(mine, block_dtype="$torch.bfloat16").network) == torch.bfloat16


def test_monais_loader_gives_a_block_in_float32(monkeypatch):
    """There is no autocast around a network of ``monai.bundle.load``."""
    monkeypatch.setattr("monai_llmboost.precision.computes_bfloat16", lambda device=None: True)
    configs = bundle_path(BUNDLE) / "configs"
    for options, expected in (({}, torch.float32), ({"precision": "bfloat16"}, torch.bfloat16)):
        workflow = TrainedWorkflow(
            str(configs / "inference.json"), meta_file=str(configs / "metadata.json"), logging_file=False, **options
        )
        workflow.initialize()
        assert (
            next(b.dtype for name, b in workflow.network_def.named_buffers() if name.endswith("down.weight"))
            == expected
        )
