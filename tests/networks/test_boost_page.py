# SPDX-License-Identifier: Apache-2.0
"""The page on boosters in MONAI's networks: its script runs, and its table is that of the joints."""

import re

import torch
from conftest import ROOT
from monai_networks import ROWS

from monai_llmboost.networks import boost
from monai_llmboost.networks.insertion import BoostedModule
from monai_llmboost.networks.joints import JOINTS

PAGE = (ROOT / "docs" / "how-to" / "any-network.md").read_text(encoding="utf-8")


def cell(joint):
    """A joint as the table shows it: patterns are shortened."""
    if joint is None:
        return ""
    name = joint.name.replace(r"(\.submodule\.1)*", ".…").replace(r"\d+", "N").replace("\\", "")
    return f"{'before ' if joint.before else ''}`{name}`"


def test_the_script_runs():
    script, classifier = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in script.splitlines() if "boost" in line and "import" not in line]) <= 4
    assert script.count("64, 64, 64") == 2
    torch.manual_seed(0)
    scope = {}
    exec(script.replace("64, 64, 64", "64, 32, 32"), scope)  # a quarter of the voxels
    assert scope["boost"] is boost
    for name, form in ("segmentation", "map"), ("classifier", "vector"):
        (module,) = [part for part in scope[name].modules() if isinstance(part, BoostedModule)]
        assert module.form == form
        assert module.booster.decode.weight.abs().sum() > 0, "trained: it starts at zero"
    exec(classifier, scope)
    assert scope["network"].class_names.names() == ["benign", "malignant"]
    assert isinstance(scope["network"].pooled, BoostedModule)


def test_the_table_is_that_of_the_joints():
    rows = re.findall(r"^\| (\w+) \| (.*?) \| (map|tokens) \|(?: (.*?))? ?\|$", PAGE, re.MULTILINE)
    assert {name: tuple(rest) for name, *rest in rows} == {
        name: (cell(joints.deepest), ROWS[name].form, cell(joints.pooled)) for name, joints in JOINTS.items()
    }
