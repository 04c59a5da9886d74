# SPDX-License-Identifier: Apache-2.0
"""The key of a run follows weights, block, config, code and versions, and nothing else."""

import json
import re

import pytest
import torch

from monai_llmboost.artifacts.digests import file_digest, files_digest
from monai_llmboost.inference import Journal, run_facts, run_provenance
from monai_llmboost.inference.provenance import describe_block, versions
from monai_llmboost.inference.rows import Row
from monai_llmboost.llm import frozen_block


def test_a_scan_of_several_files_does_not_depend_on_their_names(tmp_path):
    for name, content in {"a": "1", "b": "2", "c": "2"}.items():
        (tmp_path / name).write_text(content)
    a, b, c = (tmp_path / name for name in "abc")
    assert files_digest([a]) == file_digest(a)
    assert files_digest([a, b]) == files_digest([c, a]) != files_digest([a])


CONFIG = {"epochs": 1, "transforms": {"scale": {"_target_": "ScaleIntensityd", "keys": "image"}}, "bundle_root": "."}


def test_the_key_follows_what_decides_and_nothing_else(tmp_path, monkeypatch):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    network = torch.nn.Linear(2, 2)
    usual = {"weights": weights, "network": network, "options": {"amp": False}, "config": CONFIG}
    key = run_provenance(**usual)["key"]
    assert run_provenance(**usual, metadata={"task": "other"}, device="meta")["key"] == key
    assert run_provenance(**{**usual, "config": {**CONFIG, "bundle_root": "/other", "num_workers": 3}})["key"] == key
    assert run_provenance(**{**usual, "network": torch.nn.Linear(2, 2)})["key"] == key, (
        "weights are known by their file"
    )
    assert run_provenance(**{**usual, "options": {"amp": True}})["key"] != key
    assert run_provenance(**{**usual, "config": {**CONFIG, "epochs": 2}})["key"] != key
    monkeypatch.setattr("monai_llmboost.inference.provenance.versions", lambda *_: {"monai": "0"})
    assert run_provenance(**usual)["key"] != key
    monkeypatch.undo()
    assert run_provenance(**usual)["key"] == key
    weights.write_bytes(b"others")
    assert run_provenance(**usual)["key"] != key
    json.dumps(run_provenance(**usual))


def test_the_block_counts_wherever_a_network_has_it(tmp_path):
    networks = [torch.nn.Sequential(torch.nn.Linear(1, 1), frozen_block("random", seed=seed)) for seed in (0, 1)]
    one, other = (run_provenance(tmp_path / "none", network, config=CONFIG) for network in networks)
    assert one["block"]["block"].startswith("random seed 0")
    assert one["key"] != other["key"]
    assert describe_block(torch.nn.Linear(1, 1)) is None


def test_the_code_of_a_bundle_counts(tmp_path, monkeypatch):
    """Not that of another bundle, whose scripts Python still finds after a run in this process."""
    other = tmp_path / "other" / "scripts"
    other.mkdir(parents=True)
    for name in ("__init__.py", "rods.py"):
        (other / name).write_text("")
    monkeypatch.syspath_prepend(other.parent)
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "net.py"
    keys = []
    for text in ("a = 1", "a = 2"):
        script.write_text(text)
        config = {"net": {"_target_": "scripts.net.Net"}, "bundle_root": str(tmp_path)}
        made = run_provenance("x", torch.nn.Linear(1, 1), config=config)
        assert list(made["code"]) == ["scripts/net.py"]
        keys.append(made["key"])
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"inferer": torch.nn.ReLU()}, "inferer is a ReLU object of Python"),
        ({}, "there is no config"),
        (None, "there is no config"),
    ],
)
def test_a_run_that_cannot_be_compared_has_a_key_of_its_own(config, found):
    one, other = (run_provenance("x", torch.nn.Linear(1, 1), config=config)["key"] for _ in range(2))
    assert one != other
    assert one.startswith("only this run: ")
    assert re.search(found, one)


def test_no_text_of_the_config_is_written_where_names_are_hidden():
    made = run_provenance("x", torch.nn.Linear(1, 1), config={**CONFIG, "salt": "secret", "where": "/patients/Meier"})
    assert "Meier" not in json.dumps(made)
    assert made["config"] == {}
    other = run_provenance("x", torch.nn.Linear(1, 1), config={**CONFIG, "salt": "other", "where": "/patients/Meier"})
    assert made["key"] == other["key"], "which would help to guess it"


def test_an_option_that_is_no_plain_value_is_refused():
    with pytest.raises(
        ValueError, match="the option 'steps' must be a plain value, such as a number or a text, not ReLU"
    ):
        run_provenance("x", torch.nn.Linear(1, 1), {"steps": torch.nn.ReLU()}, config=CONFIG)


def test_the_name_of_an_earlier_version_still_works():
    with pytest.warns(DeprecationWarning, match="run_facts is deprecated: use monai_llmboost.inference.run_provenance"):
        made = run_facts("x", torch.nn.Linear(1, 1), {"inferer": torch.nn.ReLU()}, {"amp": False}, {"task": "t"}, "cpu")
    assert (made["task"], made["options"]) == ("t", {"amp": False})
    assert versions(["monai", "nothing-of-this-name"]).keys() == {"monai"}


def test_rows_of_a_run_that_cannot_be_compared_are_not_continued(tmp_path):
    config = {"inferer": torch.nn.ReLU()}
    one, other = (run_provenance("x", torch.nn.Linear(1, 1), config=config)["key"] for _ in range(2))
    journal = Journal(tmp_path, one)
    journal.open()
    journal.append([Row("a.nii")])
    journal.close()
    assert list(journal.rows()) == ["a.nii"]
    told = (
        r"made with what cannot be compared \(inferer is a ReLU object of Python\): give another folder, or --overwrite"
    )
    for key in (other, "a digest"):
        with pytest.raises(ValueError, match=told):
            Journal(tmp_path, key).rows()
