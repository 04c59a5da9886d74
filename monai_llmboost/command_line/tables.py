# SPDX-License-Identifier: Apache-2.0
"""Terminal tables of a prediction: scans found, reasons of refusals, and paths of the results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from monai_llmboost.artifacts.page import visible

if TYPE_CHECKING:
    from monai_llmboost.inference.run import Inventory, PredictResult

# Rows of a table on a terminal; the files contain all rows.
SHOWN = 20


def make_console() -> Console:
    """Return a console that wraps lines only on a terminal, so that a log file can be searched by line."""
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = 250
    return console


def show_inventory(found: Inventory, shown: int | None = SHOWN) -> None:
    """Show a table of scans (the first ``shown``, or all), and the number of skipped files by reason."""
    console = make_console()
    scans = sorted([*found.scans, *found.refused], key=lambda scan: scan.name)
    table = Table("case", "kind", "voxels", "spacing in mm", "axes", "remarks", title="Found")
    for scan in scans[:shown]:
        remark = (
            f"[red]refused:[/] {plain_text(scan.refused)}" if scan.refused else plain_text("; ".join(scan.warnings))
        )
        table.add_row(
            plain_text(scan.name),
            f"{scan.format} {scan.modality}".strip(),
            " x ".join(map(str, scan.shape)),
            " x ".join(f"{distance:.3g}" for distance in scan.spacing_mm),
            scan.orientation,
            remark,
        )
    console.print(table)
    if shown is not None and len(scans) > shown:
        console.print(f"... and {len(scans) - shown} more")
    console.print(
        f"{len(found.scans)} to predict, {len(found.refused)} refused, {len(found.skipped)} files that are no scans"
    )
    for reason, files in sorted(_by_reason((file.reason, str(file.path)) for file in found.skipped).items()):
        console.print(f"  {len(files)} skipped: {plain_text(reason)} ({_first(files)})")


def show_result(result: PredictResult, found: Inventory) -> None:
    """Show late refusals, the number of predicted scans, the weights, and the paths of the result files."""
    console = make_console()
    known = {scan.name for scan in found.refused}
    late = _by_reason((row.refused, row.case) for row in result.rows if row.refused and row.case not in known)
    for reason, cases in sorted(late.items(), key=lambda item: -len(item[1]))[:SHOWN]:
        console.print(f"  {len(cases)} [red]refused:[/] {plain_text(reason)} ({_first(cases)})")
    if len(late) > SHOWN:
        console.print(f"  ... and {len(late) - SHOWN} more reasons")
    for case in result.without_viewer:
        console.print(f"no viewer of {plain_text(case)}: it is refused", highlight=False)
    accepted = f" ({result.accepted} of them accepted)" if result.accepted else ""
    console.print(f"{result.counts['predicted']} predicted, {result.counts['refused']} refused{accepted}")
    if result.counts["predicted"]:
        for sentence in (f"weights: {result.weights}", *result.figures):
            console.print(plain_text(sentence), highlight=False)
    for what, name in {
        "predictions": "predictions.csv",
        "with more columns": "predictions.json",
        "provenance": "run.json",
        "report": "report.html",
    }.items():
        if (result.output / name).is_file():
            console.print(f"{what}: {result.output / name}", highlight=False, markup=False)


def _by_reason(items: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for reason, name in items:
        groups.setdefault(reason, []).append(name)
    return groups


def _first(names: list[str]) -> str:
    return f"{plain_text(names[0])}{' ...' if len(names) > 1 else ''}"


def plain_text(text: str) -> str:
    """Return untrusted text with markup and control characters escaped."""
    return escape(visible(text))
