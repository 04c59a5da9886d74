# SPDX-License-Identifier: Apache-2.0
"""The bundle as its users run it: every arm, from any working directory, resumed, on several processes, on NIfTI."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, PRECISION, ROOT, SMALL, TWO_PROCESSES, forget_training
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow
from processes import run_python, run_two

from monai_llmboost.bundle import bundle_path, check_options, copy_bundle, monai_arguments, root_cause, run_bundle
from monai_llmboost.bundle.trained import TrainedFolder
from monai_llmboost.data import LabelledVolumes
from monai_llmboost.llm import extract_block

CONFIGS = ROOT / "bundles" / BUNDLE / "configs"
pytestmark = [
    # What MONAI, Ignite and torch say of themselves on every normal run (MONAI 1.6.1, torch 2.15).
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]


def rows_of(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def block_file(llama_folder, tmp_path):
    extract_block(llama_folder, tmp_path / "block.safetensors")
    return tmp_path / "block.safetensors"


def write_nifti(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        nibabel.save(nibabel.Nifti1Image(np.asarray(image), np.eye(4)), folder / f"case-{index}.nii.gz")
    return folder


@pytest.mark.parametrize("arm", [None, "none", "mlp", "random", "pretrained", "pretrained-trained"])
def test_each_arm_is_trained_evaluated_and_predicts(run_job, block_file, tmp_path, arm):
    options = {"block": str(block_file)} if arm is not None else {}
    run_job("train", arm, epochs=1, **options)
    folder = run_job("evaluate", arm, **options)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["dataset"], metrics["split"], metrics["cases"]) == ("phantom", "test", 240)
    assert 0 <= metrics["auc"] <= 1
    blocks = {
        None: "tiny-english layer 5 (",
        "none": "none",
        "mlp": "mlp control",
        "random": "random seed 0 like tiny-llama",
        "pretrained-trained": "trained on from tiny-llama layer 2 (",
    }
    assert metrics["block"].startswith(blocks.get(arm, "tiny-llama layer 2 ("))
    table = rows_of(folder)
    assert len(table) == 240
    right = sum(row["predicted"] == row["label"] for row in table)
    assert right / 240 == pytest.approx(metrics["acc"])

    test = LabelledVolumes("phantom", "test")
    nifti = write_nifti(tmp_path / "nifti", [item["image"][0] for item in test.data[:5]])
    out = run_job("inference", arm, dataset_dir=str(nifti), output_dir=str(tmp_path / "asked"), batch_size=2, **options)
    for asked, judged in zip(rows_of(out), table):
        assert asked["refused"] == ""
        for name in ("p_shell", "p_ring"):
            assert float(asked[name]) == pytest.approx(float(judged[name]), abs=PRECISION), "as from the array"


def test_a_checkpoint_is_small_and_holds_no_block(run_job, block_file):
    folder = run_job("train", "pretrained", epochs=1, block=str(block_file))
    for name in ("model.pt", "last.pt"):
        state = torch.load(folder / name, weights_only=True)
        names = state if name == "model.pt" else state["model"]
        assert not any("layer.query" in key for key in names)
        assert "booster.block.signature.code" in names


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("random", "made with the block 'tiny-llama layer 2"),
        ("none", r"only the file has \d weights \(booster.block.signature.code, booster.decode.weight"),
    ],
)
def test_a_checkpoint_of_another_arm_is_refused(run_job, block_file, other, message):
    forget_training(run_job("train", "pretrained", epochs=1, block=str(block_file)))
    with pytest.raises(ValueError, match=message):
        run_job("evaluate", other, block=str(block_file))


def trained(folder, epochs, stop_after=None, configs=("train.json",), **options):
    """Train through ConfigWorkflow, stopped from outside after an epoch if asked to."""
    options = {
        **SMALL,
        "batch_size": 20,
        "ckpt_dir": str(folder),
        "output_dir": str(folder),
        "epochs": epochs,
        **options,
    }
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in configs],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        **options,
    )
    workflow.initialize()
    if stop_after:
        trainer = workflow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop_after), trainer.terminate)
    workflow.run()
    return {name: torch.load(folder / name, weights_only=True) for name in ("model.pt", "last.pt")}


# MONAI's own loader and transforms of single items.
ITEM_LOADER = {
    "_target_": "monai.data.DataLoader",
    "dataset": "@train#dataset",
    "batch_size": "@batch_size",
    "shuffle": True,
    "num_workers": 1,
}
ITEM_TRANSFORM = {
    "_target_": "Compose",
    "transforms": [
        {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
        {"_target_": "RandAffined", "keys": "image", "prob": 0.5, "rotate_range": [0.2, 0.2, 0.2]},
    ],
}


@pytest.fixture
def few_phantoms(monkeypatch):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 80, "val": 20, "test": 20})


@pytest.mark.usefixtures("few_phantoms")
@pytest.mark.parametrize("loader", ["of batches", "of items"])
def test_resumed_equals_uninterrupted(tmp_path, loader):
    dropout = {"network_def#dropout_rate": 0.2, "seed": 3}
    if loader == "of items":  # as a user would put MONAI's own in its place
        dropout["train#dataloader"] = ITEM_LOADER
        dropout["train#dataset#transform"] = ITEM_TRANSFORM
    whole = trained(tmp_path / "whole", 4, **dropout)
    trained(tmp_path / "parts", 4, stop_after=2, **dropout)
    assert torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["progress"]["epoch"] == 2
    parts = trained(tmp_path / "parts", 4, resume=True, **dropout)
    assert whole["last.pt"]["best"] == parts["last.pt"]["best"]
    for name, state in (("model.pt", whole["model.pt"]), ("last.pt", whole["last.pt"]["model"])):
        other = parts[name] if name == "model.pt" else parts[name]["model"]
        assert all(torch.equal(value, other[key]) for key, value in state.items())
    assert str(whole["last.pt"]["optimizer"]) == str(parts["last.pt"]["optimizer"])
    assert whole["last.pt"]["lr_scheduler"] == parts["last.pt"]["lr_scheduler"]


@pytest.mark.usefixtures("few_phantoms")
@pytest.mark.parametrize("network", [None, "resnet"])
def test_averaged_weights_resume_exactly(tmp_path, network):
    others = () if network is None else (f"networks/{network}.json",)
    strong = {"configs": ("train.json", *others, "arms/none.json", "strong/training.json"), "warmup_epochs": 1}
    whole = trained(tmp_path / "whole", 4, **strong)
    trained(tmp_path / "parts", 4, stop_after=2, **strong)
    parts = trained(tmp_path / "parts", 4, resume=True, **strong)
    for name in ("model", "trained"):
        state, other = whole["last.pt"][name], parts["last.pt"][name]
        assert all(torch.equal(value, other[key]) for key, value in state.items())
    assert not torch.equal(whole["last.pt"]["model"]["head.weight"], whole["last.pt"]["trained"]["head.weight"])
    assert whole["last.pt"]["best"] == parts["last.pt"]["best"]
    averaged, trained_ = whole["last.pt"]["model"], whole["last.pt"]["trained"]
    statistics = [name for name in averaged if "running" in name]
    assert bool(statistics) == (network is not None)
    for name in statistics:
        assert torch.equal(averaged[name], trained_[name])
        assert averaged[name].unique().numel() > 1, "not as they were initialized"


@pytest.mark.usefixtures("few_phantoms")
def test_a_finished_run_resumes_to_nothing_and_takes_no_other_options(tmp_path):
    trained(tmp_path, 2)
    before = (tmp_path / "last.pt").read_bytes()
    trained(tmp_path, 2, resume=True)
    assert (tmp_path / "last.pt").read_bytes() == before
    for change in ({"batch_size": 40}, {"learning_rate": 0.5}, {"seed": 7}, {"dataset": "adrenalmnist3d"}):
        (name, _), *_ = change.items()
        with pytest.raises(RuntimeError) as error:
            trained(tmp_path, 2, resume=True, **change)
        assert f"was begun with {name} " in str(root_cause(error.value)) or "npz is not in" in str(
            root_cause(error.value)
        )
    with pytest.raises(RuntimeError) as error:
        trained(tmp_path, 3, resume=True)
    assert "was begun with epochs 2, this one has 3" in str(root_cause(error.value))
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.usefixtures("few_phantoms")
def test_a_run_is_resumed_with_the_config_that_it_was_begun_with(tmp_path):
    trained(tmp_path, 2, stop_after=1)
    for name, value, kept in (
        ("block_dtype", "$torch.bfloat16", "$@compute_dtype"),
        ("network_def#dropout_rate", 0.3, "None"),
        ("loss#label_smoothing", 0.1, "None"),
        ("patience", 3, "10"),
        ("optimizer#betas", [0.5, 0.9], "None"),
    ):
        with pytest.raises(RuntimeError) as error:
            trained(tmp_path, 2, resume=True, **{name: value})
        told = str(root_cause(error.value))
        assert re.search(rf"was begun with {name}(#0)? '?{re.escape(kept)}", told), told
    free = {"dataset_dir": "~/.medmnist", "output_dir": str(tmp_path / "elsewhere"), "device": "$torch.device('cpu')"}
    assert trained(tmp_path, 2, resume=True, **free)["last.pt"]["progress"]["epoch"] == 2


@pytest.mark.usefixtures("few_phantoms")
@pytest.mark.parametrize("config", [None, {"hidden_size": 16, "train#handlers#4#patience": 10, "gone": 1}])
def test_a_run_of_an_earlier_version_resumes_with_its_options(tmp_path, config):
    """Version 0.1.0 kept no config, or one whose handlers and transforms were known by their places in lists."""
    state = trained(tmp_path, 2, stop_after=1)["last.pt"]
    assert state.pop("run_config")["patience"] == 10
    assert state.pop("run_objects") == {}
    torch.save(state if config is None else {**state, "config": config}, tmp_path / "last.pt")
    if config is not None:
        with pytest.raises(RuntimeError) as error:
            trained(tmp_path, 2, resume=True, hidden_size=32)
        assert "was begun with hidden_size 16, this one has 32" in str(root_cause(error.value))
    assert trained(tmp_path, 2, resume=True, patience=3)["last.pt"]["run_config"]["patience"] == 3


@pytest.mark.usefixtures("few_phantoms")
def test_a_run_with_an_object_of_python_is_not_resumed(tmp_path):
    trained(tmp_path, 2, stop_after=1)
    with pytest.raises(RuntimeError) as error:
        trained(tmp_path, 2, resume=True, loss=torch.nn.CrossEntropyLoss())
    assert re.search(
        r"cannot be resumed, for loss is an object of Python \(CrossEntropyLoss\)", str(root_cause(error.value))
    )


@pytest.mark.usefixtures("few_phantoms")
def test_a_run_with_handlers_in_another_order_is_not_resumed(tmp_path):
    trained(tmp_path, 2, stop_after=1)
    handlers = json.loads((CONFIGS / "train.json").read_text())["train_handlers"]
    moved = {"seeds": handlers.pop("seeds"), **handlers}
    with pytest.raises(RuntimeError) as error:
        trained(tmp_path, 2, resume=True, train_handlers=moved)
    assert "with the entries of train_handlers in another order: resume" in str(root_cause(error.value))


@pytest.mark.usefixtures("few_phantoms")
def test_last_weights_and_other_splits_are_judged_on_request(tmp_path):
    options = {**SMALL, "ckpt_dir": str(tmp_path / "run"), "logging_file": False}
    run_bundle(BUNDLE, "train", "none", epochs=6, learning_rate=0.1, output_dir=str(tmp_path / "run"), **options)
    judged = {}
    for weights in ("best", "last"):
        run_bundle(
            BUNDLE, "evaluate", "none", weights=weights, split="val", output_dir=str(tmp_path / weights), **options
        )
        judged[weights] = json.loads((tmp_path / weights / "metrics.json").read_text())
        assert (judged[weights]["split"], judged[weights]["cases"]) == ("val", 20)
    best = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["best"]
    assert judged["best"]["auc"] == pytest.approx(best["value"])
    assert best["epoch"] < 6
    assert rows_of(tmp_path / "best") != rows_of(tmp_path / "last")
    with pytest.raises(ValueError, match="unknown weights 'worst'; choose from best, last"):
        run_bundle(BUNDLE, "evaluate", "none", weights="worst", **options)


@pytest.mark.usefixtures("few_phantoms")
def test_weights_are_not_evaluated_on_the_cases_that_they_were_trained_on(run_job, tmp_path):
    fold = {"folds": 4, "fold": 0, "seed": 5}
    run_job("train", "none", epochs=1, **fold)

    def evaluated(**options):
        return json.loads((run_job("evaluate", "none", **options) / "metrics.json").read_text())

    metrics = evaluated(split="val", **fold)
    assert (metrics["cases"], metrics["folds"], metrics["fold"]) == (25, 4, 0)
    assert evaluated()["cases"] == 20, "the test split is of no fold"
    for change in ({"folds": 0, "fold": 0}, {"fold": 1}, {"seed": 6}, {"folds": 5}):
        message = (
            r"trained on phantom, fold 0 of 4 by seed 5, so maybe on cases of the split val of .*: give the --folds"
        )
        with pytest.raises(ValueError, match=message):
            evaluated(split="val", **{**fold, **change})
    run_job("train", "none", epochs=1)
    assert evaluated(split="val")["cases"] == 20
    with pytest.raises(
        ValueError, match=r"trained on phantom, official splits, so maybe on cases .* of phantom, fold 0 of 4 by seed 5"
    ):
        evaluated(split="val", **fold)
    state = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    torch.save({name: value for name, value in state.items() if "training_cases" not in name},
               tmp_path / "run" / "model.pt")  # fmt: skip
    forget_training(tmp_path / "run")
    assert evaluated(split="val", **fold)["cases"] == 25, "as an earlier version wrote it"


@pytest.mark.usefixtures("few_phantoms")
def test_validation_every_other_epoch(tmp_path):
    assert trained(tmp_path, 3, val_interval=2)["last.pt"]["best"]["epoch"] == 2


@pytest.mark.usefixtures("few_phantoms")
def test_seeds_matter_and_repeat(tmp_path):
    first, again, other = (
        trained(tmp_path / name, 1, seed=seed)["last.pt"]["model"]["head.weight"]
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def monai_run(*words, cwd, start=run_python, variables=(), **options):
    """A command of a user, in a process of its own, or in two."""
    flags = [part for key, value in {**SMALL, **options}.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", *words, *flags]
    ended = start(command, cwd=cwd, env={**os.environ, **dict(variables)})
    for done in [ended] if start is run_python else ended:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def files(*names):
    return ["--config_file", str([str(CONFIGS / name) for name in names])]


def test_two_processes_train_and_evaluate_as_one(tmp_path):
    """Gradients are averaged over both; each test case is counted once, though 240 + 1 would be padded."""
    places = {"ckpt_dir": tmp_path, "output_dir": tmp_path, "bundle_root": CONFIGS.parent, "variables": TWO_PROCESSES}
    monai_run(*files("train.json", "multi_gpu_train.json"), cwd="/", start=run_two, epochs=1, **places)
    assert TrainedFolder.read(tmp_path).class_names == ["shell", "ring"], "written once, with the digest of model.pt"
    overlays = files("train.json", "evaluate.json", "multi_gpu_evaluate.json")
    monai_run(*overlays, cwd="/", start=run_two, **places)
    two = json.loads((tmp_path / "metrics.json").read_text())
    table = rows_of(tmp_path)
    assert (two["cases"], len(table), len({row["case"] for row in table})) == (240, 240, 240)
    monai_run(*files("train.json", "evaluate.json"), cwd="/", **{**places, "output_dir": tmp_path / "one"})
    one = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert one == two, "to the last digit, intervals too"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # mlflow's own use of its database
def test_tracking_with_mlflow(tmp_path):
    pytest.importorskip("mlflow", reason="the optional extra `mlflow` is not installed")
    monai_run(
        *files("train.json"), "--tracking", "mlflow", "--tracking_uri", f"sqlite:///{tmp_path}/runs.db",
        cwd=tmp_path, epochs=1, bundle_root=CONFIGS.parent, ckpt_dir=tmp_path, output_dir=tmp_path,
    )  # fmt: skip
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/runs.db")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {"val_auc", "train_loss"} <= set(run.data.metrics)


def test_tensorboard_has_the_curves(run_job):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run_job("train", epochs=2)
    tags = {}
    for file in folder.glob("events.*"):
        events = EventAccumulator(str(file)).Reload()
        tags |= {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert tags["val_auc"] == [1, 2]
    assert "train_loss" in tags


def test_a_damaged_checkpoint(run_job):
    path = run_job("train", epochs=1) / "model.pt"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"model\.json does not belong to .*model\.pt: .* replaced or damaged"):
        run_job("evaluate")
    forget_training(path.parent)
    with pytest.raises(
        ValueError, match=r"^cannot read .*model\.pt: it is cut short, .*\. Copy it again, or train again$"
    ):
        run_job("evaluate")


def test_a_bundle_of_ones_own_keeps_its_files(tmp_path):
    copy_bundle(BUNDLE, tmp_path / "mine")
    run_bundle(tmp_path / "mine", "train", "none", logging_file=False, epochs=1, **SMALL)
    assert (tmp_path / "mine" / "models" / "model.pt").is_file()
    assert list((tmp_path / "mine" / "eval").glob("events.*"))


def test_inference_keeps_bad_cases_apart(run_job, tmp_path):
    run_job("train", epochs=1)
    nifti = write_nifti(tmp_path / "nifti", np.random.default_rng(0).integers(0, 256, (3, 20, 30, 28), dtype=np.uint8))
    (nifti / "broken.nii.gz").write_bytes((nifti / "case-0.nii.gz").read_bytes()[:1000])
    table = rows_of(run_job("inference", dataset_dir=str(nifti), output_dir=str(tmp_path / "out")))
    assert [row["case"] for row in table] == ["broken.nii.gz", *(f"case-{i}.nii.gz" for i in range(3))]
    assert table[0]["refused"] and not table[0]["predicted"]
    assert all(row["predicted"] in ("shell", "ring") and not row["refused"] for row in table[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": "both"}, "the residual 'outer', but"),
        ({"num_heads": 4}, "2 heads, pool cls', but this network has"),
        ({"hidden_size": 32}, "of another size are"),
    ],
)
def test_options_that_the_shapes_do_not_tell_are_compared(run_job, options, message):
    folder = run_job("train", epochs=1)
    with pytest.raises(ValueError, match=r"contradicts .*model\.json: its network was trained with"):
        run_job("evaluate", **options)
    forget_training(folder)
    with pytest.raises(ValueError, match=message):
        run_job("evaluate", **options)


def test_names_come_from_the_checkpoint(run_job, tmp_path):
    """Two classes here, two there: the table must not call a ring a hyperplasia because of an option."""
    forget_training(run_job("train", epochs=1))
    nifti = write_nifti(tmp_path / "nifti", np.random.default_rng(0).integers(0, 256, (1, 28, 28, 28), dtype=np.uint8))
    (row,) = rows_of(run_job("inference", dataset_dir=str(nifti), trained_on="adrenalmnist3d"))
    assert "p_ring" in row and "p_hyperplasia" not in row


@pytest.mark.parametrize(
    ("job", "arm", "options", "message"),
    [
        ("train", None, {"epoch": 1}, "no option --epoch: did you mean --epochs?"),
        ("train", None, {"network_dev#patch_size": 4}, "did you mean --network_def?"),
        ("train", None, {"zzz": 1}, "no option --zzz; it has "),
        ("training", None, {}, "unknown job 'training'; choose from train, evaluate, inference; did you mean train?"),
        (
            "train",
            "some",
            {},
            "unknown arm 'some'; choose from lora, mlp, none, pretrained, pretrained-trained, random",
        ),
        ("train", None, {"dataset": "liver"}, "unknown dataset 'liver'; choose from phantom"),
        ("train", "pretrained", {"block": "random"}, "no block file at random: give --block FILE"),
        ("train", None, {"patch_size": 5}, "is no multiple of patch_size"),
        (
            "train",
            None,
            {"dataset": "adrenalmnist3d", "dataset_dir": "/nothing"},
            "adrenalmnist3d.npz is not in /nothing",
        ),
        ("train", None, {"residual": "outside"}, "unknown residual 'outside'; choose from inner"),
        ("train", None, {"resume": True}, "nothing to resume"),
        ("train", None, {"resume": "false"}, "resume must be True or False, not 'false'"),
        ("train", None, {"download": "true"}, "download must be True or False, not 'true'"),
        ("train", None, {"patience": -1}, "patience must be a whole number from 0, not -1"),
        ("train", None, {"epochs": 0}, "epochs must be a whole number from 1, not 0: correct --epochs"),
        ("train", None, {"epochs": "two"}, "epochs must be a whole number from 1, not 'two'"),
        ("train", None, {"epochs": 1.5}, "epochs must be a whole number from 1, not 1.5"),
        ("train", None, {"batch_size": True}, "batch_size must be a whole number from 1, not True"),
        (
            "train",
            None,
            {"learning_rate": -1},
            "learning_rate must be a number above 0, not -1: correct --learning_rate",
        ),
        ("train", None, {"weight_decay": float("nan")}, "weight_decay must be a number from 0, not nan"),
        ("train", None, {"size": "two"}, "size must be a whole number from 1, not 'two'"),
        (
            "train",
            "none",
            {"booster#gate": True},
            "changes nothing in train.json, none.json: booster must be an object for booster#gate, not missing",
        ),
        (
            "train",
            "mlp",
            {"booster#block#seed": 1},
            "booster#block must be an object for booster#block#seed, not missing",
        ),
        (
            "train",
            "random",
            {"booster::block::seed": 1},
            "--booster::block::seed changes nothing in .*: booster#block must be an object .*, not '@frozen_block'",
        ),
        ("train", "mlp", {"booster#block": "x"}, "arguments that mlp_booster takes, got 'block': leave it out"),
        ("train", None, {"network_def#pol": "cls"}, "expected arguments that ViT3D takes, got 'pol'"),
        ("evaluate", None, {}, "model.pt is not there: train first, or give the --ckpt_dir"),
        ("inference", None, {"dataset_dir": "/nothing"}, "no NIfTI or DICOM scans"),
    ],
)
def test_a_mistake_is_one_sentence(run_job, job, arm, options, message):
    with pytest.raises((ValueError, OSError, TypeError), match=message.replace("?", r"\?").replace("(", r"\(")):
        run_job(job, arm, **options)


@pytest.mark.parametrize(
    ("arm", "options"),
    [
        ("none", {"epochs": "$2 + 1", "seed": np.int64(3), "learning_rate": np.float32(0.1), "weight_decay": 0}),
        ("none", {"epochs": None, "size": "@patch_size", "booster": {"_target_": "x"}, "booster#gate": True}),
        ("pretrained-trained", {"booster#block#seed": 1, "network_def#pool": "mean", "train_handlers#seeds#new": 1}),
    ],
)
def test_options_that_are_right_pass(arm, options):
    arguments = monai_arguments(BUNDLE, "train", arm, overlays=["strong/training.json"], **options)
    assert {key: arguments[key] for key in options} == options


def test_options_are_checked_by_all_configs_together(tmp_path):
    """Overlays may add to what lies below (with a +), and write :: for #."""
    (tmp_path / "base.json").write_text('{"train": {"handlers": [{"a": 1}], "step": {"b": 2}}}')
    (tmp_path / "overlay.json").write_text('{"+train::handlers": [{"c": 3}], "+train#step": {"d": {"e": 4}}}')
    configs = [tmp_path / "base.json", tmp_path / "overlay.json"]
    check_options(configs, {"train#step#d#e": 6, "train#step#b": 7, "train#handlers": []})
    with pytest.raises(
        ValueError, match=r"changes nothing in base\.json, overlay\.json: train#step#c must be an object"
    ):
        check_options(configs, {"train#step#c#e": 6})
    for key in ("train#handlers#1#c", "train#handlers#2", "train::handlers::0::new"):
        with pytest.raises(
            ValueError, match=r"is an entry of a list by its position, .*: give train#handlers as a whole"
        ):
            check_options(configs, {key: 5})
    for key in ("train#step#d#e", "train#step#b"):
        with pytest.raises(ValueError, match=f"{key} must be a number, not 'x'"):
            check_options(configs, {key: "x"})


