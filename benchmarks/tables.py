# SPDX-License-Identifier: Apache-2.0
"""The tables in the project's README, from the results that the benchmarks wrote; run it after a benchmark."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from report import RESULTS, markdown

README = Path(__file__).parents[1] / "README.md"
SHOWN = {"donor": "LLaMA-7B", "tokens": 344, "batch": 8}
SIDES = {
    "plain": "no booster",
    "ours": "booster, only CLS read",
    "full way": 'booster, all tokens (pool="mean")',
    "transformers": "the same with `transformers`' layer",
}


def rows_of(name: str, **wanted: Any) -> list[dict[str, Any]]:
    """The rows of a results file in which these columns have these values."""
    rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def device_of(name: str) -> str:
    """The device that a results file is from."""
    return json.loads((RESULTS / f"{name}.json").read_text())["device"]


def times(value: float | None) -> str:
    """A ratio in words, or a dash where it was not measured."""
    return "-" if value is None else f"{value:.2f} x"


def cost() -> str:
    """Operations and time of the four sides at the published size."""
    lines = []
    for side, name in SIDES.items():
        (forward,) = rows_of("booster-cpu", **SHOWN, side=side, kind="forward")
        (step,) = rows_of("booster-cpu", **SHOWN, side=side, kind="step")
        operations = [f"{row['GFLOP per volume']:.1f} ({times(row['operations / plain'])})" for row in (forward, step)]
        lines.append([name, *operations, *(times(row.get("time / plain")) for row in (forward, step))])
    headings = ["ViT3D of the published size", "GFLOP forward", "GFLOP step", "time forward", "time step"]
    return (
        f"LLaMA-7B's last layer (202 M weights), {SHOWN['tokens']} tokens, batch {SHOWN['batch']}, float32, "
        f"{device_of('booster-cpu')}; time as the median ratio to the plain network:\n\n{markdown(headings, lines)}"
    )


def growth() -> str:
    """What the booster adds as the number of tokens grows."""
    lines = []
    for tokens in sorted({row["tokens"] for row in rows_of("booster-cpu")}):
        where = {**SHOWN, "tokens": tokens, "kind": "forward"}
        plain, ours, full = (
            row["GFLOP per volume"]
            for side in ("plain", "ours", "full way")
            for row in rows_of("booster-cpu", **where, side=side)
        )
        lines.append([tokens, f"{plain:.0f}", f"{ours - plain:.2f}", f"{full - plain:.0f}"])
    return markdown(["tokens", "GFLOP plain", "the booster adds, CLS read", "all tokens"], lines)


TABLES = {"cost": cost, "growth": growth}


def with_tables(text: str) -> str:
    """The page with each table between ``<!-- table: NAME -->`` and ``<!-- end -->`` made anew."""

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{TABLES[match[2]]()}\n\n<!-- end -->"

    return re.sub(r"(<!-- table: (\w+) -->).*?<!-- end -->", made, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
    print(f"{README} has the tables {', '.join(TABLES)}")
