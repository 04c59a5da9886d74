# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from monai.transforms import Compose, LoadImaged, Orientationd, RandFlipd, Resized, ScaleIntensityRanged

from monai_llmboost.artifacts.digests import file_digest, files_digest
from monai_llmboost.inference.provenance import describe, run_facts


def steps(size=28, low=0):
    return Compose(
        [
            LoadImaged("image", reader="NibabelReader"),
            Orientationd("image", axcodes="RAS", labels=None),
            Resized("image", spatial_size=[size] * 3, mode="trilinear"),
            ScaleIntensityRanged("image", a_min=low, a_max=255, b_min=0.0, b_max=1.0, clip=True),
            RandFlipd("image", prob=0.5),
        ]
    )


def test_equal_steps_are_described_alike_in_every_process():
    code = "import sys; sys.path.insert(0, {!r}); from test_provenance import *; print(json.dumps(describe(steps())))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code.format(str(__file__).rpartition("/")[0])],
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == describe(steps())


@pytest.mark.parametrize("other", [{"size": 30}, {"low": -160}])
def test_other_steps_are_described_otherwise(other):
    assert describe(steps()) != describe(steps(**other))


def test_what_a_function_does_counts():
    one, other, same = (lambda x: x + 1), (lambda x: x + 2), (lambda x: x + 1)
    assert describe(one).split()[1] != describe(other).split()[1]
    assert describe(one).split()[1] == describe(same).split()[1]


def test_plain_types_come_out_and_circles_end():
    class Part:
        def __init__(self):
            self.me, self.array, self.kinds = self, np.arange(3), {torch.float32, torch.float16}
            self.random, self.dtype, self.inferer = np.random.RandomState(), np.dtype("f4"), SimpleInferer()

    told = describe(Part())
    assert json.loads(json.dumps(told)) == told
    assert told["me"] == "..."
    assert told["kinds"] == ["torch.float16", "torch.float32"]
    assert "random" not in told
    assert "0x" not in json.dumps(told), "no memory address"


def test_a_scan_of_several_files_does_not_depend_on_their_names(tmp_path):
    for name, content in {"a": "1", "b": "2", "c": "2"}.items():
        (tmp_path / name).write_text(content)
    a, b, c = (tmp_path / name for name in "abc")
    assert files_digest([a]) == file_digest(a)
    assert files_digest([a, b]) == files_digest([c, a]) != files_digest([a])


def test_the_key_follows_what_decides_and_nothing_else(tmp_path):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    network = torch.nn.Linear(2, 2)
    usual = {"weights": weights, "network": network, "steps": {"preprocessing": steps()}, "options": {"amp": False}}
    key = run_facts(**usual)["key"]
    assert run_facts(**usual, about={"task": "other"})["key"] == key
    assert run_facts(**{**usual, "network": torch.nn.Linear(2, 2)})["key"] == key, "weights are known by their file"
    for name, value in {
        "network": torch.nn.Linear(2, 3),
        "steps": {"preprocessing": steps(30)},
        "options": {"amp": True},
    }.items():
        assert run_facts(**{**usual, name: value})["key"] != key, name
    weights.write_bytes(b"others")
    assert run_facts(**usual)["key"] != key
    json.dumps(run_facts(**usual))
