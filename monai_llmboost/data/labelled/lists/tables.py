# SPDX-License-Identifier: Apache-2.0
"""Rows of a labelled list, from a CSV file or a datalist in JSON."""

from __future__ import annotations

from pathlib import Path

from monai_llmboost.data.labelled.lists.csv_file import read_csv
from monai_llmboost.data.labelled.lists.datalist import read_datalist
from monai_llmboost.data.labelled.lists.rows import Columns, Table

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
