# SPDX-License-Identifier: Apache-2.0
"""Programs that use a bundle, each by what it really reads: MONAI Deploy, MONAI Label, the model zoo, exports.

MONAI Deploy App SDK 4.0 and MONAI Label 0.8.5 are not installed: what they do with a bundle is written here in short.
"""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE, SMALL
from ignite.engine import Engine
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, load, onnx_export, run, verify_metadata
from monai.bundle import verify_net_in_out as verify_network
from monai.data import Dataset, MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose, LoadImaged
from torch import nn

from monai_llmboost.bundle import copy_bundle, run_bundle

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
    pytest.mark.filterwarnings("ignore:(parsing|executing).*config:UserWarning"),
    pytest.mark.filterwarnings("ignore:`?torch.jit.:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`?torch.jit.:FutureWarning"),
]
NETWORK = {key: value for key, value in SMALL.items() if key != "batch_size"}
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle as a user deploys it: the options of the training in its configs, weights, one scan in its input."""
    folder = tmp_path_factory.mktemp("deployed") / BUNDLE
    copy_bundle(BUNDLE, folder)
    for name in ("train.json", "inference.json"):
        file = folder / "configs" / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **NETWORK, "block_dtype": "$torch.float32"}))
    torch.manual_seed(0)
    network = parser_of(folder).get_parsed_content("network_def")
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([-1.0, 1.0]))  # the second class, ring
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    (folder / "input").mkdir()
    voxels = np.random.default_rng(0).integers(0, 256, (20, 30, 28), dtype=np.uint8)
    nib.save(nib.Nifti1Image(voxels, AFFINE), folder / "input" / "scan.nii.gz")
    return folder


def parser_of(folder, name="inference.json", meta=True):
    parser = ConfigParser()
    if meta:
        parser.read_meta(str(folder / "configs" / "metadata.json"))
    parser.read_config(str(folder / "configs" / name))
    parser["bundle_root"] = str(folder)
    return parser


@pytest.fixture(scope="module")
def predicted(bundle, tmp_path_factory):
    """The probabilities that our own prediction gives to the scan."""
    out = tmp_path_factory.mktemp("out")
    run_bundle(bundle, "inference", logging_file=False, output_dir=str(out))
    (row,) = json.loads((out / "predictions.json").read_text())["cases"]
    assert row["predicted"] == "ring"
    return row["probabilities"]


# MONAI Deploy: MonaiBundleInferenceOperator.


def sent_by_deploy(value, output):
    """What the operator sends for an output (classes,), by the type that the metadata gives it."""
    if output["type"] in ("series", "tuples"):
        return np.asarray(value)
    if output["type"] == "probabilities":
        return [output["channel_def"][str(int(one))] for one in value.flatten()]
    return value.cpu().numpy()


def deploy(folder):
    """The operator's run on a volume that another operator read: as it is stored, with the affine of its file."""
    parser = parser_of(folder)
    formats = parser["_meta_"]["network_data_format"]
    steps = {name: parser.get_parsed_content(name) for name in ("preprocessing", "postprocessing")}
    before = Compose([one for one in steps["preprocessing"].transforms if "LoadImage" not in type(one).__name__])
    network = parser.get_parsed_content("network")
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True), strict=True)
    volume = np.asarray(nib.load(folder / "input" / "scan.nii.gz").dataobj).astype(np.int16)
    meta = {"affine": AFFINE, "original_affine": AFFINE, "original_channel_dim": "no_channel"}
    image = MetaTensor(torch.from_numpy(volume), meta={**meta, "spatial_shape": np.asarray(volume.shape)})
    with torch.no_grad():
        inputs = before({"image": image})
        (output,) = parser.get_parsed_content("inferer")(inputs=inputs["image"][None], network=network.eval())
        (name,) = formats["outputs"]
        result = steps["postprocessing"]({name: output, **inputs})
    return result[name], formats["outputs"][name]


def test_monai_deploy_gets_the_probabilities(bundle, predicted):
    value, output = deploy(bundle)
    sent = sent_by_deploy(value, output)
    assert sent.tolist() == pytest.approx(predicted, abs=1e-6)
    assert output["channel_def"][str(sent.argmax())] == "ring"


