# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: typed records, each read once, and those of earlier versions."""

import pytest

from monai_llmboost.studies.run_folder import OTHER_WEIGHTS, EpochResult, Evaluated, RunFolder, Trained

TRAINED = Trained(EpochResult(3, 0.75), EpochResult(5, None))


def test_records_are_read_as_they_were_written(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "new")
    assert (folder.trained, folder.diverged, folder.evaluated, folder.diagnostics()) == (None, None, None, None)
    assert folder.epochs_done() == 0
    folder.write_trained(TRAINED)
    folder.write_diverged("training has diverged")
    folder.write_evaluated(Evaluated({"cka_block": 0.5}))
    for again in (folder, RunFolder(folder.path)):
        assert again.trained == TRAINED
        assert (again.trained.of("best"), again.trained.of("last")) == (TRAINED.best, TRAINED.last)
        assert (again.diverged, again.diagnostics()) == ("training has diverged", {"cka_block": 0.5})


def test_a_record_is_read_once(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_trained(TRAINED)
    assert folder.trained
    (tmp_path / "trained.json").unlink()
    assert folder.trained == TRAINED


def test_files_of_earlier_versions(tmp_path):
    (tmp_path / "trained.json").write_text(
        '{"best": {"epoch": 2, "validation_auc": 0.8}, "last": {"epoch": 4, "validation_auc": null}}'
    )
    (tmp_path / "judged.json").write_text('{"diagnostics": null}')
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "predictions.csv").write_text("case,label\na,0\n")
    folder = RunFolder(tmp_path)
    assert folder.trained == Trained(EpochResult(2, 0.8), EpochResult(4, None))
    assert folder.evaluated == Evaluated(None)
    assert folder.predictions(OTHER_WEIGHTS) == [{"case": "a", "label": "0"}]
    (tmp_path / "other_weights").mkdir()
    (tmp_path / "other_weights" / "predictions.csv").write_text("case,label\nb,1\n")
    assert folder.predictions(OTHER_WEIGHTS) == [{"case": "b", "label": "1"}]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"best": 3, "last": 4}', '{"best": {"epoch": 1}}', "null"])
def test_a_damaged_record_is_as_none(tmp_path, content):
    (tmp_path / "trained.json").write_text(content)
    assert RunFolder(tmp_path).trained is None
