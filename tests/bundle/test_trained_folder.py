# SPDX-License-Identifier: Apache-2.0
"""A trained folder describes itself: model.json, and evaluation, prediction and Python without options."""

import csv
import json
import shutil

import monai
import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, SMALL
from typer.testing import CliRunner

from monai_llmboost.artifacts.digests import file_digest
from monai_llmboost.bundle import BundleJob, copy_bundle, job_configs, job_files, monai_arguments, run_bundle
from monai_llmboost.bundle.trained import TrainedFolder, trained_config
from monai_llmboost.bundle.trained_copy import copy_trained
from monai_llmboost.command_line.app import app
from monai_llmboost.inference import load_network
from monai_llmboost.llm import BlockGeometry, random_layer, write_block

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
    pytest.mark.filterwarnings("ignore:(parsing|executing).*config:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
CASES = "monai_llmboost.data.datasets.phantoms.PHANTOM_CASES"
FEW = {"train": 24, "val": 12, "test": 12}
WORKFLOW = "monai_llmboost.bundle.workflow.TrainedWorkflow"
NETWORK = {**{key: value for key, value in SMALL.items() if key != "batch_size"}, "size": 8, "patch_size": 4}
GEOMETRY = BlockGeometry(width=8, mlp_width=16, num_heads=2, num_kv_heads=2, head_size=4)


@pytest.fixture(autouse=True)
def few_cases(monkeypatch):
    monkeypatch.setattr(CASES, FEW)


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    file = tmp_path_factory.mktemp("block") / "block #1.safetensors"
    write_block(random_layer(GEOMETRY, 1), file)
    return file


def train(folder, arm=None, **options):
    copy_bundle(BUNDLE, folder)
    run_bundle(str(folder), "train", arm, False, epochs=1, batch_size=12, **{**NETWORK, **options})
    return json.loads((folder / "models" / "model.json").read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A bundle in which a plain network was trained; tests change copies of it."""
    folder = tmp_path_factory.mktemp("plain") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CASES, FEW)
        train(folder, "none")
    return folder


@pytest.fixture
def mine(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def scans(tmp_path):
    (tmp_path / "scans").mkdir()
    for number in range(2):
        voxels = np.random.default_rng(number).integers(0, 256, (9, 8, 10), dtype=np.uint8)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "scans" / f"scan-{number}.nii.gz")
    return tmp_path / "scans"


def predict(folder, scans, output, *words):
    places = ["--bundle", str(folder), "--input", str(scans), "--output", str(output), "--no-report"]
    return CliRunner().invoke(app, ["predict", *places, *map(str, words)])


def probabilities(output):
    with (output / "predictions.csv").open(newline="") as file:
        return [(row["case"], row["p_shell"], row["p_ring"]) for row in csv.DictReader(file)]


OF_VIT = ("mlp_dim", "num_layers", "num_heads", "patch_size")
KINDS = {
    "default": (None, {}),
    "none": ("none", {}),
    "resnet": ("none", {"network": "resnet", "size": 12, "stem_stride": 1} | dict.fromkeys(OF_VIT)),
    "another size": ("random", {"size": 9, "patch_size": 3, "residual": "both"}),
    "block file": ("pretrained", {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_without_options_it_is_what_it_is_with_them(kind, scans, block, tmp_path):
    arm, options = KINDS[kind]
    options = {**NETWORK, **options, **({"block": str(block)} if kind == "block file" else {})}
    options = {key: value for key, value in options.items() if value is not None}
    folder = tmp_path / "mine"
    copy_bundle(BUNDLE, folder)
    run_bundle(str(folder), "train", arm, False, epochs=1, batch_size=12, **options)
    record = json.loads((folder / "models" / "model.json").read_text())["_trained_"]
    assert (record["arm"], record["class_names"]) == (arm, ["shell", "ring"])
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    words += ["--arm", arm] if arm else []
    for name, more in (("without", []), ("with", [*words, "--trained_on", "phantom"])):
        result = predict(folder, scans, tmp_path / name, *more)
        assert result.exit_code == 0, result.output
    assert probabilities(tmp_path / "without") == probabilities(tmp_path / "with")
    for name, more in (("eval", {}), ("eval_with", options)):
        run_bundle(str(folder), "evaluate", arm if more else None, False, output_dir=str(tmp_path / name), **more)
    tables = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("eval", "eval_with")]
    assert tables[0] == tables[1]

    loaded = load_network(folder)
    assert loaded.class_names == ["shell", "ring"] and not loaded.network.training
    case, _, ring = probabilities(tmp_path / "without")[0]
    image = loaded.transforms(scans / case)[None]
    by_monai = monai.bundle.load("mine", bundle_dir=tmp_path, workflow_name=WORKFLOW, device="cpu").eval()
    with torch.no_grad():
        logits = loaded.network(image)
        assert torch.equal(logits, by_monai(image))
    assert float(logits.softmax(-1)[0, 1]) == pytest.approx(float(ring), abs=1e-6)

    # A folder of an earlier version needs the options, and takes them.
    (folder / "models" / "model.json").unlink()
    result = predict(folder, scans, tmp_path / "earlier", *words)
    assert result.exit_code == 0, result.output
    assert probabilities(tmp_path / "earlier") == probabilities(tmp_path / "with")
    own = {key: value for key, value in options.items() if key != "batch_size"}
    assert torch.equal(load_network(folder, arm=arm, **own).network(image), logits)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arm", "mlp"], "--arm mlp contradicts .*model.json: its network was trained with --arm none; leave out"),
        (["--network", "resnet"], "--network resnet contradicts .*: its network was trained with no --network; leave"),
        (["--size", "28"], "--size 28 contradicts .*: its network was trained with 8; leave out --size, or give the"),
        (["--patch_size", "$@size // 4"], r"--patch_size '\$@size // 4' contradicts .*was trained with 4"),
        (["--network_def#pool", "mean"], "--network_def#pool 'mean' contradicts .*was trained with its default"),
        (
            ["--trained_on", "adrenalmnist3d"],
            "--trained_on adrenalmnist3d, with the classes normal, hyperplasia, contradicts .*: the network was "
            "trained on phantom, with the classes shell, ring; leave out --trained_on",
        ),
    ],
)
def test_an_option_that_contradicts_the_training_is_refused(mine, scans, tmp_path, words, message):
    result = predict(mine, scans, tmp_path / "out", *words)
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=message):
        raise ValueError(result.output.replace("\n", " "))
    assert job_files(str(mine), "train", "mlp").trained is None, "a training in the same folder is free"


def test_equal_values_in_other_words_are_no_contradiction(mine, scans, tmp_path):
    words = ["--patch_size", "$@size // 2", "--image_shape", "[1, 8, 8, 8]", "--class_names", "['shell', 'ring']"]
    result = predict(mine, scans, tmp_path / "out", *words)
    assert result.exit_code == 0, result.output


def test_an_evaluation_has_the_data_of_the_training(tmp_path):
    folder = tmp_path / "mine"
    record = train(folder, "none", folds=3, fold=1, seed=4)
    data = record["_trained_"]["data"]
    assert {key: data[key] for key in ("dataset", "folds", "fold", "seed")} == {
        "dataset": "phantom", "folds": 3, "fold": 1, "seed": 4
    }  # fmt: skip
    run_bundle(str(folder), "evaluate", None, False, split="val")  # other folds would be refused
    metrics = json.loads((folder / "eval" / "metrics.json").read_text())
    assert (metrics["folds"], metrics["fold"], metrics["split"], metrics["cases"]) == (3, 1, "val", 12)
    assert monai_arguments(str(folder), "evaluate", folds=0)["folds"] == 0
    with pytest.raises(ValueError, match="--dataset vesselmnist3d, with the classes vessel, aneurysm, contradicts"):
        monai_arguments(str(folder), "evaluate", dataset="vesselmnist3d")


def test_another_folder_of_checkpoints_has_its_own_record(mine, tmp_path):
    run_bundle(str(mine), "train", "mlp", False, epochs=1, batch_size=12, ckpt_dir=str(tmp_path / "run"), **NETWORK)
    assert load_network(mine).record["arm"] == "none"
    assert load_network(tmp_path / "run").record["arm"] == "mlp", "the bundle is that of the package"
    files = job_files(str(mine), "evaluate", options={"ckpt_dir": str(tmp_path / "run")})
    assert (files.trained.about["arm"], files.configs[-1]) == ("mlp", tmp_path / "run" / "model.json")
    run_bundle(str(mine), "evaluate", None, False, ckpt_dir=str(tmp_path / "run"), output_dir=str(tmp_path / "eval"))
    assert "random" not in json.loads((tmp_path / "eval" / "metrics.json").read_text())["block"]


def test_a_block_file_may_move(block, scans, tmp_path):
    file = tmp_path / "mine.safetensors"
    shutil.copy(block, file)
    train(tmp_path / "mine", "pretrained", block=str(file))
    file.rename(tmp_path / "moved.safetensors")
    result = predict(tmp_path / "mine", scans, tmp_path / "out")
    assert f"no longer at {file}: give its new place with --block FILE" in result.output.replace("\n", " ")
    result = predict(tmp_path / "mine", scans, tmp_path / "out", "--block", tmp_path / "moved.safetensors")
    assert result.exit_code == 0, result.output
    write_block(random_layer(GEOMETRY, 2), tmp_path / "other.safetensors")
    result = predict(tmp_path / "mine", scans, tmp_path / "out2", "--block", tmp_path / "other.safetensors")
    assert result.exit_code == 2 and "the checkpoint was made with the block" in result.output


def damaged(file, change):
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.write_text("{"), r"expected JSON in .*model\.json, got a mistake at line 1"),
        (lambda file: file.write_text("{}"), "model.json describes no trained network: put back the file"),
        (
            lambda file: damaged(file, lambda record: record["_trained_"].update(format=2)),
            "model.json has the format 2, and this version of monai-llmboost reads 1: install a later version",
        ),
        (
            lambda file: torch.save({}, file.with_name("model.pt")),
            r"model.json does not belong to .*model.pt: .*; put back the two files of one training",
        ),
        (
            lambda file: damaged(file, lambda record: record["_trained_"].update(bundle="Another")),
            "model.json was written by the bundle 'Another', and .* is 'MedMNIST3D",
        ),
    ],
)
def test_a_damaged_or_foreign_record_is_refused(mine, change, message):
    change(mine / "models" / "model.json")
    with pytest.raises(ValueError, match=message):
        run_bundle(str(mine), "evaluate", None, False)


def test_resuming_keeps_the_record_and_a_new_training_sets_it_aside(mine):
    file = mine / "models" / "model.json"
    before = json.loads(file.read_text())
    file.unlink()  # killed before it was written
    run_bundle(str(mine), "train", "none", False, epochs=1, batch_size=12, resume=True, **NETWORK)
    assert json.loads(file.read_text()) == before
    run_bundle(str(mine), "train", "mlp", False, epochs=1, batch_size=12, **NETWORK)
    assert json.loads((mine / "models" / "model.1.json").read_text()) == before
    assert TrainedFolder.read(mine / "models").about["arm"] == "mlp"


def test_monais_own_command_writes_and_reads_it(tmp_path):
    folder = tmp_path / "mine"
    copy_bundle(BUNDLE, folder)
    configs = folder / "configs"
    options = {**NETWORK, "bundle_root": str(folder), "output_dir": str(tmp_path), "logging_file": False}
    monai.bundle.run(
        config_file=[str(configs / "train.json"), str(configs / "arms" / "none.json")],
        epochs=1,
        batch_size=12,
        **options,
    )
    record = TrainedFolder.read(folder / "models")
    assert "arm" not in record.about, "MONAI does not name its files"
    with pytest.raises(ValueError, match=r"--arm mlp contradicts .*was trained with another arm; leave out --arm"):
        job_files(str(folder), "evaluate", "mlp")
    assert job_files(str(folder), "evaluate", "none").trained is not None
    files = [str(configs / "train.json"), str(configs / "evaluate.json"), str(record.file)]
    places = {key: options[key] for key in ("bundle_root", "output_dir", "logging_file")}
    monai.bundle.run(config_file=files, **places)
    own = json.loads((tmp_path / "metrics.json").read_text())
    run_bundle(str(folder), "evaluate", None, False)
    assert json.loads((folder / "eval" / "metrics.json").read_text()) == own


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_llmboost.engines.checkpoints.idist.get_rank", lambda: 1)
    copy_bundle(BUNDLE, tmp_path / "mine")
    run_bundle(str(tmp_path / "mine"), "train", "none", False, epochs=1, batch_size=12, **NETWORK)
    assert not (tmp_path / "mine" / "models").exists()


def test_a_network_that_is_no_text_has_no_record():
    with pytest.raises(ValueError, match=r"network_def is an object of Python \(torch\.nn\.modules\.linear\.Linear\)"):
        trained_config({"network_def": torch.nn.Linear(1, 1)}, [])
    with pytest.raises(ValueError, match="refers to the key 'dataset'"):
        trained_config({"dataset": "phantom", "network_def": {"_target_": "x", "data": "@dataset"}}, [])
    with pytest.raises(ValueError, match="no key 'network_def'"):
        trained_config({}, [])


def test_only_what_the_network_refers_to_is_recorded():
    config = {
        "bundle_root": ".", "device": torch.device("cpu"), "learning_rate": 1, "width": 4, "dataset": "phantom",
        "names": {"_target_": "names_of", "dataset": "@dataset"}, "class_names": "@names", "dtype": torch.bfloat16,
        "network_def": {"_target_": "x", "width": "$@width + 1", "classes": "@class_names", "dtype": "@dtype"},
    }  # fmt: skip
    assert trained_config(config, ["a", "$b"]) == {
        "width": 4,
        "class_names": ["a", "$'\\x24b'"],
        "dtype": "$torch.bfloat16",
        "network_def": config["network_def"],
    }


def test_the_weights_that_a_training_started_from_are_not_recorded():
    """The checkpoint has them, and their file may be gone."""
    network = {"_target_": "x", "weights": "@encoder_weights"}
    config = {"encoder_weights": "mine/encoder.pt", "network_def": network}
    assert trained_config(config, []) == {"encoder_weights": None, "network_def": network}


def test_errors_of_load_network(tmp_path, mine):
    with pytest.raises(FileNotFoundError, match="there is no bundle"):
        load_network(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"model\.pt is not there: train first"):
        load_network(BUNDLE, arm="none")
    damaged(mine / "models" / "model.json", lambda record: record["_trained_"].update(bundle="Another"))
    with pytest.raises(FileNotFoundError, match="trained with the bundle 'Another', which is not in this package"):
        load_network(mine / "models")


def test_a_copy_for_other_tools_has_its_block_and_can_be_moved(scans, block, tmp_path):
    moved = tmp_path / "block.safetensors"
    shutil.copyfile(block, moved)
    train(tmp_path / "mine", "pretrained", block=str(moved))
    (tmp_path / "mine" / "predictions").mkdir()
    result = CliRunner().invoke(app, ["bundle", str(tmp_path / "mine"), "--to", str(tmp_path / "copy"), "--trained"])
    assert result.exit_code == 0, result.output
    assert result.output == f"{tmp_path / 'copy'}: copied with its trained network\n"
    assert not (tmp_path / "copy" / "predictions").exists(), "it could be of patients"
    assert predict(tmp_path / "mine", scans, tmp_path / "before").exit_code == 0
    moved.unlink()
    shutil.move(tmp_path / "copy", tmp_path / "elsewhere")
    config = tmp_path / "elsewhere" / "configs" / "inference.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        monai.bundle.run(
            config_file=str(config), bundle_root="elsewhere", dataset_dir=str(scans), output_dir="after",
            logging_file=False, meta_file=str(config.with_name("metadata.json")),
        )  # fmt: skip
    assert probabilities(tmp_path / "after") == probabilities(tmp_path / "before")
    assert predict(tmp_path / "elsewhere", scans, tmp_path / "again").exit_code == 0
    assert probabilities(tmp_path / "again") == probabilities(tmp_path / "before")
    with pytest.raises(FileNotFoundError, match=r"the block file of the training is no longer at .*: give its new"):
        copy_trained(tmp_path / "mine", tmp_path / "third")


def test_a_copy_for_other_tools_trains_the_same_network(tmp_path):
    """By MONAI's own commands, with train.json alone; each arm has the booster that it has in the bundle."""
    options = {"network": "resnet", "size": 12, "stem_stride": 1} | dict.fromkeys(OF_VIT)
    copy_bundle(BUNDLE, tmp_path / "mine")
    chosen = {key: value for key, value in {**NETWORK, **options, "seed": 3}.items() if value is not None}
    run_bundle(str(tmp_path / "mine"), "train", "none", False, epochs=1, batch_size=12, **chosen)
    copy = tmp_path / "copy"
    copy_trained(tmp_path / "mine", copy)
    x = torch.rand(2, 1, 12, 12, 12)
    weights = copy / "models" / "model.pt"
    with torch.no_grad():
        network = monai.bundle.load(name="copy", bundle_dir=str(tmp_path), device="cpu").eval()
        torch.testing.assert_close(network(x), load_network(copy).network(x))
    train_config = json.loads((copy / "configs" / "train.json").read_text())
    assert (train_config["dataset"], train_config["seed"]) == ("phantom", 3)
    before = file_digest(weights)
    for configs in (["train.json"], ["train.json", "evaluate.json"]):
        monai.bundle.run(
            config_file=[str(copy / "configs" / name) for name in configs], bundle_root=str(copy), epochs=1,
            batch_size=12, logging_file=False, meta_file=str(copy / "configs" / "metadata.json"),
        )  # fmt: skip
    assert file_digest(weights) == before, "the same training again"
    assert json.loads((copy / "eval" / "metrics.json").read_text())["cases"] == FEW["test"]
    kinds = {}
    for arm in ("none", "mlp", "random", "pretrained", "pretrained-trained", "lora"):
        booster, own = (
            BundleJob.read(job_configs(folder, "train", arm, network, ()), {"size": 12, "stem_stride": 1}).booster
            for folder, network in ((copy, None), (tmp_path / "mine", "resnet"))
        )
        kinds[arm] = None if booster is None else (type(booster), type(booster.block), booster.block.signature.text)
        assert kinds[arm] == (None if own is None else (type(own), type(own.block), own.block.signature.text))
    assert len(set(kinds.values())) > 3


def test_what_cannot_be_copied_for_other_tools_is_said(mine, tmp_path):
    with pytest.raises(FileExistsError, match="already exists: give another folder"):
        copy_trained(mine, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no trained network .*: train it first, or leave out --trained"):
        copy_trained(BUNDLE, tmp_path / "copy")
    damaged(mine / "models" / "model.json", lambda record: record["_trained_"].update(class_names=["shell", "%fat"]))
    with pytest.raises(ValueError, match=r"class name '%fat' begins with .* an expression in .*: rename the class"):
        copy_trained(mine, tmp_path / "copy")
    (mine / "models" / "model.pt").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"model\.json does not belong to .*model\.pt"):
        copy_trained(mine, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_a_copy_for_other_tools_has_the_source_of_frozen_features(mine, tmp_path):
    record = json.loads((mine / "models" / "model.json").read_text())
    for source in (tmp_path / "vit", tmp_path / "weights.safetensors"):
        (mine / "models" / "model.json").write_text(json.dumps({**record, "features_from": str(source)}))
        with pytest.raises(FileNotFoundError, match="the frozen features of the training are no longer at"):
            copy_trained(mine, tmp_path / f"of {source.name}")
        inside = source if source.suffix else source / "config.json"
        inside.parent.mkdir(exist_ok=True)
        inside.write_bytes(b"features")
        copy_trained(mine, tmp_path / f"of {source.name}")
        name = f"features/features{source.suffix}"
        config = json.loads((tmp_path / f"of {source.name}" / "configs" / "inference.json").read_text())
        assert config["features_from"] == f"$@bundle_root + '/models/{name}'"
        copied = tmp_path / f"of {source.name}" / "models" / name
        assert (copied if source.suffix else copied / "config.json").read_bytes() == b"features"
