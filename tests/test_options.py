# SPDX-License-Identifier: Apache-2.0
"""Options that cannot be are refused in one sentence, before anything heavy is imported, whatever the verb."""

import json
import subprocess
import sys
import time

import pytest
from conftest import BUNDLE
from typer.testing import CliRunner

from monai_llmboost.bundle import (
    Rules,
    bundle_path,
    check_options,
    copy_bundle,
    job_configs,
    merged,
    monai_arguments,
    typed_values,
)
from monai_llmboost.command_line.app import app
from monai_llmboost.data import class_names, medmnist3d_names
from monai_llmboost.data.datasets.named import SETS
from monai_llmboost.data.datasets.phantoms import PHANTOM_CLASSES

WHOLE = {
    "epochs": 1, "batch_size": 1, "val_interval": 1, "patience": 0, "seed": 0, "block_seed": 0, "folds": 0, "fold": 0,
    "size": 1, "patch_size": 1, "hidden_size": 1, "mlp_dim": 1, "num_layers": 1, "num_heads": 1, "stem_channels": 0,
    "lora_rank": 1, "warmup_epochs": 0,
}  # fmt: skip


@pytest.mark.parametrize("key", WHOLE)
@pytest.mark.parametrize("value", [1.5, -1, True, "two", "none", float("nan"), float("inf"), [1], "0"])
def test_whole_numbers(key, value):
    with pytest.raises(ValueError, match=rf"{key} must be a whole number from \d.*, not ") as error:
        monai_arguments(BUNDLE, "train", **{key: value})
    assert repr(value) in str(error.value)
    least = WHOLE[key]
    if least:
        with pytest.raises(ValueError, match=rf"{key} must be a whole number from 1, not 0: correct --{key}"):
            monai_arguments(BUNDLE, "train", **{key: 0})
    allowed = {"val_interval": 1, "warmup_epochs": 1}.get(key, max(least, 2))
    monai_arguments(BUNDLE, "train", **{key: allowed})
    monai_arguments(BUNDLE, "train", **{key: "$1 + 1"})


@pytest.mark.parametrize("key", ["num_workers", "volume", "min_slices", "batch_size", "size"])
@pytest.mark.parametrize("value", [1.5, -1, True, "two"])
def test_whole_numbers_of_inference(key, value):
    with pytest.raises(ValueError, match=rf"{key} must be a whole number from \d.*, not "):
        monai_arguments(BUNDLE, "inference", **{key: value})
    monai_arguments(BUNDLE, "inference", **{key: 2})


@pytest.mark.parametrize("key", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "x", True])
def test_rates(key, value):
    with pytest.raises(ValueError, match=f"{key} must be a number (from|above) 0, not "):
        monai_arguments(BUNDLE, "train", **{key: value})


def test_a_rate_of_nothing():
    with pytest.raises(ValueError, match="learning_rate must be a number above 0, not 0: correct --learning_rate"):
        monai_arguments(BUNDLE, "train", learning_rate=0)
    monai_arguments(BUNDLE, "train", weight_decay=0)


@pytest.mark.parametrize("key", ["resume", "download", "gate", "causal", "rotary"])
@pytest.mark.parametrize("value", ["false", "no", 1, 0, "True "])
def test_truth_values(key, value):
    with pytest.raises(ValueError, match=f"{key} must be True or False, not "):
        monai_arguments(BUNDLE, "train", **{key: value})
    monai_arguments(BUNDLE, "train", **{key: False})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"val_interval": 31},
            r"val_interval must be at most epochs \(30\), not 31: lower --val_interval, or raise --epochs",
        ),
        ({"epochs": 3, "val_interval": 5}, r"at most epochs \(3\), not 5"),
        ({"warmup_epochs": 30}, r"warmup_epochs must be below epochs \(30\), not 30"),
        ({"epochs": 1, "warmup_epochs": 1}, r"below epochs \(1\), not 1"),
        ({"seed": 2**32}, "seed must be a whole number from 0 to 4294967295, not 4294967296"),
    ],
)
def test_numbers_that_do_not_fit_one_another(options, message):
    with pytest.raises(ValueError, match=message):
        monai_arguments(BUNDLE, "train", **options)


def test_numbers_in_somebodys_own_configs(tmp_path):
    copy_bundle(BUNDLE, tmp_path / "mine")
    file = tmp_path / "mine" / "configs" / "train.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "seed": 1.5}))
    with pytest.raises(
        ValueError,
        match=r"seed must be a whole number from 0 to 4294967295, not 1\.5: correct it in train\.json, or",
    ):
        monai_arguments(str(tmp_path / "mine"), "train")
    # In a bundle with data of its own these words may mean something else, as it declares.
    described = tmp_path / "mine" / "configs" / "options.json"
    described.write_text(json.dumps({"size": "voxels along each axis", "dataset": "data set", "seed": "a seed"}))
    own = {"class_names": ["a", "b"], "size": [8, 8, 4], "dataset": "liver", "seed": 1.5}
    file.write_text(json.dumps({**content, **own}))
    monai_arguments(str(tmp_path / "mine"), "train", size=[4, 4, 4], dataset="lung")


