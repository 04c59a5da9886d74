# SPDX-License-Identifier: Apache-2.0
"""The plan of a study on disk, with digests of its files; resuming requires the same plan and files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_llmboost.artifacts.digests import file_digest, text_digest
from monai_llmboost.bundle import Option
from monai_llmboost.studies.plan import OWN, Plan
from monai_llmboost.studies.run_folder import write_json

# Key in the plan's file: digests of the configs and of the weight files.
DIGESTS = "digests"
# This key in the first version; only files are compared, because the form of our bundle's configs has changed.
FIRST_DIGESTS = "contents"
# Floors may be added to a study and left out again, because no other run depends on them.
FLOORS = "floors"
# Keys that the study sets for each run, and keys that only contain paths.
IGNORED = frozenset(OWN) - {Option.FOLDS, Option.FOLD, Option.LEARNING_RATE}
# Extensions of weight files anywhere in a config; the key ``block`` may name any file.
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ts")
DIGITS = 16


def keep_plan(plan: Plan, path: Path) -> None:
    """Write a plan and the digests of its files, or compare them with an existing file.

    Raises:
        ValueError: the existing file differs or is not a plan; the message names the option, the key or the file.
    """
    asked, contents = plan.as_dict(), contents_of(plan)
    if not path.exists():
        write_json(path, {**asked, DIGESTS: contents})
        return
    begun = _read(path)
    first = begun.pop(FIRST_DIGESTS, {})
    known = begun.pop(DIGESTS, {**contents, "files": first.get("files", {})})
    for name in sorted((begun.keys() | asked.keys()) - {FLOORS}):
        if begun.get(name) != asked.get(name):
            raise ValueError(
                f"the study in {path.parent} was begun with {name} {begun.get(name)!r}, not {asked.get(name)!r}: "
                "resume it with its own options, or give another --output"
            )
    check_contents(path.parent, known, contents)
    # Add the digests of files that did not exist before.
    write_json(path, {**asked, DIGESTS: {**known, "files": {**contents["files"], **known["files"]}}})


def _read(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        plan = None
    if not isinstance(plan, dict):
        raise ValueError(f"{path} is not the plan of a study: give another --output")
    return plan


def contents_of(plan: Plan) -> dict[str, dict[str, str]]:
    """Return digests: ``"configs"``, by top-level key in all arms and jobs; ``"files"``, by name of the weight file."""
    contents = {f"{arm} {job}": content for (arm, job), content in plan.contents.items()}
    keys = sorted({key for content in contents.values() for key in content} - {*IGNORED, *plan.options})
    configs = {key: {name: content.get(key) for name, content in contents.items()} for key in keys}
    named = sorted({file for content in (*contents.values(), plan.options) for file in _weight_files(content)})
    return {
        "configs": {key: text_digest(values)[:DIGITS] for key, values in configs.items()},
        "files": {file: file_digest(path) for file in named if (path := Path(file)).is_file()},
    }


def _weight_files(value: Any, key: str = "") -> Iterator[str]:
    """Yield the names of weight files in a config value, recursively."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _weight_files(one, str(name))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _weight_files(one, key)
    elif isinstance(value, (str, Path)) and (key == Option.BLOCK or str(value).endswith(WEIGHT_FILES)):
        yield str(value)


def check_contents(folder: Path, begun: Mapping[str, Any], asked: Mapping[str, Mapping[str, str]]) -> None:
    """Compare the digests at the start of a study with the present ones; missing files are not compared.

    Raises:
        ValueError: the digests differ; the message names the key or the file.
    """
    configs, files = begun.get("configs", {}), begun.get("files", {})
    for key in sorted(configs.keys() | asked["configs"].keys()):
        if configs.get(key) != asked["configs"].get(key):
            raise ValueError(
                f"the study in {folder} was begun with another {key!r} in the configs of its bundle: restore it, "
                "or give another --output"
            )
    for file in sorted(files.keys() & asked["files"].keys()):
        if files[file] != asked["files"][file]:
            raise ValueError(
                f"the study in {folder} was begun with another content of {file}: put that file back, or give "
                "another --output"
            )
