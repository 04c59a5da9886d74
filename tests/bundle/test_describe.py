# SPDX-License-Identifier: Apache-2.0
"""Every option of the bundle has a line, and --help lists it with its default."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import BUNDLE

from monai_llmboost.bundle import bundle_path, merged
from monai_llmboost.bundle.describe import bundle_options
from monai_llmboost.bundle.find import JOBS, job_configs

FOLDER = bundle_path(BUNDLE)


def test_every_option_has_a_line_and_every_line_an_option():
    options = bundle_options(FOLDER)
    assert [option.name for option in options if not option.meaning] == []
    described = json.loads((FOLDER / "configs" / "options.json").read_text())
    assert set(described) == {option.name for option in options}
    assert not [option.name for option in options if len(option.meaning) > 110 or option.meaning.endswith(".")]


def test_every_key_that_a_user_may_set_is_an_option():
    content = {}
    for job in JOBS:
        content |= {**merged(job_configs(FOLDER, job, network="resnet")), **merged(job_configs(FOLDER, job))}
    values = {key for key, value in content.items() if not isinstance(value, dict) and "#" not in key}
    of_code = {
        "imports",
        "initialize",
        "run",
        "handlers",
        "is_not_rank0",
        "rank",
        "world_size",
        "processes",
        "class_names",
    }
    assert values - of_code == {option.name for option in bundle_options(FOLDER)}


def test_defaults_and_jobs():
    options = {option.name: option for option in bundle_options(FOLDER)}
    assert (options["epochs"].default, options["epochs"].jobs) == ("30", ("train", "evaluate"))
    assert options["batch_size"].default == "32; 8 in inference"
    assert options["patch_size"].default == "size // 4"
    assert (options["block_dtype"].default, options["volume"].default) == ("compute_dtype", "none")


def test_a_bundle_without_lines_is_listed_all_the_same(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "mine")
    (folder / "configs" / "options.json").unlink()
    options = bundle_options(folder, ["inference"])
    assert {"volume", "salt"} <= {option.name for option in options}
    assert {option.meaning for option in options} == {""}


@pytest.mark.parametrize(
    ("words", "there", "not_there"),
    [
        (["run", "--help"], ["--epochs", "--split", "--volume", "inference"], []),
        (["run", "train", "--help"], ["--epochs", "0.001"], ["--volume", "--split"]),
        (["predict", "--help"], ["--gantry_tilt", "resample", "--accept-refused"], ["--epochs", "--num_workers"]),
        (["study", "--help"], ["--epochs", "--dataset_dir"], ["--volume", "--ckpt_dir", "--learning_rate"]),
        (["cost", "--help"], ["--hidden_size"], ["--volume"]),
        (["run", "--bundle", "nowhere", "--help"], ["cannot be listed: there is no bundle 'nowhere'"], ["--epochs"]),
    ],
)
def test_help_lists_the_options_without_torch(words, there, not_there):
    code = "import sys; from monai_llmboost.__main__ import main\ntry: main()\nfinally: print(*sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    text, modules = done.stdout.rsplit("\n", 2)[0], done.stdout.rsplit("\n", 2)[1].split()
    listed = text.split("Options of the bundle")[-1].split() if "nowhere" not in words else text
    for word in there:
        assert word in text
    assert not [word for word in not_there if word in listed]
    assert not {"torch", "monai"} & set(modules)
