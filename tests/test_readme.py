# SPDX-License-Identifier: Apache-2.0
"""What the READMEs show must exist: every verb, option and config file in their commands, and the Python runs."""

import ast
import json
import re
import shlex

import pytest
from conftest import BUNDLE, ROOT
from typer.main import get_command

from monai_llmboost.command_line.app import app

BUNDLE_FOLDER = ROOT / "bundles" / BUNDLE
PAGES = [ROOT / "README.md", BUNDLE_FOLDER / "docs" / "README.md", ROOT / "benchmarks" / "README.md"]
MONAI_OPTIONS = {"bundle_root", "config_file", "tracking"}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands():
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").strip().splitlines():
                for part in line.split("&&"):
                    yield part.strip().replace("$BUNDLE", "BUNDLE")


def options(words):
    return {words[i].removeprefix("--"): words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}


def config_files(value):
    return ast.literal_eval(value) if value.startswith("[") else [value]


@pytest.mark.parametrize("command", [c for c in commands() if "monai.bundle" in c])
def test_bundle_commands(command):
    given = options(shlex.split(command.partition("monai.bundle run")[2]))
    known = set()
    for file in config_files(given["config_file"]):
        path = BUNDLE_FOLDER / re.sub(r"^(mine|BUNDLE)/", "", file)
        known |= {key.partition("#")[0] for key in json.loads(path.read_text())}
    assert set(given) - MONAI_OPTIONS <= known


@pytest.mark.parametrize("command", [c for c in commands() if "monai-llmboost " in c and "pip" not in c])
def test_own_commands(command):
    verb, *words = shlex.split(command.partition("monai-llmboost ")[2])
    known = get_command(app).commands
    assert verb in known
    names = {option.removeprefix("--") for parameter in known[verb].params for option in parameter.opts}
    if verb in ("run", "cost", "study"):
        first = "inference.json" if words[0] == "inference" else "train.json"
        names |= {key for key in json.loads((BUNDLE_FOLDER / "configs" / first).read_text())}
    assert set(options(words)) <= names


def test_options_in_the_model_card_exist():
    table = PAGES[1].read_text().partition("## Options")[2].partition("## Arms")[0]
    keys = {
        key
        for name in ("train", "evaluate", "inference")
        for key in json.loads((BUNDLE_FOLDER / "configs" / f"{name}.json").read_text())
    }
    named = set(re.findall(r"`--(\w+)", table))
    assert len(named) > 20
    assert named <= keys


def test_defaults_in_the_model_card_are_those_of_the_config():
    train = json.loads((BUNDLE_FOLDER / "configs" / "train.json").read_text())
    card = PAGES[1].read_text()
    numbers = [train[key] for key in ("batch_size", "learning_rate", "weight_decay", "seed")]
    assert f"| {', '.join(map(str, numbers))} |" in card
    assert f"| {train['epochs']}, {train['patience']} |" in card
    sizes = [train["size"] // 4, *(train[key] for key in ("hidden_size", "mlp_dim", "num_layers", "num_heads"))]
    assert f"| {', '.join(map(str, sizes))} |" in card


@pytest.mark.parametrize("code", blocks(PAGES[0], "python"))
def test_python(code):
    scope = {}
    exec(code, scope)
    assert scope["logits"].shape == (2, 2) if "logits" in code else callable(scope["load"])


def test_what_the_pages_link_to_is_there():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), target


def test_the_tables_are_those_of_the_results(monkeypatch):
    """After a benchmark: python benchmarks/tables.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    pages = [page.read_text() for page in tables.PAGES]
    shown = [name for page in pages for name in re.findall(r"<!-- table: (\w+) -->", page)]
    assert sorted(shown) == sorted(tables.TABLES)
    assert [tables.with_tables(page) for page in pages] == pages
