# SPDX-License-Identifier: Apache-2.0
"""Whether the plan of a bundle is that of a list and of given options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_llmboost.bundle.content import read_config
from monai_llmboost.bundle.contract import Option
from monai_llmboost.bundle.words import plain_text
from monai_llmboost.data.labelled import Columns, read_cases
from monai_llmboost.inspection.plans.lines import DESCRIPTION

# The options of a training that are lines of its plan if they are given.
LINES = (
    "image_column", "label_column", "split_column", "fold_column", "group_column", "mask_column", "case_column",
    "positive_class", "structures", "folds", "fold", "test_fraction", "split_seed", "leave_out", "orientation",
    "spacing_mm", "crop", "foreground_above", "margin_mm", "image_shape", "intensity", "intensity_range",
    "augmentation", "batch_size", "epochs", "hidden_size", "num_blocks", "stem_stride", "filters", "missing_channels",
    "volume", "min_slices", "gantry_tilt",
)  # fmt: skip


def plan_is_current(file: Path, data: str | Path, given: Mapping[str, Any]) -> bool:
    """Return whether a plan is there, was made of this list as it is now, and has the given lines.

    Args:
        file: ``configs/plan.json`` of a bundle.
        data: the list.
        given: options by key; those that are no lines of a plan do not count.
    """
    if not file.is_file():
        return False
    content = read_config(file)
    plan: dict[str, Any] = {key: _plain(value) for key, value in content.items()}
    if Path(str(plan.get("data"))) != Path(data).expanduser().absolute():
        return False
    if any(plan.get(key) != value for key, value in given.items() if key in LINES and key != Option.LEAVE_OUT_CASES):
        return False
    if not {*given.get(Option.LEAVE_OUT_CASES, ())} <= {*plan.get(Option.LEAVE_OUT_CASES, ())}:
        return False
    columns = {name: plan[f"{name}_column"] for name in Columns.__dataclass_fields__ if plan.get(f"{name}_column")}
    return read_cases(data, Columns(**columns)).digest == plan.get(DESCRIPTION, {}).get("list")


def _plain(value: Any) -> Any:
    """Return a value of a plan without the encoding of its text."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return plain_text(value) if isinstance(value, str) else value
