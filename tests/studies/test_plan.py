# SPDX-License-Identifier: Apache-2.0
"""The plan of a study: its runs, their names and configs, and what is refused."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
from conftest import BUNDLE
from monai.bundle import ConfigParser

from monai_llmboost import studies
from monai_llmboost.bundle import bundle_path, copy_bundle
from monai_llmboost.bundle.study_settings import StudySettings
from monai_llmboost.studies import Plan, Run
from monai_llmboost.studies.datasets import open_job

ARMS = ("none", "mlp", "pretrained")


def plan_of(**changes):
    return Plan(**{"bundle": BUNDLE, "arms": ARMS, "datasets": ("phantom",), "seeds": 2, **changes})


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (Run("phantom", "none", 3), "phantom/none/seed3"),
        (Run("phantom", "mlp", 0, 1e-3), "phantom/mlp/lr0.001/seed0"),
        (Run("phantom", "mlp", 0, 0.00001, 2), "phantom/mlp/lr1e-05/seed0-fold2"),
    ],
)
def test_a_runs_name_is_its_folder(run, name):
    assert run.name == name


def test_arms_of_one_seed_come_one_after_another():
    plan = plan_of(folds=2, datasets=("phantom", "adrenalmnist3d"))
    runs = plan.runs("phantom", {"none": 0.1, "mlp": 0.2, "pretrained": None})
    assert [(run.seed, run.fold, run.arm) for run in runs] == [
        (seed, fold, arm) for seed in (0, 1) for fold in (0, 1) for arm in ARMS
    ]
    assert {(run.arm, run.learning_rate) for run in runs} == {("none", 0.1), ("mlp", 0.2), ("pretrained", None)}
    assert {run.dataset for run in runs} == {"phantom"}
    assert len({run.name for run in runs}) == len(runs)


def test_seeds_that_choose_the_learning_rate_are_among_those_compared():
    plan = plan_of(seeds=3, lr_grid=(1e-3, 3e-3), lr_seeds=2)
    searched = plan.searched("phantom")
    assert {(run.arm, run.learning_rate, run.seed) for run in searched} == {
        (arm, rate, seed) for arm in ARMS for rate in (1e-3, 3e-3) for seed in (0, 1)
    }
    compared = {run.name for run in plan.runs("phantom", dict.fromkeys(ARMS, 1e-3))}
    assert len(compared & {run.name for run in searched}) == 2 * len(ARMS), "they are not trained twice"


@pytest.mark.parametrize("grid", [(), (1e-3,)])
def test_nothing_is_searched_where_there_is_nothing_to_choose(grid):
    assert plan_of(lr_grid=grid).searched("phantom") == []


def test_a_preset_puts_its_configs_on_top_and_says_whose_weights_are_read():
    def names(plan, job):
        return [file.name for file in plan.configs("mlp", job)]

    assert names(plan_of(), "train") == ["train.json", "mlp.json"]
    assert (plan_of().weights, plan_of().other_weights) == ("best", "last")
    rllm = plan_of(preset="rllm")
    assert names(rllm, "train") == ["train.json", "mlp.json", "network.json", "training.json"]
    assert names(rllm, "evaluate") == ["train.json", "mlp.json", "evaluate.json", "network.json"], "the same network"
    assert (rllm.weights, rllm.other_weights) == ("best", "last")
    strong = plan_of(preset="strong")
    assert names(strong, "evaluate") == ["train.json", "mlp.json", "evaluate.json", "network.json"]
    assert (strong.weights, strong.other_weights) == ("last", "best")
    presets = StudySettings.of(bundle_path(BUNDLE)).presets
    assert list(presets) == ["rllm", "strong"]
    assert all(file.is_file() for preset in presets for file in plan_of(preset=preset).configs("none"))
    with pytest.warns(DeprecationWarning, match=r"studies\.PRESETS is deprecated: use monai_llmboost\.bundle\."):
        assert presets == studies.PRESETS


def test_arguments_of_a_run(tmp_path):
    plan = plan_of(folds=3, options={"epochs": 2})
    given = plan.arguments(Run("phantom", "mlp", 1, 1e-3, 2), "evaluate", tmp_path, output_dir="test", split="test")
    expected = {"dataset": "phantom", "seed": 1, "block_seed": 1, "learning_rate": 1e-3, "folds": 3, "fold": 2}
    expected |= {"epochs": 2, "ckpt_dir": str(tmp_path), "output_dir": "test", "split": "test"}
    assert expected.items() <= given.items()
    assert [Path(file).name for file in given["config_file"]] == ["train.json", "mlp.json", "evaluate.json"]
    bare = plan_of().arguments(Run("phantom", "none", 0), "train", tmp_path)
    assert not {"learning_rate", "fold", "folds"} & bare.keys(), "the bundle's own"
    assert bare["output_dir"] == bare["ckpt_dir"] == str(tmp_path)


def test_a_plan_is_json_and_travels_to_other_processes(tmp_path):
    plan = plan_of(
        lr_grid=(1e-3, 3e-3), options={"epochs": 2, "dataset_dir": tmp_path, "train#x": (1, 2), "train#y": {3}}
    )
    content = plan.as_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["options"] == {"epochs": 2, "dataset_dir": str(tmp_path), "train#x": [1, 2], "train#y": "{3}"}
    assert content["lr_grid"] == [1e-3, 3e-3]
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("none",)}, "a study needs 2 or more different arms, not none"),
        (
            {"arms": ("none", "mlp", "none")},
            "a study needs 2 or more different arms, not none, mlp, none: name each once",
        ),
        ({"arms": ("none", "mlpp")}, "unknown arm 'mlpp'; choose from lora, mlp, none, pretrained.*; did you mean mlp"),
        ({"arms": ("none", "../train")}, "unknown arm '../train'; choose from"),
        ({"datasets": ()}, "a study needs 1 or more different data sets, not none"),
        ({"datasets": ("phantom", "phantom")}, "a study needs 1 or more different data sets, not phantom, phantom"),
        ({"datasets": ("lung",)}, "unknown dataset 'lung'; choose from phantom, "),
        ({"seeds": 0}, "seeds must be a whole number from 1, not 0"),
        ({"seeds": True}, "seeds must be a whole number from 1, not True"),
        ({"seeds": 2.0}, r"seeds must be a whole number from 1, not 2\.0"),
        ({"lr_seeds": 3}, "lr_seeds must be a whole number from 1 to 2, not 3"),
        ({"lr_seeds": 0}, "lr_seeds must be a whole number from 1 to 2, not 0"),
        ({"folds": -1}, "folds must be a whole number from 0, not -1"),
        ({"folds": 1}, "folds must be 0 or from 2, not 1: one part is left out in turn"),
        ({"lr_grid": (0.0,)}, r"learning rates must be above 0, not 0\.0"),
        ({"lr_grid": (-1e-3,)}, "learning rates must be above 0"),
        ({"lr_grid": (float("nan"),)}, "learning rates must be above 0, not nan"),
        ({"lr_grid": (float("inf"),)}, "learning rates must be above 0, not inf"),
        ({"lr_grid": ("1e-3",)}, "learning rates must be above 0, not '1e-3'"),
        ({"lr_grid": (1e-3, 0.001)}, r"a study needs different learning rates, not 0\.001, 0\.001"),
        ({"lr_grid": (1e-3, 1.0000001e-3)}, r"a study needs different learning rates, not 0\.001, 0\.001"),
        ({"preset": "weak"}, "unknown preset 'weak'; choose from rllm, strong"),
        (
            {"references": ("random",)},
            r"no reference \(random\) is an arm of the study: give one of none, mlp, pretrained",
        ),
        (
            {"references": ("none", "rnadom")},
            "unknown reference 'rnadom'; choose from none, mlp, pretrained, random; did you mean random",
        ),
        ({"references": ()}, r"no reference \(none\) is an arm of the study"),
        (
            {"label_fractions": (0.0, 1.0)},
            r"label fractions must be above 0 and at most 1, not 0\.0: write 0\.1 for 10 %",
        ),
        ({"label_fractions": (1.5,)}, r"label fractions must be above 0 and at most 1, not 1\.5"),
        ({"label_fractions": (float("nan"),)}, "label fractions must be above 0 and at most 1, not nan"),
        ({"label_fractions": ("0.1",)}, r"label fractions must be above 0 and at most 1, not '0\.1'"),
        ({"label_fractions": (0.1, 1.0, 0.1)}, r"a study needs 1 or more different label fractions, not 0\.1, 1, 0\.1"),
        ({"label_fractions": (0.1, 0.10000001)}, r"different label fractions, not 0\.1, 0\.1: name each once"),
        ({"label_fractions": ()}, "a study needs 1 or more different label fractions, not none"),
        ({"options": {"label_fraction": 0.1}}, "the study itself sets label_fraction: give --label-fraction"),
        ({"options": {"seed": 3}}, "the study itself sets seed: give --seeds"),
        ({"options": {"learning_rate": 1e-3}}, "the study itself sets learning_rate: give --lr-grid"),
        ({"options": {"fold": 1}}, "the study itself sets fold: give --folds"),
        ({"options": {"ckpt_dir": "x"}}, "the study itself sets ckpt_dir: leave it out"),
        ({"options": {"epoch": 3}}, "the bundle has no option --epoch: did you mean --epochs"),
        ({"options": {"split": "val"}}, "the study itself sets split"),
        ({"options": {"average#momentum": 0.1}, "preset": "strong"}, "the bundle has no option --average"),
        (
            {"options": {"val_interval": 3}, "preset": "strong"},
            "val_interval must divide epochs, .* not 3 and 40",
        ),
        ({"options": {"epochs": 2, "val_interval": 3}}, r"val_interval must be at most epochs \(2\), not 3"),
        ({"options": {"batch_size": 0}}, "batch_size must be a whole number from 1, not 0"),
        ({"options": {"patience": 1.5}}, r"patience must be a whole number from 0, not 1\.5"),
    ],
)
def test_no_study_can_be_made_of_it(changes, message):
    with pytest.raises(ValueError, match=message):
        plan_of(**changes)


def test_each_fraction_of_the_labels_is_a_set_of_its_own():
    plan = plan_of(datasets=("phantom", "adrenalmnist3d"), label_fractions=(0.1, 1.0))
    assert list(plan.sets) == [
        "phantom, 10 % of labels", "phantom", "adrenalmnist3d, 10 % of labels", "adrenalmnist3d"
    ]  # fmt: skip
    few, whole = (plan.runs(name, {"none": None})[0] for name in ("phantom, 10 % of labels", "phantom"))
    assert (few.name, whole.name) == ("phantom, 10 % of labels/none/seed0", "phantom/none/seed0")
    for job in ("train", "evaluate"):
        assert plan.arguments(few, job, Path("x"))["label_fraction"] == 0.1
        assert plan.arguments(whole, job, Path("x"))["label_fraction"] == 1.0
        assert plan.arguments(few, job, Path("x"))["dataset"] == "phantom"
    assert open_job(plan, "phantom, 10 % of labels").training_data.num_cases == 48
    assert plan_of(options={"dataset_dir": "x"}, datasets=("adrenalmnist3d",), label_fractions=(0.5,)).options_for(
        "adrenalmnist3d, 50 % of labels"
    ) == {"dataset": "adrenalmnist3d", "dataset_dir": "x", "label_fraction": 0.5}


def test_without_the_usual_arms_the_first_one_is_the_reference():
    assert plan_of(arms=("pretrained", "lora")).compared_with == ("pretrained",)
    assert plan_of(arms=("pretrained", "lora", "mlp")).compared_with == ("mlp",)


def test_no_such_bundle():
    with pytest.raises(FileNotFoundError, match="there is no bundle 'nothing'"):
        plan_of(bundle="nothing")


def test_a_bundle_without_the_preset(tmp_path):
    copy_bundle(BUNDLE, tmp_path / "bundle")
    configs = tmp_path / "bundle" / "configs"
    shutil.rmtree(configs / "published")
    plan_of(bundle=str(tmp_path / "bundle"))
    with pytest.raises(
        ValueError, match=r"rllm of the bundle .* has neither network\.json nor training\.json: add one"
    ):
        plan_of(bundle=str(tmp_path / "bundle"), preset="rllm")
    (configs / "studies.json").unlink()
    with pytest.raises(ValueError, match=r"declares no presets in its configs/studies\.json, so there is no 'strong'"):
        plan_of(bundle=str(tmp_path / "bundle"), preset="strong")


def test_a_bundle_declares_presets_of_its_own(tmp_path):
    copy_bundle(BUNDLE, tmp_path / "bundle")
    configs = tmp_path / "bundle" / "configs"
    (configs / "short").mkdir()
    (configs / "short" / "training.json").write_text('{"epochs": 3}')
    (configs / "studies.json").write_text('{"presets": {"short": {"weights": "last"}, "odd": {"weights": "first"}}}')
    with pytest.raises(ValueError, match="unknown weights 'first'; choose from best, last"):
        plan_of(bundle=str(tmp_path / "bundle"))
    (configs / "studies.json").write_text('{"presets": {"short": {"weights": "last"}}}')
    plan = plan_of(bundle=str(tmp_path / "bundle"), preset="short")
    assert [file.name for file in plan.configs("mlp")] == ["train.json", "mlp.json", "training.json"]
    assert [file.name for file in plan.configs("mlp", "evaluate")] == ["train.json", "mlp.json", "evaluate.json"]
    assert (plan.weights, plan.value("epochs")) == ("last", 3)


def test_paths_reach_the_configs_as_they_are(tmp_path):
    plan = plan_of(options={"block": "b #1.safetensors", "dataset_dir": "$x @y"}, datasets=("adrenalmnist3d",))
    folder = tmp_path / "study #1" / "a::b"
    arguments = plan.arguments(Run("adrenalmnist3d", "none", 0), "train", folder)
    parsed = {key: ConfigParser({"x": arguments[key]}).get_parsed_content("x")
              for key in ("ckpt_dir", "output_dir", "block", "dataset_dir")}  # fmt: skip
    assert parsed == {"ckpt_dir": str(folder), "output_dir": str(folder), **plan.options}
    job = open_job(plan, "adrenalmnist3d")
    assert {key: job.item(key, "this test") for key in plan.options} == plan.options


def test_options_of_files_are_for_the_sets_that_have_some():
    options = {"dataset_dir": "images", "download": True, "epochs": 2}
    plan = plan_of(datasets=("phantom", "adrenalmnist3d"), options=options)
    plan.check_effect()
    for dataset, has in (("phantom", False), ("adrenalmnist3d", True)):
        arguments = plan.arguments(Run(dataset, "none", 0), "train", Path("x"))
        assert ("dataset_dir" in arguments, "download" in arguments, arguments["epochs"]) == (has, has, 2)
        assert (open_job(plan, dataset).item("dataset_dir", "this test") == "images") is has
    for name in ("dataset_dir", "download"):
        with pytest.raises(ValueError, match=f"--{name} has no effect: phantom does not use it; give"):
            plan_of(options={name: options[name]}).check_effect()
    plan_of(options={"download": False}).check_effect()


def test_an_option_has_an_effect_if_any_arm_uses_it():
    plan_of(options={"gate": True, "block": "x"}).check_effect()
    with pytest.raises(ValueError, match="--lora_rank has no effect: none of the arms none, mlp, pretrained uses it"):
        plan_of(options={"lora_rank": 2}).check_effect()
    plan_of(arms=("none", "lora"), references=("none",), options={"lora_rank": 2}).check_effect()
