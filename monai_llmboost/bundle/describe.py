# SPDX-License-Identifier: Apache-2.0
"""A readable table of a bundle's options: name, default, jobs, and the help in ``configs/options.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_llmboost.bundle.content import merged, read_config
from monai_llmboost.bundle.contract import CONFIGS, MULTI_GPU
from monai_llmboost.bundle.effect import ENTRY_POINTS
from monai_llmboost.bundle.find import JOBS, job_configs, networks_of
from monai_llmboost.bundle.options import Rules

# A longer expression is shown as "computed".
LONGEST_DEFAULT = 30


@dataclass(frozen=True)
class BundleOption:
    """An option of a bundle.

    Args:
        name: the key, without ``--``.
        default: readable text of the default value.
        jobs: the jobs that have the option.
        meaning: one line of help; empty if the bundle has none.
    """

    name: str
    default: str
    jobs: tuple[str, ...]
    meaning: str


def bundle_options(bundle: Path, jobs: Sequence[str] = tuple(JOBS)) -> list[BundleOption]:
    """Return the options of some jobs of a bundle: first the described ones in their order, then the others.

    Raises:
        ValueError: invalid JSON.
        OSError: a config does not exist.
    """
    contents = {job: _with_networks(bundle, job) for job in jobs}
    meanings = {name: rule.help for name, rule in Rules(bundle / CONFIGS).declared.items()}
    internal = _of_processes(bundle)
    names = [key for content in contents.values() for key, value in content.items() if _is_option(key, value)]
    order = {name: number for number, name in enumerate(dict.fromkeys([*meanings, *names]))}
    return [
        _option(name, contents, meanings.get(name, ""))
        for name in sorted(set(names) - internal, key=lambda name: order[name])
    ]


def _with_networks(bundle: Path, job: str) -> dict[str, Any]:
    """Return the merged configs of a job, and the keys that only other networks have."""
    own = merged(job_configs(bundle, job))
    for network in networks_of(bundle):
        own = {**merged(job_configs(bundle, job, network=network)), **own}
    return own


def _of_processes(bundle: Path) -> set[str]:
    """Return the keys that the multi-GPU overlays set, which are not options."""
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