def test_monai_deploy_would_name_a_wrong_class_for_an_output_of_probabilities(bundle):
    """The reason why the metadata describes the network's output, logits, and its probabilities elsewhere."""
    value, output = deploy(bundle)
    assert sent_by_deploy(value, {**output, "type": "probabilities"}) == ["shell", "shell"]
    formats = parser_of(bundle)["_meta_"]["network_data_format"]
    assert formats["outputs"]["pred"]["type"] == "logits"
    assert formats["post_processed_outputs"]["pred"] == {**output, "type": "probabilities", "value_range": [0, 1]}


# MONAI Label: BundleInferTask, as the app monaibundle makes it.


def restored(data):
    """Label's last step, `Restored`: resize the prediction to the grid of the image, if that is known."""
    image = data.get("image")
    meta = image.meta if isinstance(image, MetaTensor) else data.get("image_meta_dict", {})
    size = data["pred"].shape[1:]
    grid = meta.get("spatial_shape", size)[-len(size) :]
    if np.any(np.not_equal(size, grid)):
        raise AssertionError(f"a prediction of {size} would be resized to {grid}")


def label(folder, post_steps=None):
    """The task's run on a file; its configs are read without the metadata."""
    parser = parser_of(folder, meta=False)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert [next(iter(metadata["network_data_format"][key])) for key in ("inputs", "outputs")] == ["image", "pred"]
    names = {
        int(key): name.lower()
        for key, name in metadata["network_data_format"]["outputs"]["pred"]["channel_def"].items()
    }
    assert "classification" in folder.name.lower()  # the kind of task is known by it
    network = parser.get_parsed_content("network_def")
    checkpoint = torch.load(folder / "models" / "model.pt", weights_only=True)
    assert set(checkpoint) == set(network.state_dict())
    network.load_state_dict(checkpoint, strict=False)
    data = {"image": str(folder / "input" / "scan.nii.gz")}
    for step in parser.get_parsed_content("preprocessing").transforms:
        if isinstance(step, LoadImaged):
            step._loader.image_only = False
        data = step(data)
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network.eval())[0]
    for step in post_steps or parser.get_parsed_content("postprocessing").transforms:
        data = step(data)
    restored(data)
    assert data["pred"].array.shape == (len(names),)  # the writer logs the array, which a plain tensor has not
    return {names[index]: float(score) for index, score in enumerate(data["pred"])}


def test_monai_label_gets_a_score_for_each_class(bundle, predicted):
    assert label(bundle) == pytest.approx(dict(zip(("shell", "ring"), predicted)), abs=1e-6)


def test_monai_label_fails_on_a_prediction_that_still_has_an_image(bundle):
    *steps, _ = parser_of(bundle).get_parsed_content("postprocessing").transforms
    with pytest.raises(ValueError, match="broadcast"):
        label(bundle, steps)


# The model zoo, and MONAI's own reading of a bundle.

TYPES = {
    "train": {
        "device": torch.device, "dataset_dir": str, "trainer": Engine, "max_epochs": int, "train_dataset": Dataset,
        "train_inferer": Inferer, "network_def": nn.Module, "train_handlers": list, "train_preprocessing": Compose,
        "evaluator": Engine, "val_interval": int, "val_handlers": list, "val_dataset": Dataset, "val_inferer": Inferer,
        "val_preprocessing": Compose, "val_postprocessing": Compose, "val_key_metric": dict,
    },
    "infer": {
        "device": torch.device, "dataset_dir": str, "dataset": Dataset, "evaluator": Engine, "network_def": nn.Module,
        "inferer": Inferer, "handlers": list, "preprocessing": Compose, "postprocessing": Compose,
    },
}  # fmt: skip
META = {"version": str, "monai_version": str, "pytorch_version": str, "numpy_version": str, "channel_def": dict}