@pytest.mark.parametrize("word", ["None", "null"])
def test_a_number_left_empty(word):
    for key in ("batch_size", "seed", "size"):
        result = CliRunner().invoke(app, ["run", "train", f"--{key}", word])
        assert result.exit_code == 1
        assert f"--{key} must be a number, not none: leave the option out" in str(result.exception)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("foo", ""), ("", ""), ("AdrenalMNIST3D", "adrenalmnist3d"), ("data/adrenal", ""), ("adrenal", "adrenalmnist3d"),
     (3, ""), (["phantom"], "phantom"), ("phantoms", "phantom")],
)  # fmt: skip
def test_an_unknown_data_set(name, hint):
    with pytest.raises(ValueError, match=r"unknown dataset .*; choose from phantom, adrenalmnist3d, ") as error:
        check_options(job_configs(bundle_path(BUNDLE), "train"), {"dataset": name})
    assert str(error.value).startswith(f"unknown dataset {name!r}; ")
    assert str(error.value).endswith(f"; did you mean {hint}?" if hint else "lidcshapes_sizefree")


HEAVY = ("torch", "monai.bundle", "medmnist", "pandas", "numpy")
VERBS = {
    "run": ["run", "train"],
    "evaluate": ["run", "evaluate"],
    "study": ["study", "--output", "x"],
    "cost": ["cost"],
    "predict": ["predict", "-i", ".", "-o", "x"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_data_set_costs_no_time(verb, tmp_path):
    code = (
        f"import sys, time, resource; from monai_llmboost.command_line.app import main; sys.argv[1:] = {VERBS[verb]} + "
        "['--dataset', 'liver']\ntry: main()\n"
        f"finally: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert "choose from phantom, adrenalmnist3d" in done.stderr
    assert done.stderr.endswith("[]\n"), "nothing heavy was imported"
    assert time.perf_counter() - begun < 20
    assert not list(tmp_path.iterdir())


def test_the_table_of_data_sets_is_medmnists():
    from medmnist.info import INFO

    theirs = {name: entry["label"] for name, entry in INFO.items() if name.endswith("3d")}
    assert list(SETS)[:-2] == ["phantom", *sorted(theirs)] == ["phantom", *medmnist3d_names()]
    assert Rules(bundle_path(BUNDLE) / "configs").declared["dataset"].choices == tuple(SETS)
    assert class_names("phantom") == PHANTOM_CLASSES
    for name, labels in theirs.items():
        assert class_names(name) == [labels[str(index)] for index in range(len(labels))]


def declared(folder, options, **entries):
    (folder / "a.json").write_text(json.dumps(options))
    (folder / "options.json").write_text(json.dumps(entries))
    return [folder / "a.json"]


def test_a_bundle_declares_what_its_options_may_be(tmp_path):
    configs = declared(
        tmp_path, {"site": "$'a'", "kind": "x", "depth": None, "rate": 1.0, "steps": "$1 + 1"},
        site={"help": "a site", "kind": "text"}, kind={"help": "a kind", "choices": ["x", "y"]},
        depth={"kind": "whole", "least": 2, "most": 4, "none": True}, rate={"most": 2}, steps="a line as in 0.1.0",
    )  # fmt: skip
    check_options(configs, {"site": "#1", "kind": "y", "depth": 4, "rate": 2, "steps": 1.5})
    for options, message in (
        ({"kind": "z"}, "unknown kind 'z'; choose from x, y"),
        ({"depth": 5}, "depth must be a whole number from 2 to 4, not 5: correct --depth"),
        ({"rate": 3}, "rate must be a number to 2, not 3: correct --rate"),
    ):
        with pytest.raises(ValueError, match=message):
            check_options(configs, options)
    rules = Rules(tmp_path)
    assert rules.texts == {"site"}
    assert typed_values(merged(configs), {"site": "007", "steps": "007"}, rules.texts) == {
        "site": "007",
        "steps": "007",
    }
    assert typed_values(merged(configs), {"site": "7", "steps": "7"}, rules.texts) == {"site": "7", "steps": 7}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"helped": "x"}, r"site in .*options\.json must be a line of help or an object of help, kind, least, most, "),
        (3, "must be a line of help or an object of .*, not 3"),
        (
            {"kind": "digit"},
            r"unknown kind of site in .*options\.json 'digit'; choose from whole, number, switch, text",
        ),
    ],
)
def test_a_declaration_that_nobody_reads(tmp_path, entry, message):
    with pytest.raises(ValueError, match=message):
        check_options(declared(tmp_path, {"site": 1}, site=entry), {})
