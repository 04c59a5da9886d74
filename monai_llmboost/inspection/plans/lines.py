# SPDX-License-Identifier: Apache-2.0
"""The lines of a plan: keys of a bundle's config with their values, each with its reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_llmboost.artifacts.files import atomic_text
from monai_llmboost.bundle.contract import PLAN_DESCRIPTION
from monai_llmboost.bundle.words import config_values

# The key of the plan that describes it, and is no config.
DESCRIPTION, FORMAT = PLAN_DESCRIPTION, 1
# Keys with text, in which MONAI must not compute anything.
TEXTS = (
    "data", "image_column", "label_column", "split_column", "fold_column", "group_column", "mask_column",
    "case_column", "positive_class", "leave_out", "structures",
)  # fmt: skip
GIVEN = "given"
# Longer lists are shown as their length.
MOST_SHOWN = 12


@dataclass(frozen=True)
class ScanPlan:
    """A plan: keys of the bundle's config with their values, and why.

    Args:
        values: by key.
        reasons: one sentence by key.
        description: what else is known of the plan: cases, digest of the list, memory in MB, versions.

    Example:
        >>> ScanPlan({"batch_size": 8}, {"batch_size": "given"}).values["batch_size"]
        8
    """

    values: Mapping[str, Any]
    reasons: Mapping[str, str]
    description: Mapping[str, Any] = field(default_factory=dict)

    def to_config(self) -> dict[str, Any]:
        """Return the overlay; text stays text for MONAI, also with ``#``, ``$``, ``@`` and ``%``."""
        about = {"format": FORMAT, "reasons": dict(self.reasons), **self.description}
        return {**config_values({}, self.values, TEXTS), DESCRIPTION: about}

    def to_lines(self) -> list[tuple[str, str, str]]:
        """Return key, value and reason of each line as text; a long list as its length."""
        return [(key, _to_text(value), self.reasons[key]) for key, value in self.values.items()]


@dataclass
class Lines:
    """The lines of a plan; a given value takes the place of a derived one.

    Args:
        given: values by key.
        values: the values of the lines by key.
        reasons: why, by key.
    """

    given: Mapping[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, value: Any, reason: str) -> Any:
        """Add a line, and return its value."""
        is_given = key in self.given
        self.values[key] = self.given[key] if is_given else value
        self.reasons[key] = GIVEN if is_given else reason
        return self.values[key]


def write_plan(plan: ScanPlan, file: Path) -> None:
    """Write a plan as ``plan.json``; an earlier one that differs is kept under another name."""
    text = json.dumps(plan.to_config(), indent=4) + "\n"
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    with atomic_text(file) as stream:
        stream.write(text)


def _to_text(value: Any) -> str:
    if isinstance(value, list) and len(value) > MOST_SHOWN:
        return f"{len(value)} entries"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