@pytest.mark.parametrize(
    ("kind", "files"),
    [("train", ["train.json"]), ("train", ["train.json", "evaluate.json"]), ("infer", ["inference.json"])],
)
def test_properties_are_there_and_what_monai_says_they_are(bundle, tmp_path, monkeypatch, kind, files):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 24, "val": 12, "test": 12})
    workflow = ConfigWorkflow(
        config_file=[str(bundle / "configs" / name) for name in files],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(bundle),
        output_dir=str(tmp_path),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    wrong = {
        name: type(getattr(workflow, name))
        for name, expected in {**TYPES[kind], **META}.items()
        if not isinstance(getattr(workflow, name), expected)
    }
    assert not wrong


def test_the_name_of_a_data_set_is_no_dataset(bundle, tmp_path):
    """Versions before named the set of the training as `dataset`, where MONAI's properties want the scans."""
    message = "dataset holds the scans, not the name 'phantom': give the data set of the training as --trained_on"
    with pytest.raises(ValueError, match=message):
        run_bundle(bundle, "inference", logging_file=False, output_dir=str(tmp_path), dataset="phantom")
    places = {"config_file": str(bundle / "configs" / "inference.json"), "bundle_root": str(bundle)}
    with pytest.raises(RuntimeError) as error:
        run(meta_file=str(bundle / "configs" / "metadata.json"), logging_file=False, dataset="phantom", **places)
    reasons, one = [], error.value
    while one is not None:
        reasons.append(str(one))
        one = one.__cause__
    assert any(message in reason for reason in reasons)


def test_metadata_fits_its_schema(bundle, real_data):
    verify_metadata(
        meta_file=str(bundle / "configs" / "metadata.json"),
        filepath=str(real_data / "bundle" / "meta_schema_20240725.json"),
    )


def test_the_zoo_finds_its_files(bundle):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    for name in ("LICENSE", "configs/inference.json", "models/model.pt", "docs/README.md", "docs/data_license.txt"):
        assert (bundle / name).is_file()
    names = parser_of(bundle).get_parsed_content("class_names")
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {str(i): n for i, n in enumerate(names)}


@pytest.mark.parametrize("config", ["train.json", "inference.json"])
def test_the_network_fits_the_metadata(bundle, config):
    verify_network(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / config),
        bundle_root=str(bundle),
    )


def test_train_json_alone_makes_the_network(bundle):
    """As `monai.bundle.load` does, which reads no other config."""
    network = load(name=BUNDLE, bundle_dir=str(bundle.parent), source="github", repo="none/none/none")
    assert network.head.bias.tolist() == [-1.0, 1.0]


# Exported networks.

IMAGES = torch.rand(4, 1, 28, 28, 28, generator=torch.Generator().manual_seed(0))
DYNAMIC = {
    "dynamo": True,
    "dynamic_shapes": ({0: "batch"},),
    "input_names": ["image"],
    "output_names": ["pred"],
    "external_data": False,
}


@pytest.fixture(scope="module")
def logits(bundle):
    network = parser_of(bundle).get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    with torch.no_grad():
        return network(IMAGES)


def places(bundle):
    return {
        "net_id": "network_def",
        "ckpt_file": str(bundle / "models" / "model.pt"),
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "config_file": str(bundle / "configs" / "inference.json"),
        "bundle_root": str(bundle),
    }


def test_torchscript_runs_at_any_batch(bundle, logits, tmp_path):
    ckpt_export(filepath=str(tmp_path / "model.ts"), **places(bundle))
    network = torch.jit.load(tmp_path / "model.ts")
    for batch in (1, 4):
        torch.testing.assert_close(network(IMAGES[:batch]), logits[:batch])


def run_onnx(file, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["pred"], {"image": images.numpy()})[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize("way", ["monai", "torch"])
def test_onnx_runs_at_any_batch(bundle, logits, tmp_path, way):
    """The example has two cases: with one, torch takes the size of a batch for a constant."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "model.onnx"
    if way == "monai":
        shape = [2, *IMAGES.shape[1:]]
        onnx_export(
            filepath=str(file), use_trace=True, input_shape=shape, converter_kwargs=dict(DYNAMIC), **places(bundle)
        )
    else:
        network = parser_of(bundle).get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
        torch.onnx.export(network, (IMAGES[:2],), file, **DYNAMIC)
    for batch in (1, 4):
        torch.testing.assert_close(run_onnx(file, IMAGES[:batch]), logits[:batch], atol=1e-5, rtol=0)
