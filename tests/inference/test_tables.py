# SPDX-License-Identifier: Apache-2.0
import csv
import io

import pytest

from monai_llmboost.inference.tables import as_shown, write_csv

ROW = {
    "case": "a",
    "series_uid": "",
    "probabilities": [1.0],
    "predicted": "x",
    "refused": "",
    "warnings": [],
    "seconds": 1,
}


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-a", "@x", "\tx"])
def test_no_cell_is_a_formula(text):
    file = io.StringIO()
    row = {**ROW, "predicted": text, "refused": text, "warnings": [text], "accession_number": text}
    write_csv(file, [row], [text], ["accession_number"])
    (cells,) = csv.DictReader(io.StringIO(file.getvalue(), newline=""))
    assert [cells[name] for name in ("predicted", "refused", "warnings", "accession_number")] == [f"'{text}"] * 4
    assert cells[f"p_{text}"] == "1"


def test_a_cell_is_one_line():
    file = io.StringIO()
    write_csv(file, [{**ROW, "predicted": "a\rb\nc"}], ["a\rb"], [])
    (cells,) = csv.DictReader(io.StringIO(file.getvalue(), newline=""))
    assert (cells["predicted"], cells["p_a b"]) == ("a b c", "1")


def test_a_row_of_an_earlier_journal_has_all_columns():
    shown = as_shown({**ROW, "thumbnail": "x", "run": 3, "may_pass": True})
    assert shown == {**ROW, "refused_kind": ""}
