# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of version 0.1.0 is compared with all of this run's config whose structure is the same."""

from pathlib import Path

import pytest

from monai_llmboost.bundle import RunConfig
from monai_llmboost.engines.resume import RunDescription

EARLIER = {
    "network_def#in_channels": 1,
    "network_def#hidden_size": 16,
    "optimizer#lr": "@learning_rate",
    "train#handlers#0#_target_": "X",
    "size": 8,
}
MINE = {
    **EARLIER,
    "train_handlers#schedule#_target_": "X",
    "image_shape#0": 1,
    "network_def#extra": [],
    "network_def#in_channels": "$@image_shape[0]",
}
del MINE["train#handlers#0#_target_"]


def check(**changes):
    run = RunDescription({}, config=RunConfig({**MINE, **changes}))
    run.check({"options": {}, "config": EARLIER}, Path("last.pt"))


def test_the_same_run_is_resumed():
    check()


@pytest.mark.parametrize(
    ("name", "value"), [("network_def#dropout_rate", 0.1), ("optimizer#betas#0", 0.5), ("size", 9), ("optimizer#lr", 1)]
)
def test_another_run_is_not(name, value):
    with pytest.raises(ValueError, match=f"begun with {name} "):
        check(**{name: value})


def test_a_copy_of_an_earlier_bundle_is_compared_as_a_whole():
    same = RunDescription({}, config=RunConfig(dict(EARLIER)))
    same.check({"options": {}, "config": EARLIER}, Path("last.pt"))
    other = RunDescription({}, config=RunConfig({**EARLIER, "train#handlers#0#_target_": "Y"}))
    with pytest.raises(ValueError, match="train#handlers#0#_target_"):
        other.check({"options": {}, "config": EARLIER}, Path("last.pt"))
