# SPDX-License-Identifier: Apache-2.0
"""The options of a bundle as a table for people: name, default, jobs, and a line of ``configs/options.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_llmboost.bundle.content import merged, read_config
from monai_llmboost.bundle.contract import CONFIGS, MULTI_GPU
from monai_llmboost.bundle.effect import ENTRY_POINTS
from monai_llmboost.bundle.find import JOBS, job_configs
from monai_llmboost.bundle.options import Rules

# A default that is a longer expression is only said to be computed.
LONGEST_DEFAULT = 30


@dataclass(frozen=True)
class BundleOption:
    """An option of a bundle.

    Args:
        name: the key, without ``--``.
        default: as a person reads it.
        jobs: the jobs that have it.
        meaning: one line; empty if the bundle has none.
    """

    name: str
    default: str
    jobs: tuple[str, ...]
    meaning: str


def bundle_options(bundle: Path, jobs: Sequence[str] = tuple(JOBS)) -> list[BundleOption]:
    """Return the options of some jobs of a bundle, in the order of their descriptions, others after them.

    Raises:
        ValueError: broken JSON.
        OSError: a config that is not there.
    """
    contents = {job: merged(job_configs(bundle, job)) for job in jobs}
    meanings = {name: rule.help for name, rule in Rules(bundle / CONFIGS).declared.items()}
    internal = _of_processes(bundle)
    names = [key for content in contents.values() for key, value in content.items() if _is_option(key, value)]
    order = {name: number for number, name in enumerate(dict.fromkeys([*meanings, *names]))}
    return [
        _option(name, contents, meanings.get(name, ""))
        for name in sorted(set(names) - internal, key=lambda name: order[name])
    ]


def _of_processes(bundle: Path) -> set[str]:
    """Return the keys that the overlays for several processes set, which are no options."""
    files = sorted((bundle / CONFIGS).glob(MULTI_GPU.format("*")))
    return {key for file in files for key in read_config(file) if "#" not in key} - {"device", "network"}


def _is_option(key: str, value: Any) -> bool:
    structured = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict) for one in value))
    if isinstance(value, str) and value.startswith("@"):
        return False  # another name of an item
    return not structured and "#" not in key and not key.startswith("_") and key not in ENTRY_POINTS


def _option(name: str, contents: Mapping[str, Mapping[str, Any]], meaning: str) -> BundleOption:
    jobs = tuple(job for job, content in contents.items() if name in content)
    by_default: dict[str, list[str]] = {}
    for job in jobs:
        by_default.setdefault(_readable(contents[job][name]), []).append(job)
    first, *others = by_default
    default = "; ".join([first, *(f"{value} in {', '.join(by_default[value])}" for value in others)])
    return BundleOption(name, default, jobs, meaning)


def _readable(value: Any) -> str:
    if isinstance(value, str) and value.startswith("$"):
        text = value[1:].replace("@", "")
        return text if len(text) <= LONGEST_DEFAULT else "computed"
    return "none" if value is None else str(value)
