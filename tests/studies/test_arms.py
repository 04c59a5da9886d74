# SPDX-License-Identifier: Apache-2.0
"""Arms with blocks of their own: names, which of them are compared, what is refused, and a small study."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
from conftest import BUNDLE, SMALL

from monai_llmboost.studies import Plan, Run
from monai_llmboost.studies.arms import are_compared, split_arms
from monai_llmboost.studies.plan_file import contents_of, keep_plan


@pytest.fixture
def donors(tmp_path):
    """Two files that a plan keeps like blocks; nothing reads them here."""
    files = [tmp_path / f"{name}.safetensors" for name in ("a", "b")]
    for file in files:
        file.write_bytes(file.name.encode())
    return [str(file) for file in files]


def plan_of(*words, **changes):
    arms, blocks = split_arms(words)
    return Plan(**{"bundle": BUNDLE, "arms": arms, "datasets": ("phantom",), "seeds": 1, "blocks": blocks, **changes})


def pairs_of(plan):
    return [pair for pair in itertools.combinations(plan.arms, 2) if plan.compares(*pair)]


def test_names_and_blocks():
    words = ("none", "random@x/smollm2-29.safetensors", "pretrained@x/smollm2-29.safetensors", "pretrained@embedded")
    arms, blocks = split_arms(words)
    assert arms == ("none", "random@smollm2-29", "pretrained@smollm2-29", "pretrained@embedded")
    assert blocks == {"smollm2-29": "x/smollm2-29.safetensors", "embedded": "embedded"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("none", "random@x/a.safetensors", "pretrained@y/a.safetensors"), "would both be called 'a' in the results"),
        (("pretrained@",), "an arm with its own block is ARM@BLOCK, .* not 'pretrained@'"),
        (("@embedded",), "an arm with its own block is ARM@BLOCK, .* not '@embedded'"),
    ],
)
def test_names_that_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        split_arms(words)


def test_each_donor_is_compared_with_its_own_control(donors):
    a, b = donors
    plan = plan_of("none", "mlp", f"random@{a}", f"pretrained@{a}", f"random@{b}", f"pretrained@{b}", "pretrained")
    assert plan.compared_with == ("none", "mlp", "random@a", "random@b")
    pairs = pairs_of(plan)
    assert [("none", arm) in pairs for arm in plan.arms[1:]] == [True] * 6
    assert [("mlp", arm) in pairs for arm in plan.arms[2:]] == [True] * 5
    controls = {pair for pair in pairs if not {"none", "mlp"} & set(pair)}
    assert controls == {("random@a", "pretrained@a"), ("random@b", "pretrained@b")}
    shared = plan_of("random", f"pretrained@{a}", f"random@{b}", f"pretrained@{b}")
    assert ("random", "pretrained@a") in pairs_of(shared), "no reference has its block"
    assert ("random", "pretrained@b") not in pairs_of(shared)
    full = plan_of("none", f"pretrained@{a}", f"pretrained@{b}", references=("pretrained@a",))
    assert pairs_of(full) == [("none", "pretrained@a"), ("pretrained@a", "pretrained@b")]
    first = plan_of(f"pretrained@{a}", f"pretrained@{b}")
    assert pairs_of(first) == [("pretrained@a", "pretrained@b")]
    assert not are_compared("random", "random", ("random",), ("random",))


def test_a_run_gets_the_block_of_its_arm(donors):
    plan = plan_of("none", f"pretrained@{donors[0]}", "pretrained", options={"block": donors[1]})
    plan.check_effect()
    run = Run("phantom", "pretrained@a", 0)
    assert run.name == "phantom/pretrained@a/seed0"
    for job in ("train", "evaluate"):
        given = plan.arguments(run, job, Path("x"))
        assert given["block"] == donors[0]
        assert [Path(file).name for file in given["config_file"]][:2] == ["train.json", "pretrained.json"]
        assert plan.arguments(Run("phantom", "pretrained", 0), job, Path("x"))["block"] == donors[1]
    assert set(contents_of(plan)["files"]) == set(donors)


def test_blocks_are_kept_and_may_become_more(donors, tmp_path):
    a, b = donors
    file = tmp_path / "study.json"
    keep_plan(plan_of("none", f"pretrained@{a}"), file)
    keep_plan(plan_of("none", f"pretrained@{a}", f"pretrained@{b}"), file)
    with pytest.raises(ValueError, match="so pretrained@a cannot be left out: name them too"):
        keep_plan(plan_of("none", f"pretrained@{b}"), file)
    (tmp_path / "other").mkdir()
    moved = shutil.copy(a, tmp_path / "other")
    with pytest.raises(ValueError, match=r"was begun with blocks .*: resume it with its own options"):
        keep_plan(plan_of("none", f"pretrained@{moved}", f"pretrained@{b}"), file)
    Path(b).write_bytes(b"another block")
    with pytest.raises(ValueError, match=r"was begun with another content of .*b\.safetensors: put that file back"):
        keep_plan(plan_of("none", f"pretrained@{a}", f"pretrained@{b}"), file)
    kept = json.loads(file.read_text())
    assert kept["blocks"] == {"a": a, "b": b}


def test_what_is_refused(donors):
    a, b = donors
    with pytest.raises(ValueError, match="the arm none uses no block, so none@a has no effect: give none"):
        plan_of("mlp", f"none@{a}").check_effect()
    with pytest.raises(
        FileNotFoundError, match=r"no block file gone\.safetensors for the arm pretrained@gone: give its"
    ):
        plan_of("none", "pretrained@gone.safetensors").check_effect()
    with pytest.raises(ValueError, match=r"no reference \(random@a\) has the block of another arm"):
        plan_of(f"random@{a}", f"pretrained@{b}")
    with pytest.raises(ValueError, match=r"each of the blocks must belong to an arm .* not c"):
        plan_of("none", f"pretrained@{a}", blocks={"a": a, "c": "c"})
    with pytest.raises(ValueError, match="unknown arm 'pretraned'; choose from"):
        plan_of("none", f"pretraned@{a}")
    with pytest.raises(ValueError, match="a study needs 2 or more different arms"):
        plan_of(f"pretrained@{a}", f"pretrained@{a}")
    with pytest.raises(ValueError, match="unknown reference 'random@c'; choose from none, pretrained@a"):
        plan_of("none", f"pretrained@{a}", references=("random@c",))
    plan_of("none", "pretrained@embedded", options=SMALL).check_effect()
