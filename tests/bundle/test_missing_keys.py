# SPDX-License-Identifier: Apache-2.0
"""A bundle without a key that a command reads is refused by the name of the key."""

import json

import pytest
from conftest import BUNDLE

from monai_llmboost.__main__ import main
from monai_llmboost.bundle import copy_bundle


@pytest.mark.parametrize(
    ("file", "key", "words"),
    [
        ("train", "network_def", ["cost"]),
        ("train", "batch_size", ["cost"]),
        ("train", "network", ["study", "--arms", "none,mlp", "--output", "study"]),
        ("train", "train", ["study", "--arms", "none,mlp", "--output", "study"]),
        ("inference", "cases", ["predict", "--input", ".", "--output", "out"]),
        ("inference", "batch_size", ["predict", "--input", ".", "--output", "out", "--batch-size", "2"]),
        ("inference", "output_dir", ["predict", "--input", ".", "--dry-run"]),
    ],
)
def test_the_key_is_named(tmp_path, monkeypatch, capsys, file, key, words):
    copy_bundle(BUNDLE, tmp_path / "mine")
    path = tmp_path / "mine" / "configs" / f"{file}.json"
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["monai-llmboost", *words, "--bundle", "mine"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code != 0
    assert f"the bundle mine has no key {key!r}, which {words[0]} reads" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
