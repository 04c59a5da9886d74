# SPDX-License-Identifier: Apache-2.0
"""Table of block files with few bits a weight."""

from __future__ import annotations

from read_results import read_results
from report import markdown


def bits() -> str:
    """Show size and errors of each way to store a layer, and whether salient channels beat the others at their size."""
    result = read_results("bits-cpu")
    lines = []
    for row in result["rows"]:
        way = row["way"] if row["bits"] == 16 else f"{row['way']}: {row['bits']} bits, groups of {row['group']}"
        way += f", {100 * row['salient']:g} % in 16 bits" if row.get("salient") else ""
        found = [row.get(f"error of the {what}") for what in ("output", "logits")]
        errors = ["" if error is None else f"{100 * error:.2g} %" for error in found]
        lines.append([row["donor"], way, f"{row['MB']:.3g} MB", *errors])
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for row in result["rows"]:
        if row["bits"] < 16:
            cells.setdefault((row["donor"], row["set by"]), {})[row["way"]] = row["error of the output"]
    wins = {}
    for way in ("smaller groups", "one bit more"):
        compared = [of["salient channels"] < of[way] for of in cells.values() if way in of]
        wins[way] = f"{sum(compared)} of {len(compared)} against {way}"
    table = markdown(["layer", "stored as", "file", "error of the output", "of logits"], lines)
    return (
        f"Errors relative to the original weights; logits of {result['settings']['networks']} untrained networks; "
        f"{result['device']}:\n\n{table}\n\nComparisons at the same size or less in which salient channels have the "
        f"smaller error of the output: {', '.join(wins.values())}."
    )
