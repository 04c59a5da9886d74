# SPDX-License-Identifier: Apache-2.0
"""Detection of options without effect: keys that no entry point of a job refers to, directly or indirectly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_llmboost.bundle.content import REFERENCE, check_place, merged, set_at, texts, value_at
from monai_llmboost.bundle.words import config_values

# The keys of a config that MONAI evaluates; everything they refer to has an effect.
ENTRY_POINTS = ("imports", "initialize", "run", "finalize")
# Options that users repeat from one command to the next, even if an arm does not use them.
REPEATED = ("block", "block_seed", "block_dtype", "bundle_root", "trained_on")
RELATIVE = re.compile(r"[@%](?:#|::)")
# The CPU as a string, an object or an expression.
CPU = re.compile(r"(?:\$?(?:torch\.)?device\(\s*['\"])?cpu\b")


def option_without_effect(
    jobs: Iterable[Sequence[Path]], options: Mapping[str, Any], exempt: Iterable[str] = ()
) -> str | None:
    """Return the first option that none of the jobs uses, or ``None``.

    Args:
        jobs: the config files of each job.
        options: keys and their values.
        exempt: keys that are not checked.
    """
    left = {
        key.replace("::", "#"): key
        for key, value in options.items()
        if value is not None and key not in (*REPEATED, *exempt)
    }
    for configs in jobs:
        if left:
            left = {key: left[key] for key in _without_effect(configs, options, left)}
    return next(iter(left.values()), None)


def uses_key(configs: Sequence[Path], key: str) -> bool:
    """Return whether a job uses a key, also one that users repeat from one command to the next."""
    return not _without_effect(configs, {key: "another value than the one in the configs"}, [key])


def check_amp(configs: Sequence[Path], options: Mapping[str, Any]) -> None:
    """Refuse the mixed precision of MONAI's engines on a CPU, where they ignore it.

    Raises:
        ValueError: ``amp`` is True, and the device is the CPU, or there is no GPU.
    """
    content = {**merged(configs), **options}
    if content.get("amp") is not True:
        return
    device = str(options.get("device") or content.get("device"))
    if CPU.match(device):
        got = f"--amp with the device {'cpu' if device.startswith('$') else device}"
    else:
        import torch  # takes seconds

        got = "" if torch.cuda.is_available() else "--amp, and there is none here"
    if got:
        raise ValueError(f"expected mixed precision on a GPU, got {got}: leave out --amp")


def _without_effect(configs: Sequence[Path], options: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    content = merged(configs)
    keys = [key for key in keys if value_at(content, key) is None or value_at(content, key) != options.get(key)]
    for given, value in config_values(content, options).items():
        key = given.replace("::", "#")
        try:
            check_place(content, key)
        except ValueError:
            return []  # check_options reports the error
        set_at(content, key, value)
    reached = _reached(content)
    if reached is None:
        return []
    return [
        key for key in keys
        if not any(f"{key}#".startswith(f"{one}#") or f"{one}#".startswith(f"{key}#") for one in reached)
    ]  # fmt: skip


def _reached(tree: Mapping[str, Any]) -> set[str] | None:
    """Return the ids that a job's entry points refer to; ``None`` if the text is not enough to know them."""
    entries = [entry for entry in ENTRY_POINTS if entry in tree]
    if not entries or any(RELATIVE.search(text) or text.startswith("%") for text in texts(tree)):
        return None
    return reached_from(tree, entries)


def reached_from(tree: Mapping[str, Any], entries: Iterable[str]) -> set[str]:
    """Return some ids of a merged config and all ids that they refer to, directly or indirectly."""
    todo = list(entries)
    reached: set[str] = set()
    while todo:
        one = todo.pop()
        if one in reached:
            continue
        reached.add(one)
        for text in texts(value_at(tree, one)):
            if text.startswith("$") or REFERENCE.fullmatch(text):
                todo += [found.replace("::", "#") for found in REFERENCE.findall(text)]
    return reached
