# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import pytest

from monai_llmboost.inference.journal import Journal
from monai_llmboost.inference.rows import Row


def row(case, p=0.5):
    return Row(case, answer={"probabilities": [p, 1 - p], "predicted": "x"}, input_sha256="x")


def opened(folder, key="k", **options):
    journal = Journal(folder, key, **options)
    journal.open()
    return journal


def test_rows_are_on_disk_when_append_returns(tmp_path):
    journal = opened(tmp_path)
    journal.append([row("a"), row("b")])
    lines = (tmp_path / "journal" / "rank-0.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"key": "k"}
    assert [json.loads(line)["case"] for line in lines[1:]] == ["a", "b"]
    assert set(Journal(tmp_path, "k").rows()) == {"a", "b"}, "another process sees them"


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_whatever_a_kill_cuts_off_is_done_again(tmp_path, cut):
    journal = opened(tmp_path)
    journal.append([row("a")])
    journal.append([row("ü\u2028b")])
    journal.close()
    path = tmp_path / "journal" / "rank-0.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    again = opened(tmp_path)
    assert set(again.rows()) == {"a"}
    again.append([row("c")])
    assert set(again.rows()) == {"a", "c"}


def test_a_header_that_is_cut_short(tmp_path):
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "rank-0.jsonl").write_text('{"key": ')
    journal = opened(tmp_path)
    journal.append([row("a")])
    assert set(journal.rows()) == {"a"}


def test_the_last_of_two_rows_counts(tmp_path):
    journal = opened(tmp_path)
    journal.append([row("a", 0.1)])
    journal.append([row("a", 0.9)])
    assert journal.rows()["a"].probabilities[0] == 0.9


def test_rows_of_another_run_are_never_mixed_in(tmp_path):
    first = opened(tmp_path)
    first.append([row("a")])
    first.close()
    with pytest.raises(ValueError, match=r"holds predictions made with other weights.*--overwrite"):
        Journal(tmp_path, "other").rows()
    again = Journal(tmp_path, "other", overwrite=True)
    assert again.rows() == {}, "before the folder is taken, too"
    again.open()
    again.append([row("b")])
    assert set(Journal(tmp_path, "other").rows()) == {"b"}


def test_ranks_write_files_of_their_own(tmp_path):
    for rank in (0, 1):
        Journal(tmp_path, "k", rank=rank).append([row(f"case {rank}")])
    assert set(Journal(tmp_path, "k").rows()) == {"case 0", "case 1"}


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    code = f"from monai_llmboost.inference.journal import Journal; Journal({str(tmp_path)!r}, 'k').open()"
    held = opened(tmp_path)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert "another run is writing into" in done.stderr
    held.close()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_overwrite_is_a_switch(tmp_path):
    with pytest.raises(ValueError, match="overwrite must be True or False, not 'false'"):
        Journal(tmp_path, "k", overwrite="false")
