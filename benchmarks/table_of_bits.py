# SPDX-License-Identifier: Apache-2.0
"""Table of block files with few bits a weight."""

from __future__ import annotations

from statistics import mean, stdev

from read_results import read_results, select_rows
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


def bits_of_results() -> str:
    """Show what few bits of the block change in the results of a training."""
    result = read_results("bits-accuracy-cpu")
    seeds = range(result["settings"]["seeds"])
    whole = [row["test AUC"] for row in select_rows("bits-accuracy-cpu", bits=16)]
    lines = []
    for bits in dict.fromkeys(row["bits"] for row in result["rows"]):
        rows = select_rows("bits-accuracy-cpu", bits=bits)
        scores = [row["test AUC"] for row in rows]
        differences = [scores[seed] - whole[seed] for seed in seeds]
        changes = "" if bits == 16 else f"{mean(differences):+.4f} ± {stdev(differences):.4f}"
        error = f"{100 * rows[0]['error of the output']:.2g} %"
        lines.append([bits, error, f"{mean(scores):.3f} ± {stdev(scores):.3f}", changes])
    settings = result["settings"]
    headings = ["bits of the block", "error of its output", "test AUC", "difference to 16 bits, same seed"]
    return (
        f"ViT3D with the block of this package on {settings['dataset']}, {settings['epochs']} epochs, "
        f"{settings['seeds']} seeds (mean ± standard deviation), {result['device']}:\n\n{markdown(headings, lines)}"
    )
