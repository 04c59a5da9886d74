# SPDX-License-Identifier: Apache-2.0
"""Numbers in a ``config.json``, and its rotary angles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from monai_llmboost.llm.geometry import LARGEST_WIDTH

Config = Mapping[str, Any]
LARGEST_NUMBER = 1e15  # upper bound for every number in a configuration


def read_whole(config: Config, key: str, default: int | None = None) -> int:
    """Return a whole number from 1; raise ValueError for anything else."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < LARGEST_NUMBER:
        shown = repr(value)[:80]
        raise ValueError(f"{key} in config.json must be a whole number from 1, not {shown}: download it again")
    return value


def read_number(config: Config, key: str, default: float) -> float:
    """Return a finite number; raise ValueError for anything else."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < LARGEST_NUMBER:
        shown = repr(value)[:80]
        raise ValueError(f"{key} in config.json must be a finite number, not {shown}: download it again")
    return float(value)


def compute_rotary_angles(
    config: Config, head_size: int, base: float = 10000.0, kind: str | None = None
) -> tuple[float, ...]:
    """Return the rotary angle per position of each feature pair, in radians; empty for an unsupported scaling.

    Args:
        config: has ``rope_parameters`` (transformers 5), or ``rope_theta`` and ``rope_scaling`` (before).
        head_size: number of features per head.
        base: default of ``rope_theta`` in the family.
        kind: layer type, for ``rope_parameters`` with an entry per type.
    """
    given, scaled = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    if not isinstance(given, Mapping) or not isinstance(scaled, Mapping):
        raise ValueError("rope_parameters and rope_scaling in config.json must be objects: download it again")
    given = given.get(kind, given) or {}
    rule: dict[str, Any] = {**config, **scaled, **given}
    base = read_number(rule, "rope_theta", base)
    part = read_number(rule, "partial_rotary_factor", read_number(config, "rotary_pct", 1.0))
    if base <= 0 or not 0 <= part <= 1 or head_size > LARGEST_WIDTH:
        raise ValueError(
            f"rope_theta in config.json must be above 0 and the rotary part of a head of {head_size} from 0 to 1, not "
            f"{base} and {part}: download it again"
        )
    size = int(head_size * part)
    return _scale_angles([base ** (-2 * i / size) for i in range(size // 2)], rule)


def _scale_angles(angles: Sequence[float], rule: Config) -> tuple[float, ...]:
    """Scale rotary angles by the rule's type; empty for an unsupported type."""
    scaling = rule.get("rope_type") or rule.get("type") or "default"
    if scaling == "default":
        return tuple(angles)
    if scaling == "linear":
        return tuple(angle / read_number(rule, "factor", 1.0) for angle in angles)
    if scaling == "llama3":
        return tuple(_scale_llama3(angle, rule) for angle in angles)
    return ()


def _scale_llama3(angle: float, rule: Config) -> float:
    """Scale a rotary angle as Llama 3.1: divide low frequencies, keep high ones, interpolate between."""
    factor = read_number(rule, "factor", 8.0)
    low, high = read_number(rule, "low_freq_factor", 1.0), read_number(rule, "high_freq_factor", 4.0)
    rotations = read_number(rule, "original_max_position_embeddings", 8192) * angle / (2 * math.pi)
    kept = min(max((rotations - low) / (high - low), 0.0), 1.0)
    return (1 - kept) * angle / factor + kept * angle
