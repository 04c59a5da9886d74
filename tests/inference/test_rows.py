# SPDX-License-Identifier: Apache-2.0
"""A case's row in the journal, in the tables and back."""

import csv
import io
import json

import pytest
import torch

from monai_llmboost.inference.answers import ClassProbabilities
from monai_llmboost.inference.case import Case
from monai_llmboost.inference.rows import Row, csv_columns
from monai_llmboost.inference.writers import Results, write_csv
from monai_llmboost.networks.class_names import ClassNames

COLUMNS = "case,series_uid,p_x,p_y,predicted,refused,refused_kind,warnings,seconds"


def answers_of(names):
    network = torch.nn.Module()
    network.class_names = ClassNames(len(names), names)
    return ClassProbabilities(network)


def cells_of(row, names=("x", "y"), **identifying):
    file = io.StringIO()
    write_csv(file, Results([row], [], {}, answers_of(names), {row.case: identifying}))
    (cells,) = csv.DictReader(io.StringIO(file.getvalue(), newline=""))
    return cells


def row_of(predicted="x", **changes):
    return Row("a", answer={"probabilities": [0.75, 0.25], "predicted": predicted}, seconds=1, **changes)


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-a", "@x", "\tx"])
def test_no_cell_is_a_formula(text):
    cells = cells_of(row_of(refused=text, warnings=[text]), [text, "y"], accession_number=text)
    assert [cells[name] for name in ("refused", "warnings", "accession_number")] == [f"'{text}"] * 3
    assert cells["predicted"] == f"'{text}"
    assert cells[f"p_{text}"] == "0.75"


def test_a_cell_is_one_line():
    cells = cells_of(row_of(refused="a\rb\nc"), ["a\rb", "y"])
    assert (cells["refused"], cells["predicted"], cells["p_a b"]) == ("a b c", "a b", "0.75")


def test_columns_have_one_order():
    assert ",".join(csv_columns(answers_of(["x", "y"]))) == COLUMNS
    assert csv_columns(answers_of(["x"]), ["study_uid"])[:4] == ["case", "series_uid", "study_uid", "p_x"]


def test_a_row_survives_the_journal():
    row = row_of(shape=[3, 4, 5], saliency={"network": "x.nii.gz"}, may_pass=True, thumbnail="abc", run=3)
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row
    assert list(row.to_json())[6:10] == ["orientation", "probabilities", "predicted", "refused"]


@pytest.mark.parametrize("refused", ["", "no good"])
def test_a_row_of_an_earlier_journal_has_all_fields(refused):
    line = {"case": "a", "probabilities": [1.0], "predicted": "x", "refused": refused, "warnings": [], "seconds": 1}
    row = Row.from_json(line)
    assert row.may_pass is bool(refused), "an earlier refusal does not say whether it may pass"
    assert row.to_table()["refused_kind"] == ""
    assert not {"thumbnail", "run", "may_pass"} & set(row.to_table())


def test_a_case_survives_a_loader():
    cases = [
        Case(torch.full((1, 2, 2, 2), float(k)), k, warnings=["a", "b"][:k], input_shape=torch.tensor([1, 2, k + 1]))
        for k in range(3)
    ]
    cases[2].voxels = torch.arange(6.0).numpy().tobytes()
    loader = torch.utils.data.DataLoader([case.to_item() for case in cases], batch_size=3, num_workers=1)
    (batch,) = loader
    again = [Case.from_batch(batch, position) for position in range(3)]
    assert [case.warnings for case in again] == [[], ["a"], ["a", "b"]]
    assert [case.index for case in again] == [0, 1, 2]
    assert again[0].volume is None
    assert again[2].volume.shape == (1, 2, 3), "volumes of a batch may have unlike shapes"
    assert again[2].volume[0].T.tolist() == [[0, 1], [2, 3], [4, 5]]
