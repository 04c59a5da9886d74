# SPDX-License-Identifier: Apache-2.0
"""What README and documentation show must exist: verbs, options, config files, names, paths, tables and numbers."""

import ast
import importlib
import json
import re
import shlex

import pytest
from conftest import BUNDLE, ROOT
from typer.main import get_command

from monai_llmboost.command_line.app import app

BUNDLE_FOLDER = ROOT / "bundles" / BUNDLE
OVERLAYS = BUNDLE_FOLDER.parent / "overlays"
README, CARD = ROOT / "README.md", BUNDLE_FOLDER / "docs" / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, CARD, ROOT / "benchmarks" / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
MONAI_OPTIONS = {"bundle_root", "config_file", "tracking"}
CONFIGS = [
    json.loads((BUNDLE_FOLDER / "configs" / f"{name}.json").read_text()) for name in ("train", "evaluate", "inference")
]
NETWORKS = [json.loads(file.read_text()) for file in sorted((BUNDLE_FOLDER / "configs" / "networks").glob("*.json"))]
KEYS = {key for config in (*CONFIGS, *NETWORKS) for key in config}


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def commands():
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").strip().splitlines():
                for part in re.split(r"&&|\|\|", line):
                    yield part.strip().replace("$BUNDLE", "BUNDLE")


def options(words):
    return {words[i].removeprefix("--"): words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}


def config_files(value):
    return ast.literal_eval(value) if value.startswith("[") else [value]


@pytest.mark.parametrize("command", sorted({c for c in commands() if "monai.bundle run" in c}))
def test_bundle_commands(command):
    given = options(shlex.split(command.partition("monai.bundle run")[2]))
    known = set()
    for file in config_files(given["config_file"]):
        if file.endswith("models/model.json"):  # which a training writes
            continue
        path = BUNDLE_FOLDER / re.sub(r"^(mine|BUNDLE)/", "", file)
        known |= {key.partition("#")[0] for key in json.loads(path.read_text())}
    assert set(given) - MONAI_OPTIONS <= known


OWN = re.compile(r"(?:^|\s|bin/)monai-llmboost\s+(?=\w)|-m monai_llmboost\s+")


@pytest.mark.parametrize("command", sorted({c for c in commands() if OWN.search(c) and "pip" not in c}))
def test_own_commands(command):
    verb, *words = shlex.split(OWN.split(command, maxsplit=1)[1])
    known = get_command(app).commands
    assert verb in known
    names = {option.removeprefix("--") for parameter in known[verb].params for option in parameter.opts}
    if verb in ("run", "predict", "cost", "study", "distil"):
        inference = verb == "predict" or words[0] == "inference"
        names |= {key.partition("#")[0] for config in (CONFIGS[2:] if inference else CONFIGS[:2]) for key in config}
    if verb == "distil" or "distil" in words:
        names |= {key.partition("#")[0] for key in json.loads((OVERLAYS / "distil.json").read_text())}
    assert {name.partition("#")[0] for name in options([*words, ""])} <= {*names, "help"}


def test_options_in_the_model_card_exist():
    table = text_of(CARD).partition("## Options")[2].partition("## Arms")[0]
    named = set(re.findall(r"`--(\w+)", table))
    assert len(named) > 20
    assert named <= KEYS


def test_every_option_is_in_the_model_card():
    table = text_of(CARD).partition("## Options")[2].partition("## Arms")[0]
    described = set(json.loads((BUNDLE_FOLDER / "configs" / "options.json").read_text()))
    assert described <= set(re.findall(r"`--(\w+)", table))


def test_defaults_in_the_model_card_are_those_of_the_config():
    train = CONFIGS[0]
    card = text_of(CARD)
    numbers = [train[key] for key in ("batch_size", "learning_rate", "weight_decay", "seed")]
    assert f"| {', '.join(map(str, numbers))} |" in card
    assert f"| {train['epochs']}, {train['patience']} |" in card
    sizes = [train["size"] // 4, *(train[key] for key in ("hidden_size", "mlp_dim", "num_layers", "num_heads"))]
    assert f"| {', '.join(map(str, sizes))} |" in card


def test_the_python_of_the_readme_runs():
    (code,) = blocks(README, "python")
    scope = {}
    exec(code, scope)
    assert scope["logits"].shape == (2, 2)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_python_blocks_import_is_there(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("monai_llmboost"):
                module = importlib.import_module(node.module)
                assert {alias.name for alias in node.names} <= set(module.__all__), "public names only"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_the_pages_name_is_there(page):
    """Paths of the package and of the repository, and dotted names of the package."""
    text = text_of(page)
    for path in re.findall(r"`((?:monai_llmboost|docs|benchmarks|bundles|tests|\.ci)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(monai_llmboost(?:\.\w+)+)`", text):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute) or importlib.import_module(name), name


def test_the_readme_is_short_and_has_no_link_that_a_package_index_cannot_follow():
    text = text_of(README)
    assert len(text.splitlines()) < 150
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)]+)\)", text))


def test_the_tables_are_those_of_the_results(monkeypatch):
    """After a benchmark: python benchmarks/tables.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import read_results
    import tables
    import tables_of_costs
    import tables_of_studies

    pages = [text_of(page) for page in tables.PAGES]
    shown = [name for page in pages for name in re.findall(r"<!-- table: (\w+) -->", page)]
    assert sorted(shown) == sorted(tables.TABLES)
    assert [tables.update_tables(page) for page in pages] == pages
    gains = [
        tables_of_studies.select_comparison(data, "pretrained", "random")["intervals"]["both"][1]
        for data in tables_of_studies.read_study("study")["datasets"].values()
    ]
    for page in pages[0], pages[-1]:
        assert f"ains above {max(gains):.3f} AUC are excluded" in " ".join(page.split())
    operations = {
        row["side"]: row["operations / plain"]
        for row in read_results.select_rows("booster-cpu", **tables_of_costs.SHOWN, kind="forward")
    }
    words = " ".join(text_of(README).split())
    assert f"needs {operations['full way']:.2f} times the operations of the plain network" in words
    assert f"the same result with {operations['ours']:.2f} times" in words


def test_every_kind_of_refusal_is_described():
    from monai_llmboost.data.scans.scan import REFUSED_KINDS

    page = text_of(ROOT / "docs" / "how-to" / "troubleshooting.md")
    table = page.partition("| `refused_kind` |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == list(REFUSED_KINDS)


def test_the_layout_in_the_documentation_is_the_order_of_imports():
    from test_house import ORDER

    page = text_of(ROOT / "docs" / "about" / "architecture.md")
    rooms = re.findall(r"^\| `monai_llmboost/(\w+)/` \|", page, re.MULTILINE)
    assert rooms == [room for room in ORDER if (ROOT / "monai_llmboost" / room).is_dir()]
