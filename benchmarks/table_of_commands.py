# SPDX-License-Identifier: Apache-2.0
"""Table of the CPU seconds of short commands."""

from __future__ import annotations

from read_results import read_results
from report import markdown


def commands() -> str:
    """Show the CPU seconds of each command, and of the imports that it does without."""
    result = read_results("commands-cpu")
    lines = [
        [f"`{row['command']}`", f"{row['seconds']:.2f} s", f"{row['least']:.2f} to {row['most']:.2f} s"]
        for row in result["rows"]
    ]
    settings = result["settings"]
    return (
        f"A folder of {settings['scans']} scans, files in the page cache, {result['device']}, medians of "
        f"{settings['rounds']} rounds:\n\n{markdown(['command', 'CPU time', 'least and most'], lines)}"
    )
