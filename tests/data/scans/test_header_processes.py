# SPDX-License-Identifier: Apache-2.0
"""Searches with several processes find the same as one, and many series of one study take no longer each."""

import io
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import nibabel
import numpy as np
import pytest
from dicom_files import random_volume, write_series

from monai_llmboost.data import find_scans
from monai_llmboost.data.scans import parallel
from monai_llmboost.data.scans.dicom import pieces
from monai_llmboost.data.scans.parallel import read_files, show_progress


def end(number):
    if number == 70:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.fixture
def mixed(tmp_path):
    """Series of one patient (whose slices are one volume only if their patient is the same), NIfTI and other files."""
    write_series(tmp_path / "series", random_volume((4, 4, 70)))
    for number in range(3):
        write_series(tmp_path / "more", random_volume((4, 4, 3)), series=f"more-{number}")
    (tmp_path / "more" / "broken.dcm").write_bytes(b"no slice")
    for number in range(70):
        nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4 + number % 3)), np.eye(4)), tmp_path / f"{number}.nii")
    (tmp_path / "empty.nii").touch()
    (tmp_path / "notes.txt").write_text("words")
    return tmp_path


# By "spawn" processes import everything again, as on Windows, macOS and with later versions of Python.
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_find_the_same(mixed, monkeypatch, method):
    made = []

    def pool(*arguments, **same):
        made.append(ProcessPoolExecutor(*arguments, **same, mp_context=get_context(method)))
        return made[-1]

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", pool)
    alone = find_scans(mixed)
    assert not made
    assert [sum(scan.format == kind for scan in alone[0]) for kind in ("NIfTI", "DICOM")] == [71, 5]
    assert find_scans(mixed, num_workers=2) == alone
    assert len(made) == 2, "for the kinds of files and NIfTI headers, and for DICOM headers"


def test_a_process_that_ends_is_an_error():
    with pytest.raises(RuntimeError, match="a process that read headers was ended: give fewer --workers"):
        list(read_files(end, range(100), 2, "read"))


def test_a_bar_appears_where_a_search_takes_long(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(parallel, "tqdm", partial(parallel.tqdm, file=terminal, mininterval=0))
    assert list(show_progress(range(5), "read headers")) == list(range(5))
    assert not terminal.getvalue()
    monkeypatch.setattr(parallel, "SHOWN_AFTER", 0)
    assert list(show_progress(range(5), "read headers")) == list(range(5))
    assert "read headers" in terminal.getvalue() and "5/5" in terminal.getvalue()


def test_many_series_of_one_study_are_not_compared_with_one_another(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(pieces, "_are_halves", lambda *pair: compared.append(pair))
    for number in range(12):
        write_series(tmp_path / str(number), random_volume((4, 4, 3)), series=f"series-{number}")
    assert len(find_scans(tmp_path)[0]) == 12
    assert not compared
