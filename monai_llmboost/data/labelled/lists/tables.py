# SPDX-License-Identifier: Apache-2.0
"""Rows of a labelled list, from a CSV file or a datalist in JSON."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from monai_llmboost.data.labelled.lists.csv_file import read_csv
from monai_llmboost.data.labelled.lists.datalist import read_datalist
from monai_llmboost.data.labelled.lists.label_folders import DESCRIPTION, read_label_folders
from monai_llmboost.data.labelled.lists.rows import SPLIT_WORDS, Columns, Table

TABLES = (".csv", ".tsv", ".json")


def read_table(path: Path, columns: Columns, labelled: bool = True) -> Table:
    """Return the rows of a CSV or JSON list.

    Args:
        path: the file.
        columns: names of its columns.
        labelled: whether a list without labels is wrong; a prediction needs only the images.

    Raises:
        ValueError: the file is not such a list, or lacks a column that was named.
    """
    read = read_datalist if path.suffix.lower() == ".json" else read_csv
    return read(path, columns, labelled)


def read_folder(path: Path) -> Table:
    """Return the rows of a folder with ``imagesTr`` and ``labelsTr``, from its ``dataset.json`` if there is one.

    Raises:
        ValueError: it has no cases, or that file is damaged.
    """
    file = path / DESCRIPTION
    return read_datalist(file, Columns(), labelled=True) if file.is_file() else read_label_folders(path, {})


def drop_unlabelled_tests(table: Table) -> Table:
    """Return a table without the test cases that have no label, with a warning; those of a challenge have none."""
    kept = [
        row
        for row in table.rows
        if row.values.get("label", "").strip()
        or SPLIT_WORDS.get(row.values.get("split", "").strip().lower(), "") != "test"
    ]
    if len(kept) == len(table.rows):
        return table
    warning = f"{len(table.rows) - len(kept)} test cases without a label are left out"
    return replace(table, rows=kept, warnings=(*table.warnings, warning))
