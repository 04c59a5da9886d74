# SPDX-License-Identifier: Apache-2.0
"""Columns that identify a patient's examination, read from DICOM files only on request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from monai_llmboost.arguments import check_choice

if TYPE_CHECKING:
    from monai_llmboost.data import Scan

# Columns and their DICOM attributes.
ATTRIBUTES = {"study_uid": "StudyInstanceUID", "accession_number": "AccessionNumber"}


def parse_columns(columns: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return the names of columns, given as a list or as text with commas.

    Raises:
        ValueError: an unknown name.
    """
    given = columns.split(",") if isinstance(columns, str) else columns or ()
    names = tuple(dict.fromkeys(str(name).strip() for name in given))
    for name in names:
        check_choice("column", name, ATTRIBUTES)
    return names


def identifiers(scan: Scan, columns: Sequence[str]) -> dict[str, str]:
    """Return the columns of a scan; empty if it is not a DICOM scan, or its first file lacks the attribute."""
    if not columns or scan.format != "DICOM":
        return dict.fromkeys(columns, "")
    from pydicom import dcmread

    from monai_llmboost.data.scans.dicom.headers import silence_pydicom

    tags = [ATTRIBUTES[name] for name in columns]
    try:
        with silence_pydicom():
            data = dcmread(scan.files[0], stop_before_pixels=True, force=True, specific_tags=[*tags])
            return {name: str(data.get(tag) or "").strip() for name, tag in zip(columns, tags)}
    except Exception:  # a damaged file may raise any error; its row gives the reason for the refusal
        return dict.fromkeys(columns, "")
