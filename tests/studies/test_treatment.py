# SPDX-License-Identifier: Apache-2.0
"""A verdict says so where a block was practically not in use."""

import pytest

from monai_llmboost.studies.statistics.records import Comparison, Intervals, Summary
from monai_llmboost.studies.statistics.treatment import unused_because, with_treatment

USED = {"block_adds": 0.7, "booster_adds": 0.2, "cka_block": 0.8}


def measured(**values):
    return {name: Summary.of([value, value]) for name, value in values.items()}


def compared(arm="pretrained", reference="random"):
    intervals = Intervals(None, [-0.1, 0.1], [-0.1, 0.1])
    return Comparison("auc", arm, reference, 0.0, [0.0], 0.05, None, intervals, 1.0, None, 1.0, 0.1, "no difference.")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"block_adds": 0.3, "booster_adds": 0.01}, ""),
        ({"block_adds": 0.12}, "its block adds 12 % to its tokens (in a language model 60 to 140 %)"),
        ({"booster_adds": 0.004}, "its booster adds 0.4 % to the tokens that are read"),
    ],
)
def test_the_reason(changes, reason):
    assert unused_because(measured(**{**USED, **changes})) == reason


def test_both_reasons():
    both = unused_because(measured(block_adds=0.1, booster_adds=0.0))
    assert both.count(" and ") == 1 and both.endswith("booster adds 0 % to the tokens that are read")


@pytest.mark.parametrize("diagnostics", [None, {}, measured(cka_block=0.9, booster_adds=0.0)])
def test_an_arm_without_a_block_has_none_to_use(diagnostics):
    """No booster; nothing was measured, as in earlier versions; the arm mlp."""
    assert unused_because(diagnostics) == ""


def test_the_verdict_makes_no_statement_on_pretraining():
    diagnostics = {"none": None, "random": measured(**USED), "pretrained": measured(**{**USED, "block_adds": 0.1})}
    verdict = with_treatment(compared(), diagnostics).verdict
    assert verdict.startswith("no difference. The block of pretrained was practically not in use: its block adds 10 %")
    assert verdict.endswith("So this says nothing about pre-training.")
    assert with_treatment(compared("random", "none"), diagnostics).verdict == "no difference."
    assert "block of pretrained" in with_treatment(compared("pretrained", "none"), diagnostics).verdict
