# SPDX-License-Identifier: Apache-2.0
"""The outcome of a study: its status, its files, and the page, which can be drawn again.

This module imports fast: the page's libraries are imported when it is drawn.
"""

from __future__ import annotations

import json
from pathlib import Path

ALL_GOOD, SOME_FAILED, NOTHING_DONE = 0, 1, 2
PLAN, COSTS, RESULTS, REPORT = "study.json", "cost.json", "results.json", "report.html"
PREPARED = "prepared"  # folder of scans that all processes share, removed when the study is finished


def redraw(output: Path) -> Path:
    """Draw the page of a finished study again, and return its path.

    Raises:
        FileNotFoundError: there is no ``results.json``.
        ValueError: the file does not contain the results of a study.
    """
    file = output / RESULTS
    if not file.is_file():
        raise FileNotFoundError(f"there is no {RESULTS} in {output}: give the folder of a finished study")
    from monai_llmboost.studies.page import write_study_report

    try:
        write_study_report(json.loads(file.read_text(encoding="utf-8")), output / REPORT)
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} does not have the results of a study ({error!r}): give another folder") from error
    return output / REPORT
