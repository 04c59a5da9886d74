# SPDX-License-Identifier: Apache-2.0
"""Numbers in a ``config.json``, and the angles of its rotary positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monai_llmboost.llm.geometry import LARGEST_WIDTH

Config = Mapping[str, Any]
LARGEST_NUMBER = 1e15  # of anything that a configuration counts or scales with


def read_whole(config: Config, key: str, default: int | None = None) -> int:
    """A whole number from 1 on, or ValueError."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < LARGEST_NUMBER:
        shown = repr(value)[:80]
        raise ValueError(f"expected {key} in config.json to be a whole number from 1, got {shown}: download it again")
    return value


def read_number(config: Config, key: str, default: float) -> float:
    """A finite number, or ValueError."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < LARGEST_NUMBER:
        shown = repr(value)[:80]
        raise ValueError(f"expected {key} in config.json to be a number, got {shown}: download it again")
    return float(value)


def compute_rotary_angles(
    config: Config, head_size: int, base: float = 10000.0, kind: str | None = None
) -> tuple[float, ...]:
    """Radians from one position to the next of each pair of features; empty if scaled in a way not done here.

    Args:
        config: with ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling`` (before).
        head_size: features of a head.
        base: the family's default.
        kind: the layer's type, where ``rope_parameters`` has an entry for each.
    """
    given, scaled = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    if not isinstance(given, Mapping) or not isinstance(scaled, Mapping):
        raise ValueError("expected rope_parameters or rope_scaling in config.json to be an object, got another thing")
    given = given.get(kind, given) or {}
    rule: dict[str, Any] = {**config, **scaled, **given}
    base = read_number(rule, "rope_theta", base)
    part = read_number(rule, "partial_rotary_factor", read_number(config, "rotary_pct", 1.0))
    if base <= 0 or not 0 <= part <= 1 or head_size > LARGEST_WIDTH:
        raise ValueError(
            f"expected rope_theta above 0 and a rotary part from 0 to 1 of a head in config.json, got {base} and "
            f"{part} of {head_size}: download it again"
        )
    size = int(head_size * part)
    angles = [base ** (-2 * i / size) for i in range(size // 2)]
    scaling = rule.get("rope_type") or rule.get("type") or "default"
    if scaling == "default":
        return tuple(angles)
    if scaling == "linear":
        return tuple(angle / read_number(rule, "factor", 1.0) for angle in angles)
    if scaling == "llama3":
        return tuple(_scale_llama3(angle, rule) for angle in angles)
    return ()


def _scale_llama3(angle: float, rule: Config) -> float:
    """Slow turns slowed down further, quick ones kept, those between in between (Llama 3.1)."""
    factor = read_number(rule, "factor", 8.0)
    low, high = read_number(rule, "low_freq_factor", 1.0), read_number(rule, "high_freq_factor", 4.0)
    turns = read_number(rule, "original_max_position_embeddings", 8192) * angle / (2 * math.pi)
    kept = min(max((turns - low) / (high - low), 0.0), 1.0)
    return (1 - kept) * angle / factor + kept * angle
