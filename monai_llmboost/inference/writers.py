# SPDX-License-Identifier: Apache-2.0
"""The files of a finished run: tables, provenance and report; earlier files with other cases are renamed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_llmboost.artifacts.files import atomic_text, safe_row, set_aside
from monai_llmboost.data import SkippedFile
from monai_llmboost.inference.answers import Answers
from monai_llmboost.inference.page.report import write_report
from monai_llmboost.inference.page.viewer import Viewer
from monai_llmboost.inference.rows import Row, csv_columns, one_line

CSV_TABLE, JSON_TABLE, RUN, REPORT = "predictions.csv", "predictions.json", "run.json", "report.html"


@dataclass(frozen=True)
class Results:
    """The content of the files of a run.

    Args:
        rows: the cases, predicted or refused, in the order of the tables.
        skipped: files that are not scans.
        run: provenance of the predictions, for ``run.json`` and the report.
        answers: defines the columns of an answer.
        identifying: additional columns of the tables by case; all cases have the same columns.
        viewers: viewers in the report.
    """

    rows: Sequence[Row]
    skipped: Sequence[SkippedFile]
    run: Mapping[str, Any]
    answers: Answers
    identifying: Mapping[str, Mapping[str, str]]
    viewers: Sequence[Viewer] = ()


def write_results(output_dir: Path, results: Results, report: bool = True, overwrite: bool = False) -> None:
    """Write the files of a run, each atomically.

    Earlier files are renamed, unless ``overwrite`` is True or they belong to the same run and the new files contain all
    their cases.

    Args:
        output_dir: the folder.
        results: content of the files.
        report: also write the page; otherwise, an earlier page is renamed if its tables are renamed.
        overwrite: replace earlier tables.
    """
    aside = not overwrite and loses_cases(output_dir, results.run["key"], results.rows)
    with atomic_text(output_dir / CSV_TABLE, aside) as file:
        write_csv(file, results)
    with atomic_text(output_dir / JSON_TABLE, aside) as file:
        write_json(file, _json_table(results))
    with atomic_text(output_dir / RUN, aside) as file:
        write_json(file, results.run)
    if report:
        skipped = [(str(item.path), item.reason) for item in results.skipped]
        write_report(output_dir / REPORT, results.rows, results.run, skipped, results.viewers, aside)
    elif aside or overwrite:
        set_aside(output_dir / REPORT)  # it shows the cases of the earlier tables


def write_csv(file: Any, results: Results) -> None:
    """Write ``predictions.csv``: a row for each case."""
    identifying = list(next(iter(results.identifying.values()), {}))
    columns = csv_columns(results.answers, identifying)
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in results.rows:
        own = results.identifying.get(row.case, {})
        writer.writerow(row.to_cells(results.answers) | safe_row(one_line(own, identifying)))


def _json_table(results: Results) -> dict[str, Any]:
    shown = {key: results.run[key] for key in ("class_names", "intended_use") if key in results.run}
    cases = [{**row.to_table(), **results.identifying.get(row.case, {})} for row in results.rows]
    skipped = [{"file": str(item.path), "reason": item.reason} for item in results.skipped]
    return {**shown, "cases": cases, "skipped": skipped}


def write_json(file: Any, value: Any) -> None:
    """Write a value as JSON of ASCII characters."""
    json.dump(value, file, indent=1, ensure_ascii=True)
    file.write("\n")


def read_run(output_dir: Path) -> dict[str, Any]:
    """Return the provenance of the tables in a folder; an empty dictionary if there are none."""
    return _read_object(output_dir / RUN)


def loses_cases(output_dir: Path, key: str, rows: Iterable[Row]) -> bool:
    """Return whether earlier tables belong to another run, or have cases that are missing or changed in ``rows``."""
    if read_run(output_dir).get("key") != key:
        return True
    new = {row.case: row.input_sha256 for row in rows}
    try:
        earlier = {row["case"]: row["input_sha256"] for row in _read_object(output_dir / JSON_TABLE)["cases"]}
    except (LookupError, TypeError):
        return True  # the table was edited, so its content is unknown
    # A case that was refused before it was read has no digest.
    return any(case not in new or (digest and digest != new[case]) for case, digest in earlier.items())


def _read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty dictionary if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
