# SPDX-License-Identifier: Apache-2.0
"""What the files that a study names hold, so that it is not continued with others under the same names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_llmboost.artifacts.digests import file_digest, text_digest
from monai_llmboost.bundle import merged
from monai_llmboost.studies.plan import Plan

JOBS = ("train", "evaluate")
# Keys that the study sets in every run, and those that only say where something lies.
IGNORED = ("dataset", "seed", "block_seed", "resume", "split", "weights", "ckpt_dir", "output_dir", "bundle_root")
# Endings of files of weights, wherever in a config they are named; the key ``block`` may name any file.
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ts")
DIGITS = 16


def contents_of(plan: Plan) -> dict[str, dict[str, str]]:
    """Return digests by name: ``"configs"``, a top-level key in all arms and jobs; ``"files"``, a file of weights."""
    contents = {f"{arm} {job}": merged(plan.configs(arm, job)) for arm in plan.arms for job in JOBS}
    keys = sorted({key for content in contents.values() for key in content} - {*IGNORED, *plan.options})
    configs = {key: {name: content.get(key) for name, content in contents.items()} for key in keys}
    named = sorted({file for content in (*contents.values(), plan.options) for file in _files(content)})
    return {
        "configs": {key: text_digest(values)[:DIGITS] for key, values in configs.items()},
        "files": {file: file_digest(path) for file in named if (path := Path(file)).is_file()},
    }


def _files(value: Any, key: str = "") -> Iterator[str]:
    """Yield the names of files of weights in a config value, in depth."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _files(one, str(name))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _files(one, key)
    elif isinstance(value, (str, Path)) and (key == "block" or str(value).endswith(WEIGHT_FILES)):
        yield str(value)


def check_contents(folder: Path, begun: Mapping[str, Any], asked: Mapping[str, Mapping[str, str]]) -> None:
    """Compare the contents that a study was begun with to those of now; a file that is gone is not compared.

    Raises:
        ValueError: they differ; the message names the key or the file.
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
