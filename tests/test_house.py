# SPDX-License-Identifier: Apache-2.0
"""The rules of the house: import order, names, what an import may bring, where text and numbers must agree."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUNDLE, ROOT

import monai_llmboost
from monai_llmboost.lazy import names_for_type_checkers

PACKAGE = ROOT / "monai_llmboost"
ORDER = [
    "lazy", "arguments", "deprecated", "precision", "ray_address", "artifacts", "bundle", "data", "llm", "adapters",
    "boosters", "networks", "tasks", "engines", "inference", "inspection", "studies", "command_line", "__main__",
]  # fmt: skip


def imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("monai_llmboost.")}
    return rooms


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_folder_imports_only_from_folders_before_it(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room != "__init__":
        assert imported_rooms(file) <= set(ORDER[: ORDER.index(room) + 1])


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("monai_llmboost", ["torch", "monai", "numpy"]),
        ("monai_llmboost.__main__", ["torch", "monai"]),
        ("monai_llmboost.data", ["torch", "monai"]),
        ("monai_llmboost.llm", ["torch"]),
        ("monai_llmboost.engines", ["torch", "monai"]),
        ("monai_llmboost.inference.run", ["torch", "monai", "numpy", "pydicom"]),
        ("monai_llmboost.inspection", ["torch", "monai"]),
        ("monai_llmboost.studies", ["torch", "monai"]),
        ("monai_llmboost.boosters", ["monai", "transformers"]),
    ],
)
def test_an_import_stays_light(module, unwanted):
    code = f"import sys, {module}; sys.exit(', '.join(set({unwanted}) & sys.modules.keys()) or None)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_names_of_llm_are_imported_without_monai():
    code = """
import sys
from monai_llmboost.llm import *
sys.exit(", ".join({"monai", "transformers", "huggingface_hub"} & sys.modules.keys()) or None)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


LAZY = [file for file in sorted(PACKAGE.rglob("__init__.py")) if "lazy_names(" in file.read_text()]


@pytest.mark.parametrize("file", LAZY, ids=lambda file: str(file.parent.relative_to(PACKAGE)))
def test_names_that_are_imported_on_first_use(file):
    module = importlib.import_module(".".join(file.parent.relative_to(ROOT).parts))
    names = names_for_type_checkers(module.__name__)
    assert sorted(names) == sorted(module.__all__)
    for name, place in names.items():
        assert getattr(module, name) is getattr(importlib.import_module(place), name)
    assert set(module.__all__) <= set(dir(module))
    submodules = {path.stem for path in file.parent.glob("*.py")} | {
        path.parent.name for path in file.parent.glob("*/*.py")
    }
    assert not submodules & set(names), "an imported submodule would take the place of the name"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_no_public_name_is_also_a_name_of_monai():
    """MONAI resolves short names over all modules that begin with "monai", and its own would win silently."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.bundle.config_item import ComponentLocator

        from monai_llmboost import boosters, data, engines, inference, llm, networks, tasks

        theirs = {
            name
            for name, modules in ComponentLocator()
            ._find_classes_or_functions(ComponentLocator()._find_module_names())
            .items()
            if any(not module.startswith("monai_llmboost") for module in modules)
        }
    rooms = (llm, boosters, networks, data, tasks, engines, inference)
    ours = {name for room in rooms for name in room.__all__ if name[0].isupper() or callable(getattr(room, name))}
    assert "ViT" in theirs, "MONAI's table was read"
    assert "ViT3D" in ours
    assert not ours & theirs


def test_train_and_inference_describe_one_network():
    configs = ROOT / "bundles" / BUNDLE / "configs"
    train, inference = (json.loads((configs / f"{name}.json").read_text()) for name in ("train", "inference"))
    # In inference, dataset is the scans, and trained_on the name of the data set that has the classes. The dtype of the
    # computation is float32 for training on a CPU, where it may be another one in inference.
    others = {
        "imports",
        "dataset",
        "dataset_dir",
        "batch_size",
        "class_names",
        "compute_dtype",
        "output_transforms",
        "initialize",
        "run",
    }
    shared = set(train) & set(inference) - others
    assert {"network_def", "booster", "frozen_block", "size", "hidden_size"} <= shared
    assert {key: train[key] for key in shared} == {key: inference[key] for key in shared}


def test_versions_agree():
    metadata = json.loads((ROOT / "bundles" / BUNDLE / "configs" / "metadata.json").read_text())
    assert metadata["required_packages_version"]["monai_llmboost"] == monai_llmboost.__version__
    assert metadata["version"] in metadata["changelog"]
    assert monai_llmboost.__version__ in (ROOT / "CHANGELOG.md").read_text()
