# SPDX-License-Identifier: Apache-2.0
"""What may go wrong around good scans: the checkpoint, the donor, the disk, the kind of scan, other files."""

import json
import re
import resource
import shutil
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import llama_config
from dicom_files import write_series
from processes import run_python
from safetensors.torch import save_file
from test_predict import rows_of, words_of, write_scans
from typer.testing import CliRunner

from monai_llmboost.command_line.app import app
from monai_llmboost.llm.donor.checkpoint import read_layers

pytestmark = [
    # What MONAI, Ignite and torch say of themselves on every normal run (MONAI 1.6.1, torch 2.15).
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]


def predict(*arguments):
    return CliRunner().invoke(app, words_of(*arguments))


class Evil:
    def __reduce__(self):
        return (print, ("code of the checkpoint was run",))


def test_a_checkpoint_that_runs_code_is_refused(trained_bundle, tmp_path):
    bundle = shutil.copytree(trained_bundle, tmp_path / "bundle")
    torch.save({"head.bias": Evil()}, bundle / "models" / "model.pt")
    result = predict(bundle, write_scans(tmp_path / "scans", 1), tmp_path / "out")
    assert result.exit_code == 2
    # Ray, once it was imported, has put its own function in the place of print.
    assert re.search(r"it holds \S*print, and only tensors, numbers and text are read", result.output)
    assert "weights_only" not in result.output, "no advice to run it all the same"
    assert "was run" not in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out" / "predictions.csv").exists()


def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_disk_without_room_costs_only_what_is_not_written(trained_bundle, tmp_path):
    """The system lets the first run write files of 4 kB at most, so its journal is full before its last case."""
    scans = write_scans(tmp_path / "scans", 12)
    words = words_of(trained_bundle, scans, tmp_path / "out", "--no-report", "--batch-size", "1")
    full = run_python([sys.executable, "-W", "ignore", "-m", "monai_llmboost", *words], preexec_fn=limit)
    assert full.returncode == 1
    assert "make room, or correct the folder; " in full.stderr
    assert "cases are kept: run the same command again to resume" in full.stderr
    assert "Traceback" not in full.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"journal"}, "no part of a table"
    journal = tmp_path / "out" / "journal" / "rank-0.jsonl"
    whole = journal.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    kept = [json.loads(line)["case"] for line in whole.splitlines()[1:]]
    assert 2 < len(kept) < 12
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert journal.read_bytes().startswith(whole), "what was written counts"
    assert [row["case"] for row in rows_of(tmp_path / "out")] == [f"scan-{index:03d}.nii.gz" for index in range(12)]


def test_a_run_that_fails_lets_go_of_its_folder(trained_bundle, tmp_path, monkeypatch):
    scans, full = write_scans(tmp_path / "scans", 3), OSError(28, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", Mock(side_effect=full))
        failed = predict(trained_bundle, scans, tmp_path / "out")
    assert failed.exit_code != 0
    kept = failed.exc_info  # keeps all that the run held alive, as a notebook does
    again = predict(trained_bundle, scans, tmp_path / "out")
    assert again.exit_code == 0, again.output
    assert kept


def test_another_modality_is_warned_of_and_other_files_are_one_line(trained_bundle, tmp_path):
    bundle = shutil.copytree(trained_bundle, tmp_path / "bundle")
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    metadata["network_data_format"]["inputs"]["image"]["modality"] = "MR"
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    volume = np.random.default_rng(0).integers(0, 256, (9, 8, 7)).astype(np.int16)
    write_series(tmp_path / "scans" / "ct", volume)
    write_series(tmp_path / "scans" / "mr", volume, series="mr", Modality="MR")
    for number in range(30):
        (tmp_path / "scans" / "ct" / f"{number}.log").write_text("junk")
    result = predict(bundle, tmp_path / "scans", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert {row["case"]: row["warnings"] for row in rows_of(tmp_path / "out")} == {
        "ct": "the network was made for MR images, this is CT",
        "mr": "",
    }
    (line,) = [line for line in result.output.splitlines() if ".log" in line]
    assert "30 skipped: a text file" in line


def eight_bits(folder, llama):
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in llama.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (
            eight_bits,
            ValueError,
            r".* is torch\.float8_e4m3fn, not a float dtype: .*a donor that is not quantised",
        ),
        (
            lambda folder, llama: (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF\3\0\0\0"),
            ValueError,
            r"cannot read model-Q4_K_M\.gguf: it is truncated within its header",
        ),
    ],
    ids=["float8", "a cut GGUF"],
)
def test_a_quantised_donor_that_cannot_be_read_is_refused(llama, geometry, tmp_path, write, error, message):
    (tmp_path / "config.json").write_text(json.dumps(llama_config(geometry)))
    write(tmp_path, llama)
    with pytest.raises(error, match=message):
        read_layers(tmp_path)
