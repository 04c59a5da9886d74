# SPDX-License-Identifier: Apache-2.0
"""Reading of the results files, and numbers as the tables show them."""

from __future__ import annotations

import json
from typing import Any

from report import RESULTS


def read_results(name: str) -> dict[str, Any]:
    """Read a results file: device, settings, rows."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def select_rows(name: str, **wanted: Any) -> list[dict[str, Any]]:
    """Return the rows of a results file with these values in these columns."""
    return [row for row in read_results(name)["rows"] if all(row[key] == value for key, value in wanted.items())]


def format_times(value: float | None) -> str:
    """Format a ratio, or a dash if it was not measured."""
    return "-" if value is None else f"{value:.2f} x"


def format_mb(value: float | None) -> str:
    """Format a size, or a dash if it was not measured."""
    return "-" if value is None else f"{value:.0f} MB"
