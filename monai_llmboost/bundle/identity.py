# SPDX-License-Identifier: Apache-2.0
"""The identity of a run: the text of its merged config, except for an explicit list of free keys, and its code.

Two runs with the same identity compute the same results. The identity uses the text of the config, never the objects
made from it, because two transforms with equal attributes may do different things.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from os import PathLike, fspath
from typing import Any

# Top-level keys that do not affect what a run does, and why. All other keys count, used or not.
FREE = {
    "bundle_root": "a place",
    "dataset_dir": "a place; cases are known by their own digests or by their names",
    "data": "a place; a list is known by the digest of what it says",
    "ckpt_dir": "a place; weights are known by their digest",
    "output_dir": "a place",
    "teacher": "a place; a teacher is known by the digest of its weights",
    "teacher_cache": "a place; its files are known by what they contain",
    "block": "a place; a block is known by its fingerprint",
    "download": "how files come to their place",
    "device": "where it runs; what follows from it, such as the dtype, is compared by value",
    "precision": "the dtype that it chooses is compared by value",
    "processes": "how processes that share the work find one another",
    "is_not_rank0": "which of these processes this is",
    "finalize": "what happens after the last result is written",
    "tracking": "display", "tracking_uri": "display", "experiment_name": "display", "run_name": "display",
    "save_execute_config": "display",
    "_meta_": "describes the bundle; what decides something is given to where it does",
    "_plan_": "describes the plan; the keys next to it are compared",
    "_trained_": "describes the training; the keys next to it are compared, and weights by their digest",
}  # fmt: skip
FREE_IN_TRAINING = {
    "epochs": "compared by name, as one of the options of a checkpoint",
    "resume": "how a run is started again",
    "network": "how network_def runs: on several GPUs, compiled; its weights are compared",
    "imports": "several processes or a user's own expressions need others",
    "num_workers": "speed",
    "cache": "speed",
    "cache_dir": "speed",
}
FREE_IN_PREDICTION = {
    "batch_size": "speed and memory",
    "num_workers": "speed",
    "rank": "which of several processes this is",
    "world_size": "how many processes share the cases",
    "only": "which cases, not what is predicted for them",
    "follow_links": "which cases, not what is predicted for them",
    "salt": "a secret, which a digest would help to guess; hidden names never match others",
    "view": "display", "report": "display", "columns": "display",
    "overwrite": "what happens to earlier results",
}  # fmt: skip
# Arguments of a data set or loader that affect how fast cases are loaded, not which cases.
FREE_ARGUMENTS = (
    "num_workers", "num_init_workers", "cache_rate", "cache_num", "copy_cache", "runtime_cache", "pin_memory",
    "persistent_workers", "prefetch_factor", "progress",
)  # fmt: skip
# Components that only log or display; adding or removing one does not change a run.
FREE_COMPONENTS = (
    "StatsHandler", "TensorBoardStatsHandler", "TensorBoardImageHandler", "TensorBoardCurves", "LearningCurves",
    "ProgressBar", "MLFlowHandler", "ClearMLStatsHandler", "ClearMLImageHandler", "MetricLogger",
)  # fmt: skip
REFERENCE = re.compile(r"@[\w#:]+")
# What makes the value of an expression depend on more than its text: the environment, files, the time, chance.
OUTSIDE = re.compile(
    r"\b(?:environ|getenv|open|load\w*|read\w*|fromfile|genfromtxt|urlopen|glob|listdir|exists|now|time|rand\w*|argv)\b"
)


def running_config() -> dict[str, Any]:
    """Return the merged config that is creating the caller; an empty config for code without a config.

    MONAI passes a component its arguments, but not the surrounding config, whether ``python -m monai.bundle run``,
    ``create_workflow`` or MonaiAlgo started it. A macro (``%``) in the config would create the copied components a
    second time, and expressions see only finished items. So this function looks up the parser in the call stack.
    """
    from monai.bundle import ConfigParser

    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), ConfigParser):
        frame = frame.f_back
    config = {} if frame is None else frame.f_locals["self"].config
    return dict(config) if isinstance(config, Mapping) else {}


@dataclass(frozen=True)
class RunConfig:
    """The part of a config that counts for the identity of a run.

    Args:
        values: plain JSON values by option, such as ``"network_def#dropout_rate"``. Their order counts because
            transforms and handlers are created in the order of their names in a config; keys of the config and
            arguments of a component, whose order has no effect, are sorted.
        objects: types of Python objects by option; they cannot be compared.
    """

    values: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, str] = field(default_factory=dict)


def counting_config(config: Mapping[str, Any], free: Collection[str] = ()) -> RunConfig:
    """Return the part of a merged config that counts for the identity of a run.

    Args:
        config: from :func:`running_config`.
        free: top-level keys that do not count, in addition to :data:`FREE`.
    """
    left_out = {*FREE, *free}
    values: dict[str, Any] = {}
    objects: dict[str, str] = {}
    for name, value in _leaves({key: value for key, value in config.items() if key not in left_out}):
        try:
            values[name] = as_plain(value)
        except TypeError:
            objects[name] = type(value).__qualname__
    return RunConfig(values, objects)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the key and value of each leaf of a config."""
    if isinstance(value, Mapping) and value:
        parts = _parts(value, sort=not name or "_target_" in value)
    elif isinstance(value, (list, tuple)) and value:
        parts = {str(number): part for number, part in enumerate(part for part in value if not _only_shows(part))}
    else:
        yield name, value
        return
    for key, part in parts.items():
        yield from _leaves(part, f"{name}#{key}" if name else key)


def _parts(value: Mapping[Any, Any], sort: bool) -> dict[str, Any]:
    """Return the parts of a mapping that count, by key."""
    items: Iterable = sorted(value.items(), key=_name) if sort else value.items()
    free = FREE_ARGUMENTS if _loads(value) else ()
    return {str(key): part for key, part in items if key not in free and not _only_shows(part)}


def _name(item: tuple[Any, Any]) -> str:
    return str(item[0])


def _target(component: Any) -> str:
    target = component.get("_target_") if isinstance(component, Mapping) else None
    return target if isinstance(target, str) else ""


def _loads(component: Any) -> bool:
    """Return whether a component is a data set or a loader, by its name."""
    return _target(component).endswith(("Dataset", "Loader", "LoaderBase"))


def _only_shows(component: Any) -> bool:
    """Return whether a component is one of MONAI's, Ignite's or ours that only shows what happens."""
    package, _, name = _target(component).rpartition(".")
    return name in FREE_COMPONENTS and package.partition(".")[0] in ("", "monai", "ignite", "monai_llmboost")


def as_plain(value: Any) -> Any:
    """Return a value of a config, or a Python object, as an equivalent plain JSON value.

    Raises:
        TypeError: an object that JSON cannot describe completely.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, PathLike):
        return fspath(value)
    module = type(value).__module__
    if module == "torch" and type(value).__name__ in ("device", "dtype"):
        return str(value)
    if module == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return as_plain(value.item())
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): as_plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(part) for part in value]
    raise TypeError(f"{type(value).__qualname__} is no plain value")


def reads_outside(config: Mapping[str, Any], free: Collection[str] = ()) -> dict[str, str]:
    """Return the expressions of a config whose value depends on more than its text, by key.

    Args:
        config: from :func:`running_config`.
        free: top-level keys that do not count, in addition to :data:`FREE`.
    """
    values = counting_config(config, free).values
    expressions = {key: text for key, text in values.items() if isinstance(text, str) and text.startswith("$")}
    return {key: text for key, text in expressions.items() if OUTSIDE.search(REFERENCE.sub("", text))}
