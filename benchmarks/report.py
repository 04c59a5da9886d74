# SPDX-License-Identifier: Apache-2.0
"""Output of a benchmark: a JSON file of rows with the device and software versions, and a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def save(
    out: Path, benchmark: str, device: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write the rows to ``out``, replacing earlier results.

    Args:
        out: the JSON file.
        benchmark: description of the measurement.
        device: name of the device.
        settings: options of the run.
        rows: one dictionary for each row of the table.
    """
    software = {name: version(name) for name in ("torch", "monai", "transformers")}
    document = {"benchmark": benchmark, "device": device, "software": software, "settings": settings, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.part")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(out)


def show(out: Path) -> None:
    """Print the results in a file of :func:`save` as a Markdown table."""
    document = json.loads(out.read_text())
    headings = list(dict.fromkeys(key for row in document["rows"] for key in row))
    print(markdown(headings, [[row.get(key, "") for key in headings] for row in document["rows"]]))
    print(f"\n{document['device']}; written to {out}")


def markdown(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a Markdown table; numbers are rounded to four digits."""
    lines = [headings, ["---"] * len(headings), *[[_cell(value) for value in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