@pytest.mark.parametrize("name", ["train.json", "arms/none.json", "metadata.json"])
def test_broken_json_is_told_with_its_place(tmp_path, name):
    copy_bundle(BUNDLE, tmp_path / "mine")
    file = tmp_path / "mine" / "configs" / name
    file.write_text('{\n    "one": 1\n    "two": 2\n}\n')
    with pytest.raises(ValueError, match=rf"expected JSON in {file}, got a mistake at line 3, column 5 \(Expecting"):
        run_bundle(tmp_path / "mine", "train", "none")


def test_bundles_are_found_and_copied(tmp_path):
    assert bundle_path(BUNDLE).name == BUNDLE
    copy_bundle(BUNDLE, tmp_path / "mine")
    assert bundle_path(tmp_path / "mine") == tmp_path / "mine"
    assert sorted(file.stem for file in (tmp_path / "mine" / "configs" / "arms").iterdir()) == [
        "lora",
        "mlp",
        "none",
        "pretrained",
        "pretrained-trained",
        "random",
    ]
    with pytest.raises(FileExistsError, match="already exists"):
        copy_bundle(BUNDLE, tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match=f"there is no bundle 'mine': .*{BUNDLE}"):
        bundle_path("mine")


def test_a_misspelt_option_costs_no_time():
    """The list of options is read from the configs alone, before MONAI and torch are imported."""
    code = f"from monai_llmboost.bundle import run_bundle; run_bundle({BUNDLE!r}, 'train', epoch=1)"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
    assert "did you mean --epochs?" in done.stderr
    assert "| torch" not in done.stderr.replace("|   ", "| ")


