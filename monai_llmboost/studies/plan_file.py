# SPDX-License-Identifier: Apache-2.0
"""The plan of a study on disk, with digests of its files; a study is resumed or grown with the same files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from monai_llmboost.artifacts.digests import file_digest, text_digest
from monai_llmboost.bundle import Option
from monai_llmboost.studies.plan import Plan
from monai_llmboost.studies.plan_checks import OWN
from monai_llmboost.studies.run_folder import write_json

# Key in the plan's file: digests of the configs and of the weight files.
DIGESTS = "digests"
# This key in the first version; only files are compared, because the form of our bundle's configs has changed.
FIRST_DIGESTS = "contents"
# Floors may be added to a study and left out again, because no other run depends on them.
FLOORS = "floors"
# Parts of a plan that may grow, because earlier runs do not depend on them.
GROWING = ("arms", "datasets", "references", "label_fractions")
# Keys that the study sets for each run, and keys that only contain paths.
IGNORED = frozenset(OWN) - {Option.FOLDS, Option.FOLD, Option.LEARNING_RATE}
# Extensions of weight files anywhere in a config; the key ``block`` may name any file.
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ts")
DIGITS = 16


def keep_plan(plan: Plan, path: Path, costs: Path | None = None) -> None:
    """Write a plan and the digests of its files, or compare them with an existing file.

    A plan may have more seeds, arms, data sets and references than the existing one, and nothing else may differ.

    Args:
        plan: the plan.
        path: its file.
        costs: file of the measured costs, which is removed if other arms or another first data set must be measured.

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
    begun = {**_defaults(), **begun}
    for name in sorted((begun.keys() | asked.keys()) - {FLOORS}):
        _check_grown(path.parent, name, begun.get(name), asked.get(name))
    # Configs are compared for the arms that both have.
    of_begun = contents_of(plan, begun["arms"]) if begun["arms"] != asked["arms"] else contents
    check_contents(path.parent, known, {**of_begun, "files": contents["files"]})
    if costs is not None and (begun["arms"], begun["datasets"][0]) != (asked["arms"], asked["datasets"][0]):
        costs.unlink(missing_ok=True)  # before the plan is replaced, so that an interruption leaves no wrong costs
    # Add the digests of files that did not exist before.
    write_json(path, {**asked, DIGESTS: {**contents, "files": {**contents["files"], **known["files"]}}})


def _defaults() -> dict[str, Any]:
    """Return the defaults of a plan as JSON, for plans of versions without some of its keys."""
    values = {each.name: each.default for each in fields(Plan) if each.default is not MISSING}
    values |= {each.name: each.default_factory() for each in fields(Plan) if each.default_factory is not MISSING}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _check_grown(folder: Path, name: str, begun: Any, asked: Any) -> None:
    """Check that a part of a plan is equal to the one at the start of the study, or has more.

    Raises:
        ValueError: it has less, another order or another value.
    """
    if begun == asked or (name == "seeds" and asked > begun) or (name == "blocks" and begun.items() <= asked.items()):
        return
    advice = "give another --output"
    if name in GROWING:
        removed = [str(each) for each in begun if each not in asked]
        had, given = (", ".join(map(str, values)) for values in (begun, asked))
        if removed:
            raise ValueError(
                f"the study in {folder} was begun with {name} {had}, so {', '.join(removed)} cannot be left out: name "
                f"them too, or {advice}"
            )
        if [each for each in asked if each in begun] == begun:
            return
        raise ValueError(
            f"the study in {folder} was begun with {name} in the order {had}, not {given}: keep this order, with "
            f"others before, between or after them, or {advice}"
        )
    if name == "seeds":
        raise ValueError(
            f"the study in {folder} was begun with seeds {begun}, which may become more, but not {asked}: give "
            f"--seeds {begun} or more, or {advice}"
        )
    raise ValueError(
        f"the study in {folder} was begun with {name} {begun!r}, not {asked!r}: resume it with its own options, or "
        f"{advice}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        plan = None
    if not isinstance(plan, dict):
        raise ValueError(f"{path} is not the plan of a study: give another --output")
    return plan


def contents_of(plan: Plan, arms: Iterable[str] | None = None) -> dict[str, dict[str, str]]:
    """Return digests: ``"configs"``, by top-level key in all arms and jobs; ``"files"``, by name of the weight file.

    Args:
        plan: the plan.
        arms: arms whose configs are read; ``None``: all.
    """
    wanted = plan.arms if arms is None else tuple(arms)
    contents = {f"{arm} {job}": content for (arm, job), content in plan.contents.items() if arm in wanted}
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
