# SPDX-License-Identifier: Apache-2.0
"""What a run tells on a terminal: what was found, what was refused and why, where the results lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# Rows of a table on a terminal; the files hold all of them.
SHOWN = 20


def show_refused(refused: Mapping[str, str], known: set[str]) -> None:
    """Why cases were refused that looked well in the inventory, by reason."""
    reasons: dict[str, list[str]] = {}
    for case, reason in refused.items():
        if case not in known:
            reasons.setdefault(reason, []).append(case)
    console = a_console()
    for reason, cases in sorted(reasons.items(), key=lambda item: -len(item[1]))[:SHOWN]:
        console.print(
            f"  {len(cases)} [red]refused:[/] {_plain(reason)} ({_plain(cases[0])}{' ...' if len(cases) > 1 else ''})"
        )
    if len(reasons) > SHOWN:
        console.print(f"  ... and {len(reasons) - SHOWN} more reasons")


def show_without_viewer(cases: Sequence[str]) -> None:
    """Cases that were to have a viewer, and were refused."""
    for case in cases:
        a_console().print(f"no viewer of {_plain(case)}: it is refused", highlight=False)


def show_inventory(scans: Sequence[Any], skipped: Sequence[Any], shown: int | None) -> None:
    """A table of scans (all, or the first ``shown``), and how many other files there are, by reason."""
    console = a_console()
    table = Table("case", "kind", "voxels", "spacing in mm", "axes", "to note", title="Found")
    for scan in sorted(scans, key=lambda scan: scan.name)[:shown]:
        note = f"[red]refused:[/] {_plain(scan.refused)}" if scan.refused else _plain("; ".join(scan.warnings))
        table.add_row(
            _plain(scan.name),
            f"{scan.format} {scan.modality}".strip(),
            " x ".join(map(str, scan.shape)),
            " x ".join(f"{distance:.3g}" for distance in scan.spacing_mm),
            scan.orientation,
            note,
        )
    console.print(table)
    if shown is not None and len(scans) > shown:
        console.print(f"... and {len(scans) - shown} more")
    refused = sum(bool(scan.refused) for scan in scans)
    console.print(f"{len(scans) - refused} to predict, {refused} refused, {len(skipped)} files that are no scans")
    reasons: dict[str, list[str]] = {}
    for file in skipped:
        reasons.setdefault(file.reason, []).append(str(file.path))
    for reason, files in sorted(reasons.items()):
        console.print(
            f"  {len(files)} skipped: {_plain(reason)} ({_plain(files[0])}{' ...' if len(files) > 1 else ''})"
        )


def show_result(output: Path, counts: Mapping[str, int], accepted: int, of_weights: Sequence[str] = ()) -> None:
    """How many were predicted, which weights did it and how well where labels were known, and where all of it lies."""
    console = a_console()
    usual = f" ({accepted} of them accepted)" if accepted else ""
    console.print(f"{counts['predicted']} predicted, {counts['refused']} refused{usual}")
    for sentence in of_weights if counts["predicted"] else ():
        console.print(_plain(sentence), highlight=False)
    for what, name in {
        "predictions": "predictions.csv",
        "the same with more": "predictions.json",
        "what made them": "run.json",
        "to look at": "report.html",
    }.items():
        if (output / name).is_file():
            console.print(f"{what}: {output / name}", highlight=False, markup=False)


def a_console() -> Console:
    """A console that breaks lines on a terminal only, so that a log file can be searched by line."""
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = 250
    return console


def _plain(text: str) -> str:
    """A text from outside, as text: no markup, and no control characters for the terminal."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text))
