# SPDX-License-Identifier: Apache-2.0
"""A volume is read once for its prediction, its picture and its viewer, and memory for that is bounded."""

import os
import re
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from conftest import ROOT, SMALL
from dicom_files import write_series

from monai_llmboost.data import ScanReader
from monai_llmboost.inference import handler
from monai_llmboost.inference.run import run_predict

pytestmark = [
    # What MONAI, Ignite and torch report on every normal run (MONAI 1.6.1, torch 2.15).
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
NETWORK = {key: value for key, value in SMALL.items() if key != "batch_size"}


@pytest.fixture
def scans(tmp_path):
    """Two volumes of unlike shapes, as NIfTI and as DICOM."""
    random = np.random.default_rng(0)
    nibabel.save(nibabel.Nifti1Image(random.integers(0, 255, (9, 8, 7), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    (tmp_path / "scans").mkdir()
    (tmp_path / "a.nii.gz").rename(tmp_path / "scans" / "a.nii.gz")
    write_series(tmp_path / "scans" / "series", random.integers(0, 255, (12, 11, 10)).astype(np.int16))
    return tmp_path / "scans"


@pytest.fixture
def reads(monkeypatch):
    """The processes that read a volume, one entry for each reading in this one."""
    found, get_data = [], ScanReader.get_data

    def counted(reader, img):
        found.append(os.getpid())
        return get_data(reader, img)

    monkeypatch.setattr(ScanReader, "get_data", counted)
    return found


@pytest.fixture
def drawn(trained_bundle, scans, tmp_path):
    """Predict with maps, pictures and a viewer: drawn(name, ...) -> pictures and maps, and pictures in viewers."""

    def run(name, **options):
        out = tmp_path / name
        options = {"saliency": True, "view": ["series", "a.nii.gz"], **NETWORK, **options}
        result = run_predict(trained_bundle, out, "none", dataset_dir=[str(scans)], **options)
        assert result.status == 0
        assert not any(row.warnings for row in result.rows)
        page = (out / "report.html").read_text()
        assert page.count('id="viewer-') == (0 if options.get("report") is False else 2)
        viewers = [re.findall('data:image/[^;]*;base64,[^"]{99,}', part) for part in page.split('id="viewer-')[1:]]
        files = sorted(path for path in (out / "saliency").rglob("*") if path.is_file())
        return [path.read_bytes() for path in files], viewers

    return run


def test_a_volume_is_read_once(drawn, reads):
    drawn("out")
    assert len(reads) == 2


def test_a_volume_that_a_worker_read_is_not_read_again(drawn, reads):
    expected = drawn("none")
    reads.clear()
    assert drawn("workers", num_workers=1) == expected
    assert reads == []


def test_beyond_the_memory_a_volume_is_read_again_once_for_all_its_pictures(drawn, reads, monkeypatch):
    expected = drawn("kept")
    reads.clear()
    monkeypatch.setattr(handler, "KEPT_BYTES", 4 * 9 * 8 * 7 * 8)  # the small volume, eight times: a batch
    assert drawn("not kept") == expected
    assert len(reads) == 3


def test_without_pictures_no_volume_is_kept(trained_bundle, scans, tmp_path, monkeypatch):
    kept = []
    make = handler.CaseOutputs.make
    monkeypatch.setattr(handler.CaseOutputs, "make", lambda *given: kept.append(given[2].voxels) or make(*given))
    run_predict(trained_bundle, tmp_path / "out", "none", dataset_dir=[str(scans)], **NETWORK)
    assert kept == [b"", b""]


@pytest.mark.parametrize("words", [["--misspelt", "1"], ["--batch_size", "4"], ["--device", "gpu"], ["--view", "a"]])
def test_a_mistake_on_the_command_line_is_reported_before_heavy_imports(tmp_path, words):
    words = ["predict", "--input", str(tmp_path), *(["--no-report"] if "--view" in words else []), *words]
    code = (
        f"import sys; sys.argv = ['x', *{[*words, '--output', str(tmp_path / 'out')]}]\n"
        "from monai_llmboost.__main__ import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code == 2, end.code\n"
        "assert not {'torch', 'monai'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
