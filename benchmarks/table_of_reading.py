# SPDX-License-Identifier: Apache-2.0
"""The table of reading scans."""

from __future__ import annotations

from read_results import read_results
from report import markdown

# Memory of smaller volumes is not shown, because the process keeps some from earlier rounds.
SMALL_MB = 100


def reading() -> str:
    """Show time and memory from a scan on disk to the input of a network, or to the volume."""
    result = read_results("reading-cpu")
    lines = []
    for row in result["rows"]:
        times = [f"{row['CPU ms']:.0f} ms ({row['CPU ratio']:.2f} x)", f"{row['wall ms']:.0f} ms"]
        memory = f"{row['peak / volume']:.2f} x" if row["volume MB"] > SMALL_MB else "-"
        lines.append([row["scan"], row["side"], *times, memory])
    large, slices = result["settings"]["large"], result["settings"]["slices"]
    return (
        f"Scans of int16 with noise, {result['device']}, medians of {result['settings']['rounds']} rounds. The large "
        f"CT is {' x '.join(map(str, large))}; the DICOM series has {slices} slices of 512 x 512. CPU time in brackets "
        "is relative to the limit (unpack, convert, interpolate), or to SimpleITK; memory is the peak relative to the "
        f"volume in float32:\n\n{markdown(['scan', 'by', 'CPU time', 'wall time', 'peak memory'], lines)}"
    )
