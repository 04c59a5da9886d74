# SPDX-License-Identifier: Apache-2.0
"""The config that a run is begun with, as far as its results follow from it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from monai.bundle import ConfigParser

# Top-level keys that may change when a run is resumed: how long and where it runs, where files lie, what is logged. A
# block and the number of epochs are compared elsewhere, as is what a wrapper around the network changes.
FREE = (
    "epochs", "resume", "device", "network", "block", "is_not_rank0", "imports", "finalize", "bundle_root",
    "dataset_dir", "download", "ckpt_dir", "output_dir", "tracking", "tracking_uri", "experiment_name", "run_name",
    "save_execute_config",
)  # fmt: skip
# Arguments of any component that change how fast cases come, and not which.
SPEED = (
    "num_workers", "num_init_workers", "cache_rate", "cache_num", "copy_cache", "runtime_cache", "pin_memory",
    "persistent_workers", "prefetch_factor", "progress",
)  # fmt: skip
# Components that only show what happens; they come and go from lists of handlers.
LOGGING = (
    "StatsHandler", "TensorBoardStatsHandler", "TensorBoardImageHandler", "TensorBoardCurves", "LearningCurves",
    "ProgressBar", "MLFlowHandler", "ClearMLStatsHandler", "ClearMLImageHandler", "MetricLogger",
)  # fmt: skip


def config_of_run(compared_elsewhere: Collection[str] = ()) -> dict[str, Any]:
    """Return the merged config that the caller is being made from, overrides included; empty for code without one.

    MONAI gives a component its arguments and nothing of the config around them, however the bundle was started. So the
    parser is looked up among the callers.

    Args:
        compared_elsewhere: top-level keys to leave out.

    Returns:
        Plain JSON values by option, such as ``"network_def#dropout_rate"``.
    """
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), ConfigParser):
        frame = frame.f_back
    config = {} if frame is None else frame.f_locals["self"].config
    if not isinstance(config, Mapping):
        return {}
    left_out = {*FREE, *compared_elsewhere}
    kept = {key: value for key, value in config.items() if key not in left_out and not key.startswith("_")}
    return dict(_leaves(json.loads(json.dumps(kept, default=_text_of))))


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values that have no parts, by their places."""
    if isinstance(value, dict):
        parts = {key: part for key, part in value.items() if key not in SPEED}
    elif isinstance(value, list):
        parts = {str(number): part for number, part in enumerate(part for part in value if not _logs(part))}
    else:
        yield name, value
        return
    for key, part in parts.items():
        yield from _leaves(part, f"{name}#{key}" if name else key)


def _text_of(value: Any) -> str:
    """Describe an object of Python; by its type alone where its text is new in every process."""
    text = str(value)
    return type(value).__qualname__ if " at 0x" in text else text


def _logs(component: Any) -> bool:
    target = component.get("_target_") if isinstance(component, dict) else None
    return isinstance(target, str) and target.rpartition(".")[2] in LOGGING
