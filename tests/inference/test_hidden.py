# SPDX-License-Identifier: Apache-2.0
"""A salted run names no file in any sentence."""

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from dicom_files import random_volume, write_series

from monai_llmboost.data import ScanReader, SkippedFile
from monai_llmboost.inference import ScanCases
from monai_llmboost.inference.hidden import HiddenNames

NAME = "Doe^Jane"


class Loaded:
    """Reads as a bundle does, without the rest."""

    def __init__(self):
        self.reader = ScanReader()

    def __call__(self, item):
        return {"image": torch.as_tensor(self.reader.get_data(self.reader.read(item["image"]))[0])[None, :2, :2, :2]}


def said_of(folder, salt="pepper"):
    """All sentences and names of a run over a folder."""
    cases = ScanCases(folder, Loaded(), (1, 2, 2, 2), ScanReader(), salt=salt)
    items = [cases[index] for index in range(len(cases))]
    return [
        *(text for scan in (*cases.scans, *cases.refused) for text in (scan.name, scan.refused, *scan.warnings)),
        *(text for file in cases.skipped for text in (str(file.path), file.reason)),
        *(text for item in items for text in (item["refused"], item["warnings"])),
    ]


def test_no_sentence_names_a_file(tmp_path):
    folder = tmp_path / f"{NAME} folder"
    paths = write_series(folder / "damaged", random_volume((9, 8, 6)), suffix=f"-{NAME}.dcm")
    (folder / "damaged" / f"again  {NAME}").write_bytes(paths[4].read_bytes()[:-60])
    paths = write_series(folder / "gap", random_volume((9, 8, 7)), series="gap", suffix=f"-{NAME}")
    paths[3].unlink()
    paths = write_series(folder / "cut", random_volume((9, 8, 5)), series="cut", suffix=f"  {NAME}")
    paths[2].write_bytes(paths[2].read_bytes()[:-60])
    image = nibabel.Nifti1Image(np.ones((9, 8, 7), np.int16), np.eye(4))
    (folder / f"odd.{NAME}").write_bytes(gzip.compress(image.to_bytes()))
    nibabel.save(nibabel.Nifti1Pair(np.ones((9, 8, 7), np.int16), np.eye(4)), folder / f"{NAME}.hdr")
    (folder / f"{NAME}.img").unlink()
    said = said_of(folder)
    assert not [text for text in said if "Doe" in text or "Jane" in text], said
    for message in (
        "a damaged copy of (a file)",
        "between (a file) and (a file)",
        "does not end with .gz",
        ".img of (a file) is missing",
    ):
        assert any(message in text for text in said), (message, said)


def test_a_file_that_is_written_again_meanwhile_is_not_named(tmp_path):
    paths = write_series(tmp_path, random_volume((9, 8, 6)), suffix=f"-{NAME}.dcm")
    cases = ScanCases(tmp_path, Loaded(), (1, 2, 2, 2), ScanReader(), salt="pepper")
    paths[2].write_bytes(paths[2].read_bytes()[:-60])
    assert NAME not in cases[0]["refused"] != ""


def test_no_scans_at_all_names_no_file(tmp_path):
    (tmp_path / f"{NAME}.txt").write_text("hello")
    with pytest.raises(FileNotFoundError, match="no NIfTI or DICOM scans at one of the inputs") as error:
        said_of(tmp_path)
    assert NAME not in str(error.value)


def test_a_long_name_is_hidden_before_a_sentence_is_cut(tmp_path):
    long = "x" * 150 + NAME + "y" * 80
    write_series(tmp_path, random_volume((9, 8, 6)))
    shutil.copy(next(tmp_path.iterdir()), tmp_path / long)
    cases = ScanCases(tmp_path, Loaded(), (1, 2, 2, 2), salt="pepper")
    assert "xxx" not in cases.reason(ValueError(f"{'too long a sentence ' * 8} ({long})"))


def test_folders_of_one_word_stay_in_sentences(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = write_series(tmp_path / "in", random_volume((9, 8, 6)))[0].name
    cases = ScanCases("in", Loaded(), (1, 2, 2, 2), salt="pepper")
    message = cases.reason(ValueError(f"got nothing in {tmp_path / 'in'}, in in/{name} or in {name}"))
    assert message == "got nothing in (a file), in (a file) or in (a file)"


@pytest.mark.parametrize("folder", ["pydicom_compressed_endian", ""])
def test_real_files(real_data, folder):
    cases = real_data / "volumes" / "dicom" / folder
    names = {path.name for path in cases.rglob("*") if path.is_file() and len(path.name) > 5}
    said = said_of(cases)
    assert not [text for text in said if any(name in text for name in names)]
    assert folder == "" or "a damaged copy of (a file)" in said


def test_thousands_of_files_cost_little():
    files = [SkippedFile(Path(f"/a/b{i % 100}/{i:06d}.dcm"), f"a copy of {i:06d}.dcm") for i in range(20_000)]
    hidden = HiddenNames("pepper", [], files)
    assert {hidden.skipped(file).reason for file in files} == {"a copy of (a file)"}
