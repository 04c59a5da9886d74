# SPDX-License-Identifier: Apache-2.0
"""What of a trained folder is published: a ``model.json`` without places, and the check that it is only data.

The configs of a bundle are code. So a network from the hub is created by the configs of the bundle in this package, and
its ``model.json`` may only choose the overlays of that bundle and set values: numbers, switches and texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_llmboost.bundle.content import merged
from monai_llmboost.bundle.contract import CLASS_NAMES, TRAINED, Option
from monai_llmboost.bundle.find import job_configs
from monai_llmboost.bundle.trained import TrainedFolder
from monai_llmboost.bundle.words import is_computed, plain_text

INFERENCE = "inference"
# Options of the data that name no place.
PUBLIC_DATA = (Option.DATASET, Option.FOLDS, Option.FOLD, Option.SEED)
# A path of one machine in a text or an expression.
PLACE = re.compile(r"(?:^|['\"\s])(?:/\w|~/|[A-Za-z]:\\|\\\\)")


def public_record(trained: TrainedFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the description of a training and its config for others: no folder, and only the name of a block file.

    Raises:
        ValueError: a text in it is a path of this machine.
    """
    about = dict(trained.about)
    config = {key: value for key, value in trained.content.items() if key != TRAINED}
    about["data"] = {key: value for key, value in trained.data.items() if key in PUBLIC_DATA}
    if (file := trained.block_file) is not None:
        about["block"] = {**about["block"], "file": file.name}
        config[Option.BLOCK] = file.name
    for key, text in _texts({TRAINED: about, **config}):
        if PLACE.search(plain_text(text)):
            raise ValueError(
                f"{trained.file} has a path of this machine in {key} ({text!r}), which would be published: train with "
                "a name in its place, or edit a copy of the folder"
            )
    return about, config


def check_only_data(trained: TrainedFolder, bundle: Path) -> None:
    """Check that a record from others brings no code: it equals the bundle's own configs, except for plain values.

    Args:
        trained: the record.
        bundle: the bundle of this package.

    Raises:
        ValueError: a component or an expression that the bundle's configs do not have.
    """
    arm, network = trained.choose(bundle, None, None)
    own = merged(job_configs(bundle, INFERENCE, arm, network))
    for key, value in trained.content.items():
        there = own.get(key) if key != CLASS_NAMES else None
        if key != TRAINED and (strange := next(_code(key, value, there), None)) is not None:
            raise ValueError(
                f"{trained.file} is not used, because {strange} is code that the bundle {bundle.name} of this package "
                "does not have: if you trust its author, download the folder and use it as a bundle"
            )


def _code(key: str, value: Any, own: Any) -> Iterator[str]:
    """Yield the keys of components and expressions that are not the bundle's own."""
    if _same(value, own):
        return
    if isinstance(value, Mapping):
        there = own if isinstance(own, Mapping) else {}
        for name, part in value.items():
            yield from _code(f"{key}#{name}", part, there.get(name))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _code(f"{key}#{number}", part, None)
    last = key.rpartition("#")[2]
    if last.startswith(("_", "+")) or (isinstance(value, str) and is_computed(value) and plain_text(value) == value):
        yield key


def _same(value: Any, own: Any) -> bool:
    both = (text.replace("::", "#") if isinstance(text, str) else text for text in (value, own))
    one, other = both
    return type(one) is type(other) and one == other


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _texts(part, f"{key}#{name}" if key else str(name))
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, key)
