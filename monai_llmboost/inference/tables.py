# SPDX-License-Identifier: Apache-2.0
"""Rows of a run as tables: CSV for spreadsheets, JSON for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any

from monai_llmboost.artifacts.files import safe_row
from monai_llmboost.data import Scan

# Fields of a row that are of the journal or the page, and no columns.
NOT_IN_TABLES = ("thumbnail", "run", "may_pass")


def row_of(scan: Scan) -> dict[str, Any]:
    """Return what is known of a case before it is predicted."""
    return {
        "case": scan.name,
        "format": scan.format,
        "series_uid": scan.series_uid,
        "modality": scan.modality,
        "shape": list(scan.shape),
        "spacing_mm": [round(float(distance), 6) for distance in scan.spacing_mm],
        "orientation": scan.orientation,
        "probabilities": [],
        "predicted": "",
        "refused": "",
        "refused_kind": "",
        "warnings": [],
        "seconds": 0.0,
        "input_sha256": "",
        "saliency": {},
        "dicom": {},
        "thumbnail": "",
    }


def refused_row(scan: Scan) -> dict[str, Any]:
    """Return the row of a case that was refused before it was read."""
    remarks = {"refused": scan.refused, "refused_kind": scan.refused_kind, "warnings": list(scan.warnings)}
    return {**row_of(scan), **remarks}


def write_csv(file: Any, rows: Sequence[Mapping[str, Any]], names: Sequence[str], columns: Sequence[str]) -> None:
    """Write a row per case; ``columns`` are further ones behind the series' UID."""
    probabilities = [f"p_{' '.join(name.splitlines())}" for name in names]
    end = ["predicted", "refused", "refused_kind", "warnings", "seconds"]
    head = ["case", "series_uid", *columns, *probabilities, *end]
    writer = csv.DictWriter(file, head, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        numbers = {column: f"{p:.9g}" for column, p in zip(probabilities, row["probabilities"])}
        texts = {name: _one_line(str(row.get(name, ""))) for name in (*columns, "predicted", "refused")}
        writer.writerow(safe_row({**row, **numbers, **texts, "warnings": _one_line("; ".join(row["warnings"]))}))


def write_json(file: Any, value: Any) -> None:
    """Write a value as JSON of ASCII characters."""
    json.dump(value, file, indent=1, ensure_ascii=True)
    file.write("\n")


def as_shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without what is no column."""
    return {"refused_kind": "", **{key: value for key, value in row.items() if key not in NOT_IN_TABLES}}


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
