# SPDX-License-Identifier: Apache-2.0
import json
import re
import sys

import pytest
from scan_lists import make_list, mr, save

from monai_llmboost.command_line.app import main
from monai_llmboost.inspection import inspect_list
from monai_llmboost.inspection.measure import read_volume


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run inspect in this process and in the folder of the test: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["monai-llmboost", "inspect", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run


def test_a_sound_list(command, tmp_path):
    code, out, _ = command("--data", make_list(tmp_path / "scans", count=24), "--workers", 0)
    assert code == 0
    assert re.search(r"train\s+│ 7\s+│ 8|train\s+│ 8\s+│ 8|train\s+│ 8\s+│ 7", out)
    assert "14 x 16 x 12" in out
    assert re.search(r"image_shape\s+│ \[1, 14, 16, 12\]\s+│ the shape of all scans", out)
    folder = tmp_path / "inspection"
    assert sorted(file.name for file in folder.iterdir()) == ["inspection.html", "plan.json", "survey.json"]
    assert "inspection/plan.json" in out


def test_errors_are_status_1_and_there_is_no_plan(command, tmp_path):
    path = make_list(tmp_path / "scans", count=24)
    (tmp_path / "scans" / "s3.nii.gz").unlink()
    code, out, err = command("--data", path, "--output", "out")
    assert (code, err) == (1, "")
    assert "error: row 5: no such file or folder: s3.nii.gz" in out
    assert "cannot be used: s3.nii.gz: its file is missing" in out
    assert "no plan is written while there are errors" in out
    assert not (tmp_path / "out" / "plan.json").exists()
    assert "no such file" in (tmp_path / "out" / "inspection.html").read_text()


def test_warnings_are_status_1_only_with_strict(command, tmp_path):
    path = make_list(tmp_path / "scans", count=16)
    code, out, _ = command("--data", path)
    assert code == 0
    assert "warning: few cases" in out
    assert command("--data", path, "--strict")[0] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "no.csv"], "there is no list at no.csv"),
        (["--data", "scans/s0.nii.gz"], "is neither a CSV file nor a JSON datalist"),
        (
            ["--data", "scans/scans.csv", "--label-column", "diagnosis"],
            "has no column 'diagnosis', it has image, label",
        ),
        (["--data", "scans/scans.csv", "--bundle", "scans"], "scans is no bundle"),
        (["--data", "scans/scans.csv", "--missing-channels", "ones"], "unknown missing_channels 'ones'"),
    ],
)
def test_a_wrong_command_or_list_is_status_2(command, tmp_path, words, message):
    make_list(tmp_path / "scans", count=2)
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_wrong_option_is_status_2(command):
    assert command()[0] == 2
    assert command("--data", "x", "--folds", 1)[0] == 2


def test_a_folder_to_train_in(command, tmp_path):
    path = make_list(tmp_path / "Größe 5 #", count=24, Diagnose=lambda n: ["gut", "böse"][n % 2])
    mine = tmp_path / "my bundle"
    code, out, _ = command(
        "--data", path, "--bundle", mine, "--label-column", "Diagnose", "--folds", 3, "--test-fraction", 0
    )
    assert code == 0
    plan = json.loads((mine / "configs" / "plan.json").read_text())
    assert (plan["label_column"], plan["folds"], plan["test_fraction"]) == ("Diagnose", 3, 0)
    assert plan["_plan_"]["reasons"]["folds"] == "given"
    assert "split_column" not in plan
    assert (mine / "configs" / "train.json").is_file()
    results = mine / "eval" / "inspection"
    assert sorted(file.name for file in results.iterdir()) == ["inspection.html", "survey.json"]
    assert re.search(r"│ böse ┃ gut|┃ böse ┃ gut", out)
    first = (mine / "configs" / "plan.json").read_text()
    assert (
        command("--data", path, "--bundle", mine, "--label-column", "Diagnose", "--folds", 3, "--test-fraction", 0)[0]
        == 0
    )
    assert (mine / "configs" / "plan.json").read_text() == first
    assert not (mine / "configs" / "plan.1.json").exists()


def test_a_list_that_cannot_be_divided(tmp_path):
    found = inspect_list(make_list(tmp_path / "scans", count=6), tmp_path / "out", progress=False)
    assert re.search("the cases cannot be divided: 5 folds are more than the 3 cases", found.findings.errors[0])
    assert found.plan is None
    found = inspect_list(make_list(tmp_path / "scans", count=6), tmp_path / "out", given={"folds": 3}, progress=False)
    assert found.findings.errors == ()
    assert found.count() == {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}}


def test_no_scan_can_be_read(tmp_path):
    path = make_list(tmp_path / "scans", count=4)
    for file in path.parent.glob("*.gz"):
        file.write_bytes(b"damaged")
    found = inspect_list(path, tmp_path / "out", progress=False)
    assert any("no case can be used" in text for text in found.findings.errors)
    assert len(found.refused) == 4


def test_a_folder_of_classes(tmp_path):
    for number in range(20):
        save(tmp_path / "scans" / ("ill" if number % 2 else "well") / f"{number}.nii.gz", mr(number))
    found = inspect_list(tmp_path / "scans", tmp_path / "out", progress=False)
    assert found.findings.errors == ()
    assert found.plan.values["data"] == str(tmp_path / "scans")


def test_an_interruption_is_no_traceback_and_resumes(command, tmp_path, monkeypatch):
    path, read = make_list(tmp_path / "scans", count=6), []

    def stop(source, reader):
        read.append(source)
        if "s3" in source:
            raise KeyboardInterrupt
        return read_volume(source, reader)

    monkeypatch.setattr("monai_llmboost.inspection.survey.read_volume", stop)
    code, out, err = command("--data", path, "--folds", 3, "-o", "out")
    assert (code, out) == (130, "")
    assert err.endswith("interrupted; what was read is kept, and the same command resumes\n")
    assert len(json.loads((tmp_path / "out" / "survey.json").read_text())["cases"]) == 3
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert len(read) == 4
    found = inspect_list(path, tmp_path / "out", given={"folds": 3}, progress=False)
    assert found.findings.errors == ()
