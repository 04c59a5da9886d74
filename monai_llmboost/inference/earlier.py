# SPDX-License-Identifier: Apache-2.0
"""What an earlier run left in the folder of predictions, and whether new tables hold all of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TABLE, FACTS = "predictions.json", "run.json"


def facts_of(output_dir: Path) -> dict[str, Any]:
    """Return what made the tables in a folder; nothing if there are none."""
    return _object_in(output_dir / FACTS)


def loses_cases(output_dir: Path, key: str, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the earlier tables are another run's, or have a case that the new rows lack, or have of other bytes."""
    if facts_of(output_dir).get("key") != key:
        return True
    new = {row["case"]: row["input_sha256"] for row in rows}
    try:
        earlier = {row["case"]: row["input_sha256"] for row in _object_in(output_dir / TABLE)["cases"]}
    except (LookupError, TypeError):
        return True  # somebody changed the table: nobody knows what it holds
    # A case that was refused before it was read has no digest.
    return any(case not in new or (digest and digest != new[case]) for case, digest in earlier.items())


def _object_in(path: Path) -> dict[str, Any]:
    """Return the object in a file; an empty one if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
