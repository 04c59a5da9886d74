# SPDX-License-Identifier: Apache-2.0
"""Options that nothing in a job uses are refused, those that the README tells users to repeat are not."""

import json
import shutil

import pytest
import torch
from conftest import BUNDLE, EARLIER

from monai_llmboost.bundle import check_job_effect, copy_bundle, monai_arguments, option_without_effect, run_bundle


@pytest.fixture
def earlier_copy(tmp_path):
    """A user's copy of a bundle as it was when mixed precision was MONAI's, and its option was --amp."""
    copy_bundle(BUNDLE, tmp_path / "mine")
    return shutil.copytree(EARLIER, tmp_path / "mine" / "configs", dirs_exist_ok=True).parent


@pytest.mark.parametrize(
    ("job", "arm", "options"),
    [
        ("train", None, {"lora_rank": 8}),
        ("train", "none", {"gate": True}),
        ("train", "none", {"residual": "outer"}),
        ("train", "mlp", {"causal": True}),
        ("evaluate", "none", {"gate": True}),
        ("inference", "none", {"residual": "outer"}),
        ("inference", "random", {"lora_rank": 2}),
        ("train", "none", {"frozen_block#seed": 1}),
    ],
)
def test_an_option_that_nothing_uses(job, arm, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"--{name} has no effect: nothing in {job} with .* uses it"):
        check_job_effect(BUNDLE, job, [arm], options)


def test_the_message_names_the_arm_that_would_use_it():
    with pytest.raises(ValueError, match=r"leave it out, or choose the arm lora$"):
        run_bundle(BUNDLE, "train", "random", lora_rank=8)


@pytest.mark.parametrize(
    ("job", "arms", "options"),
    [
        ("train", ["none"], {"block": "x", "block_seed": 3, "block_dtype": "$torch.bfloat16"}),
        ("train", ["none", "lora"], {"lora_rank": 8}),
        ("train", ["lora"], {"lora_rank": 8, "gate": True}),
        ("evaluate", ["none"], {"epochs": 3, "learning_rate": 0.1, "patience": 2, "split": "val", "weights": "last"}),
        ("train", [None], {"network_def#pool": "mean", "train_handlers#seeds": {}, "train#trainer#max_epochs": 3}),
        ("train", [None], {"bundle_root": "x", "tracking": "mlflow", "run_name": "y", "gate": None}),
        (
            "inference",
            ["none"],
            {"saliency": True, "report": False, "num_workers": 2, "volume": 1},
        ),
        ("inference", [None], {"network": "$torch.compile(@network_def.to(@device))"}),
    ],
)
def test_options_that_have_an_effect_or_are_repeated(job, arms, options):
    check_job_effect(BUNDLE, job, arms, options)


@pytest.mark.parametrize("job", ["train", "evaluate", "inference"])
@pytest.mark.parametrize(
    "device", ["cpu", "cpu:0", torch.device("cpu"), "$torch.device('cpu')", '$torch.device("cpu")']
)
def test_monais_mixed_precision_on_a_cpu_is_refused(job, device, earlier_copy):
    with pytest.raises(ValueError, match=r"got --amp with the device cpu\S*: leave out --amp"):
        monai_arguments(earlier_copy, job, "none", amp=True, device=device)
    monai_arguments(earlier_copy, job, "none", amp=False, device=device)


def test_monais_mixed_precision_is_refused_where_there_is_no_gpu(monkeypatch, earlier_copy):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for job in ("train", "inference"):
        with pytest.raises(ValueError, match="got --amp, and there is none here: leave out --amp"):
            run_bundle(earlier_copy, job, "none", amp=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monai_arguments(earlier_copy, "train", "none", amp=True)
    monai_arguments(earlier_copy, "train", "none", amp=True, device="cuda:1")


def test_the_text_of_configs_decides(tmp_path):
    config = {
        "a": 1, "b": 2, "c": 3, "d": {"e": 4, "f": 5}, "off": {"_disabled_": True, "x": "@b"}, "net": {"depth": "@a"},
        "run": ["$@net, @d#e, @off"],
    }  # fmt: skip
    file = tmp_path / "x.json"
    file.write_text(json.dumps(config))

    def unused(**options):
        return option_without_effect([[file]], options)

    assert unused(a=0) is unused(net={}) is unused(d={}) is unused(**{"net#depth": 0}) is unused(**{"d::e": 0}) is None
    assert (unused(b=0), unused(c=0), unused(**{"d#f": 0})) == ("b", "c", "d#f")
    assert unused(c=0, net="$@c") is None, "an option may use another"
    assert unused(c=3, b=2) is None, "as it is anyway"
    for unreadable in ({"run": ["$@##a"]}, {"net": "%other"}, {"run": None}):
        file.write_text(json.dumps({key: value for key, value in {**config, **unreadable}.items() if value}))
        assert unused(c=0) is None, "where the text does not tell, nothing is refused"
