# SPDX-License-Identifier: Apache-2.0
"""A network in torch.compile, DataParallel or an average is trained, resumed, evaluated and asked like any other."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLE, PRECISION, SMALL, forget_training
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from monai_llmboost.bundle import monai_arguments, run_bundle
from monai_llmboost.engines import TrainingCheckpoints

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
COMPILED = "$torch.compile({}, backend='eager')"
PARALLEL = "$torch.nn.DataParallel({})"
PLAIN = "@network_def.to(@device)"
WRAPPED = {
    "compiled": COMPILED.format(PLAIN),
    "DataParallel": PARALLEL.format(PLAIN),
    "compiled DataParallel": COMPILED.format(PARALLEL.format(PLAIN)[1:]),
    "DataParallel, compiled": PARALLEL.format(COMPILED.format(PLAIN)[1:]),
}
SIZE = {**SMALL, "size": 8, "patch_size": 4, "batch_size": 10}


@pytest.fixture(scope="module", autouse=True)
def few_phantoms():
    cases = {"train": 20, "val": 10, "test": 10}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", cases)
        yield


@pytest.fixture(autouse=True)
def compile_again():
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def bare(few_phantoms, tmp_path_factory):
    """A folder trained without a wrapper, and the probabilities of its evaluation."""
    folder = tmp_path_factory.mktemp("bare") / "run"
    places = {"ckpt_dir": str(folder), "output_dir": str(folder)}
    run_bundle(BUNDLE, "train", None, logging_file=False, epochs=2, **SIZE, **places)
    run_bundle(BUNDLE, "evaluate", None, logging_file=False, **SIZE, **places)
    return folder, probabilities(folder)


def weights_of(folder, name="model.pt", part="model"):
    state = torch.load(folder / name, weights_only=True)
    return state if name == "model.pt" else state[part]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def probabilities(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return [float(row["p_ring"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("wrap", WRAPPED)
def test_each_job_with_a_wrapper(run_job, bare, tmp_path, wrap):
    network = {"network": WRAPPED[wrap]}
    places = {"ckpt_dir": str(tmp_path / "wrap"), "output_dir": str(tmp_path / "wrap")}
    folder = run_job("train", epochs=2, **SIZE, **places, **network)
    assert weights_of(bare[0]).keys() == weights_of(folder).keys() == weights_of(folder, "last.pt").keys()
    answers = {}
    for name, own in (("as it was", network), ("bare", {})):
        out = {"ckpt_dir": str(folder), "output_dir": str(tmp_path / f"evaluated {name}")}
        answers[name] = probabilities(run_job("evaluate", **SIZE, **out, **own))
    assert answers["bare"] == pytest.approx(answers["as it was"], abs=PRECISION)
    (tmp_path / "scans").mkdir()
    voxels = np.random.default_rng(0).integers(0, 256, (8, 8, 8)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "scans" / "a.nii.gz")
    asked = {"dataset_dir": str(tmp_path / "scans"), "ckpt_dir": str(folder)}
    one, other = (
        probabilities(run_job("inference", **SIZE, **asked, **own, output_dir=str(tmp_path / f"asked{number}")))
        for number, own in enumerate(({}, network))
    )
    assert one == pytest.approx(other, abs=PRECISION)


def trained(folder, stop_after=None, overlay=None, **options):
    """Train a bundle with an overlay of ours or somebody's, stopped from outside after an epoch if asked to."""
    options = {**SIZE, "epochs": 3, "ckpt_dir": str(folder), "output_dir": str(folder), **options}
    ours = [overlay] if isinstance(overlay, str) else []
    arguments = monai_arguments(BUNDLE, "train", "none", False, ours, **options)
    if isinstance(overlay, dict):
        file = folder.parent / "overlay.json"
        file.write_text(json.dumps(overlay))
        arguments["config_file"].append(str(file))
    workflow = ConfigWorkflow(**arguments)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    if stop_after:
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop_after), trainer.terminate)
    workflow.run()


class Updates:
    """Average after each step, as a user would."""

    def __init__(self, average, network):
        self.average, self.network = average, network

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: self.average.update_parameters(self.network))


AVERAGE = {
    "average": {"_target_": "torch.optim.swa_utils.AveragedModel", "model": "@network", "use_buffers": True},
    "+train#handlers": [{"_target_": f"{__name__}.Updates", "average": "@average", "network": "@network"}],
    "validate#evaluator#network": "@average",
    "train_handlers#checkpoints#save_dict#model": "@average",
    "train_handlers#checkpoints#save_dict#trained": "@network",
}


@pytest.mark.parametrize(
    ("average", "wrap"),
    [("strong/training.json", wrap) for wrap in (None, "compiled", "DataParallel, compiled")]
    + [(AVERAGE, wrap) for wrap in (None, "DataParallel", "compiled DataParallel")],
)
def test_an_average_over_a_wrapped_network_is_resumed_exactly(tmp_path, wrap, average):
    options = {"network": WRAPPED[wrap]} if wrap else {}
    trained(tmp_path / "whole", overlay=average, **options)
    trained(tmp_path / "parts", 1, average, **options)
    trained(tmp_path / "parts", overlay=average, resume=True, **options)
    for part in ("model", "trained"):
        whole, parts = (weights_of(tmp_path / name, "last.pt", part) for name in ("whole", "parts"))
        assert same(whole, parts)
        assert not any(name.startswith(("_orig_mod.", "module.")) or name == "n_averaged" for name in whole)
    assert not same(weights_of(tmp_path / "whole", "last.pt"), weights_of(tmp_path / "whole", "last.pt", "trained"))


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_checkpoints_with_the_names_of_wrappers_load(run_job, bare, tmp_path, prefix):
    folder, expected = shutil.copytree(bare[0], tmp_path / "run"), bare[1]
    (folder / "predictions.csv").unlink()  # so that those below are of the renamed weights
    for name in ("model.pt", "last.pt"):
        state = torch.load(folder / name, weights_only=True)
        weights = state if name == "model.pt" else state["model"]
        renamed = {f"{prefix}{key}": value for key, value in weights.items()}
        if prefix.startswith("module."):
            renamed["n_averaged"] = torch.tensor(3)
        last = {**state, "model": renamed, "model_sha256": None}  # as an earlier version wrote it
        torch.save(renamed if name == "model.pt" else last, folder / name)
    forget_training(folder)
    assert probabilities(run_job("evaluate", **SIZE)) == expected
    run_job("train", epochs=2, resume=True, **SIZE)
    forget_training(folder)
    with pytest.raises(ValueError, match=r"only the file has|of another size are"):
        run_job("evaluate", **{**SIZE, "hidden_size": 32})


def test_optimizers_and_parts_of_another_run_are_not_resumed(tmp_path):
    trained(tmp_path, 1)
    with pytest.raises(Exception, match="Failed") as error:
        trained(tmp_path, resume=True, **{"optimizer#_target_": "torch.optim.Adam"})
    assert "begun with optimizer 'AdamW', this one has 'Adam'" in str(error.value.__cause__)
    with pytest.raises(Exception, match="Failed") as error:
        trained(tmp_path, resume=True, **{"train_handlers#checkpoints#save_dict#trained": "@network"})
    assert "begun with trained None, this one has 'ViT3D'" in str(error.value.__cause__)


def test_keepers_are_unwrapped():
    network = torch.nn.Linear(1, 1)
    engine = type("Evaluator", (), {"add_event_handler": lambda *_: None})()
    keeper = TrainingCheckpoints("x", {"model": torch.nn.DataParallel(network), "o": 3}, engine, "auc")
    assert keeper.save_dict == {"model": network, "o": 3}