def test_real_files_through_the_bundle(run_job, real_data, tiny_llm_folder, tmp_path):
    block = tmp_path / "block.safetensors"
    extract_block(tiny_llm_folder, block)
    options = {
        "dataset": "vesselmnist3d",
        "dataset_dir": str(real_data / "medmnist"),
        "block": str(block),
        "batch_size": 256,
    }
    run_job("train", "pretrained", epochs=1, **options)
    folder = run_job("evaluate", "pretrained", **options)
    assert json.loads((folder / "metrics.json").read_text())["cases"] == 382
    assert Path(folder / "predictions.csv").read_text().count("aneurysm") >= 43


def test_the_published_network_has_the_published_size():
    """34,170,243 parameters for 3 classes and 3 equal channels; we keep one channel of them, 3 x 64 voxels to 64."""

    parser = ConfigParser()
    parser.read_config(
        [
            str(CONFIGS / name)
            for name in ("train.json", "published/network.json", "published/training.json", "arms/none.json")
        ]
    )
    parser["dataset"] = "fracturemnist3d"
    network = parser.get_parsed_content("network_def")
    fewer = (3 - 1) * 64 * (1024 + 2)
    assert sum(parameter.numel() for parameter in network.parameters()) == 34_170_243 - fewer
    optimizer = parser.get_parsed_content("optimizer")
    assert (type(optimizer).__name__, optimizer.defaults["lr"]) == ("Adam", 1e-5)
    assert len(parser.get_parsed_content("train#preprocessing").transforms) == 2, "no augmentation"


@pytest.mark.parametrize(
    ("config", "postprocessing"), [("train", "validate#postprocessing"), ("inference", "postprocessing")]
)
def test_probabilities_are_not_rounded_under_mixed_precision(config, postprocessing):
    """MONAI's softmax gives the type of its input back: in bfloat16 cases would tie, which an AUC notices."""

    parser = ConfigParser()
    parser.read_config(str(CONFIGS / f"{config}.json"))
    transform = parser.get_parsed_content(postprocessing)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = logits.float().softmax(dim=1)
    assert torch.equal(transform({"pred": logits})["pred"].as_tensor(), expected), "of a whole batch"
    assert torch.equal(transform({"pred": logits[0]})["pred"].as_tensor(), expected[0]), "of one case"


@pytest.mark.usefixtures("few_phantoms")
def test_the_published_training_runs(tmp_path):
    state = trained(tmp_path, 1, configs=["train.json", "published/training.json"])["last.pt"]
    assert state["optimizer"]["param_groups"][0]["lr"] == 1e-5
