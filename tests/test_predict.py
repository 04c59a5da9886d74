# SPDX-License-Identifier: Apache-2.0
"""`monai-llmboost predict` as its users run it: mixed folders, interruptions, mistakes, several processes."""

import csv
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import nibabel
import numpy as np
import pytest
import torch
from conftest import SMALL
from dicom_files import write_series
from typer.testing import CliRunner

from monai_llmboost.command_line.app import app
from monai_llmboost.data import phantom_arrays
from monai_llmboost.predict import run_predict

pytestmark = [
    # What MONAI, Ignite and torch say of themselves on every normal run (MONAI 1.6.1, torch 2.15).
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
NETWORK = {key: value for key, value in SMALL.items() if key != "batch_size"}


def write_scans(folder, count, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    images, _ = phantom_arrays("test", cases=first + count)
    for index in range(first, first + count):
        nibabel.save(nibabel.Nifti1Image(images[index], np.diag([1, 1.5, 2, 1])), folder / f"scan-{index:03d}.nii.gz")
    return folder


def rows_of(output):
    with (output / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def predict(trained_bundle, tmp_path):
    """The command's work in this process: predict(input, ...) -> exit code; it writes into tmp_path / "out"."""

    def run(*inputs, arm="none", output=None, **options):
        inputs = [str(path) for path in inputs]
        return run_predict(
            trained_bundle,
            output or tmp_path / "out",
            arm,
            **{"dataset_dir": inputs, "report": False, **NETWORK, **options},
        )

    return run


def words_of(bundle, scans, output, *more):
    network = [word for key, value in SMALL.items() if key != "batch_size" for word in (f"--{key}", str(value))]
    places = ["--bundle", str(bundle), "--input", str(scans), "--output", str(output)]
    return ["predict", *places, "--arm", "none", *network, *more]


@pytest.fixture
def command(trained_bundle, tmp_path):
    """The command line in this process: command("--input", ...) -> result with exit_code and output."""

    def run(*words, bundle=trained_bundle, output=True):
        network = [word for key, value in NETWORK.items() for word in (f"--{key}", str(value))]
        places = ["--output", str(tmp_path / "out")] if output else []
        words = ["predict", "--bundle", str(bundle), "--arm", "none", *places, *network, *map(str, words)]
        return CliRunner().invoke(app, words)

    return run


def test_a_folder_becomes_tables_facts_and_a_page(command, tmp_path):
    scans = write_scans(tmp_path / "scans", 3)
    (scans / "notes.txt").write_text("hello")
    (scans / "broken.nii.gz").write_bytes((scans / "scan-000.nii.gz").read_bytes()[:2000])
    result = command("--input", scans)
    assert result.exit_code == 1, result.output
    assert "3 predicted, 1 refused" in result.output
    assert "notes.txt" in result.output
    rows = rows_of(tmp_path / "out")
    assert [row["case"] for row in rows] == ["broken.nii.gz", "scan-000.nii.gz", "scan-001.nii.gz", "scan-002.nii.gz"]
    assert rows[0]["refused"] and not rows[0]["predicted"] and not rows[0]["p_ring"]
    for row in rows[1:]:
        assert float(row["p_shell"]) + float(row["p_ring"]) == pytest.approx(1)
        assert row["predicted"] == max(("shell", "ring"), key=lambda name: float(row[f"p_{name}"]))
    told = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert told["class_names"] == ["shell", "ring"]
    assert "not for diagnosis" in told["intended_use"]
    case = told["cases"][1]
    digest = hashlib.sha256((scans / "scan-000.nii.gz").read_bytes()).hexdigest()
    assert (case["input_sha256"], case["shape"], case["spacing_mm"]) == (digest, [28, 28, 28], [1, 1.5, 2])
    assert case["probabilities"] == pytest.approx([float(rows[1]["p_shell"]), float(rows[1]["p_ring"])])
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["cases"] == {"predicted": 3, "refused": 1, "skipped": 1}
    assert run["versions"]["monai"] and re.fullmatch("[0-9a-f]{64}", run["weights"]["sha256"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "scan-002.nii.gz" in page and "not for diagnosis" in page


def test_exit_codes(predict, command, tmp_path):
    scans = write_scans(tmp_path / "scans", 1)
    assert predict(scans, output=tmp_path / "good") == 0
    (scans / "bad.nii").write_bytes(b"")
    assert predict(scans, output=tmp_path / "some") == 1
    (scans / "scan-000.nii.gz").unlink()
    assert predict(scans, output=tmp_path / "none") == 2
    assert rows_of(tmp_path / "none")[0]["refused"]
    assert command("--input", tmp_path / "nothing").exit_code == 2


def test_dry_run_reads_no_weights_and_writes_nothing(command, tmp_path):
    scans = write_scans(tmp_path / "scans", 2)
    (scans / "empty.nii").write_bytes(b"")
    shutil.copytree(scans, tmp_path / "more")
    result = command("--dry-run", "--input", scans, tmp_path / "more", bundle="medmnist3d_rllm_classification")
    assert result.exit_code == 1
    assert "28 x 28 x 28" in result.output and "1 x 1.5 x 2" in result.output and "RAS" in result.output
    assert "4 to predict, 2 refused" in result.output
    assert not (tmp_path / "out").exists()
    assert command("--dry-run", "--input", scans, output=False).exit_code == 1


def test_only_what_is_new_or_changed_is_predicted_again(predict, tmp_path):
    scans = write_scans(tmp_path / "scans", 4)
    assert predict(scans, batch_size=1) == 0
    journal = tmp_path / "out" / "journal" / "rank-0.jsonl"
    first, before = rows_of(tmp_path / "out"), journal.read_bytes()
    assert predict(scans, batch_size=1) == 0
    assert journal.read_bytes() == before
    assert rows_of(tmp_path / "out") == first
    (scans / "scan-001.nii.gz").write_bytes((scans / "scan-003.nii.gz").read_bytes())
    write_scans(scans, 1, first=4)
    assert predict(scans, batch_size=1) == 0
    added = journal.read_text()[len(before) :].splitlines()
    assert [json.loads(line)["case"] for line in added] == ["scan-001.nii.gz", "scan-004.nii.gz"]
    rows = rows_of(tmp_path / "out")
    assert rows[1]["p_ring"] == rows[3]["p_ring"] != first[1]["p_ring"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "journal", "predictions.csv", "predictions.json", "run.json",
    ]  # fmt: skip


def test_other_weights_or_transforms_are_not_mixed_in(predict, trained_bundle, tmp_path):
    scans = write_scans(tmp_path / "scans", 2)
    predict(scans)
    first = rows_of(tmp_path / "out")
    with pytest.raises(ValueError, match="made with other weights, block, options or versions"):
        predict(scans, intensity_range=[0, 300])
    other = shutil.copytree(trained_bundle, tmp_path / "other")
    state = torch.load(other / "models" / "model.pt", weights_only=True)
    torch.save({**state, "head.bias": state["head.bias"] + torch.tensor([1.0, 0.0])}, other / "models" / "model.pt")
    with pytest.raises(ValueError, match="give another folder, or --overwrite"):
        predict(scans, ckpt_dir=str(other / "models"))
    assert rows_of(tmp_path / "out") == first
    assert predict(scans, ckpt_dir=str(other / "models"), overwrite=True) == 0
    assert [row["p_ring"] for row in rows_of(tmp_path / "out")] != [row["p_ring"] for row in first]


def test_tables_of_something_else_are_set_aside(predict, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.csv").write_text("case\nmine\n")
    predict(write_scans(tmp_path / "scans", 1))
    assert (tmp_path / "out" / "predictions.1.csv").read_text() == "case\nmine\n"


def asked_in_a_process_of_its_own(arguments):
    import warnings

    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    run_predict(**arguments)


@pytest.fixture(scope="module")
def forks():
    """Processes that have imported everything, so that a run takes a second and not ten."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["test_predict", "monai.bundle", "monai_llmboost.inference", "monai_llmboost.predict"]
    )
    return context


def test_killed_ten_times_at_random_moments_ends_as_if_undisturbed(trained_bundle, tmp_path, forks):
    """200 cases; each run is killed at a moment drawn from its first second, wherever it then is."""
    scans = write_scans(tmp_path / "scans", 198)
    (scans / "scan-050.nii.gz").write_bytes(b"no scan")
    (scans / "cut.nii.gz").write_bytes((scans / "scan-000.nii.gz").read_bytes()[:-50])
    arguments = {"bundle": trained_bundle, "arm": "none", "dataset_dir": str(scans), **NETWORK, "batch_size": 3}
    draw, kills, progress = random.Random(0), 0, []
    journal = tmp_path / "killed" / "journal" / "rank-0.jsonl"
    while kills < 10:
        run = forks.Process(target=asked_in_a_process_of_its_own, args=({**arguments, "output": tmp_path / "killed"},))
        before = journal.stat().st_size if journal.exists() else 0
        run.start()
        while run.is_alive() and (journal.stat().st_size if journal.exists() else 0) <= before:
            time.sleep(0.001)  # it reads its imports, the scans and the journal
        time.sleep(draw.uniform(0, 0.1))
        os.kill(run.pid, signal.SIGKILL)
        run.join()
        assert run.exitcode == -signal.SIGKILL, "it was still at work"
        kills += 1
        progress.append(journal.read_bytes().count(b"\n"))
    assert not (tmp_path / "killed" / "predictions.csv").exists()
    assert progress == sorted(progress) and progress[-1] < 200
    for output in ("killed", "undisturbed"):
        run = forks.Process(target=asked_in_a_process_of_its_own, args=({**arguments, "output": tmp_path / output},))
        run.start()
        run.join()
        assert run.exitcode == 0
    killed, undisturbed = (rows_of(tmp_path / name) for name in ("killed", "undisturbed"))
    assert len(killed) == 199
    for row in (*killed, *undisturbed):
        row.pop("seconds")
    assert killed == undisturbed


def test_two_processes_give_one_result(predict, trained_bundle, tmp_path):
    scans = write_scans(tmp_path / "scans", 7)
    (scans / "broken.nii").write_bytes(b"x" * 400)
    predict(scans, output=tmp_path / "one", batch_size=2)
    words = [f"--{key}={value}" for key, value in NETWORK.items()]
    done = subprocess.run(
        [
            sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m",
            "monai_llmboost", "predict", "--bundle", str(trained_bundle), "--arm", "none", "--batch-size", "2",
            "--input", str(scans), "--output", str(tmp_path / "two"), *words,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert len(two) == 8, done.stderr
    for row in (*one, *two):
        row.pop("seconds")
    assert one == two
    assert {path.name for path in (tmp_path / "two" / "journal").glob("*.jsonl")} == {"rank-0.jsonl", "rank-1.jsonl"}
    assert all(
        len((tmp_path / "two" / "journal" / f"rank-{rank}.jsonl").read_text().splitlines()) > 2 for rank in (0, 1)
    )
    assert done.stdout.count("7 predicted, 1 refused") == 1


def test_workers_read_alike(predict, tmp_path):
    scans = write_scans(tmp_path / "scans", 3)
    predict(scans, output=tmp_path / "none")
    predict(scans, output=tmp_path / "two", num_workers=2)
    assert [row["p_ring"] for row in rows_of(tmp_path / "none")] == [row["p_ring"] for row in rows_of(tmp_path / "two")]


def test_salted_names_tell_nothing(command, tmp_path):
    scans = write_scans(tmp_path / "Doe^Jane" / "1970-01-01", 2)
    (scans / "Doe.txt").write_text("x")
    volume = np.random.default_rng(0).integers(0, 255, (9, 8, 7)).astype(np.int16)
    for k, path in enumerate(write_series(scans / "gap", volume)):
        path.rename(path.with_name(f"Doe {k}"))
    shutil.copy(scans / "gap" / "Doe 0", scans / "gap" / "Doe 0 again")
    (scans / "gap" / "Doe 3").unlink()
    result = command("--input", tmp_path / "Doe^Jane", "--salt", "pepper")
    assert result.exit_code == 1
    told = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert any("missing: 1, between (a file) and (a file)" in case["refused"] for case in told["cases"]), told
    assert "a copy of another file" in [file["reason"] for file in told["skipped"]]
    assert "Doe " not in result.output
    first = [row["case"] for row in rows_of(tmp_path / "out")]
    assert all(re.fullmatch("case-[0-9a-f]{16}", case) for case in first)
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert b"Doe" not in path.read_bytes(), path
    command("--input", tmp_path / "Doe^Jane", "--salt", "paprika", "--overwrite")
    assert not set(first) & {row["case"] for row in rows_of(tmp_path / "out")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "/nothing"], "expected scans at /nothing, found nothing there"),
        (["--device", "gpu"], "--device to be auto, cpu, cuda or cuda:1 ..., got 'gpu'"),
        (["--device", "cuda:99"], "got 'cuda:99': there are .* GPUs; try auto"),
        (["--batchsize", "3"], "no option --batchsize: did you mean --batch_size"),
        (["--ckpt_dir", "/nothing"], "expected trained weights at /nothing/model.pt, found none: train first"),
        (["--view", "other.nii"], "a case to view among those found, got 'other.nii'"),
        (["--intensity_range", "[5,1]"], r"intensity_range as \[low, high\], got \[5, 1\]"),
        (["--amp", "--device", "cpu"], "mixed precision on a GPU, got --amp with the device cpu"),
        (["--gantry_tilt", "straight"], "gantry_tilt"),
        (["--volume", "x"], "volume"),
        (["--salt", "x", "--dicom"], "--salt or --dicom, got both"),
        (["--num_heads", "3"], "num_heads"),
        (["--batch_size", "4"], "expected --batch-size, got --batch_size: so it is named here"),
        (["--num_workers", "1"], "expected --workers, got --num_workers"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(command, tmp_path, words, message):
    scans = write_scans(tmp_path / "scans", 1)
    words = words if "--input" in words else ["--input", scans, *words]
    result = command(*words)
    assert result.exit_code == 2, result.output
    assert re.search(message, result.output.replace("\n", " ")), result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out" / "predictions.csv").exists()


def test_no_output_is_said(command, tmp_path):
    result = command("--input", write_scans(tmp_path / "scans", 1), output=False)
    assert result.exit_code == 2
    assert "give --output DIR, or --dry-run" in result.output


def test_output_inside_of_the_input_is_not_read_again(predict, tmp_path):
    scans = write_scans(tmp_path / "scans", 2)
    for _ in range(2):
        assert predict(scans, output=scans / "out", saliency=True) == 0
    assert [row["case"] for row in rows_of(scans / "out")] == ["scan-000.nii.gz", "scan-001.nii.gz"]
    assert list((scans / "out" / "saliency").rglob("*.nii.gz"))


def test_overwrite_leaves_alone_what_is_not_its_own(predict, tmp_path):
    """The scans may lie in a folder of the output that is called as one of ours."""
    scans = write_scans(tmp_path / "study" / "dicom", 1)
    (tmp_path / "study" / "saliency").mkdir()
    (tmp_path / "study" / "saliency" / "mine.txt").write_text("mine")
    for _ in range(2):
        assert predict(scans, output=tmp_path / "study", overwrite=True, saliency=True) == 0
    assert [path.name for path in scans.iterdir()] == ["scan-000.nii.gz"]
    assert (tmp_path / "study" / "saliency" / "mine.txt").read_text() == "mine"


def test_what_is_refused_while_it_is_read_is_told(trained_bundle, tmp_path):
    scans = write_scans(tmp_path / "scans", 2)
    packed = (scans / "scan-001.nii.gz").read_bytes()
    (scans / "scan-001.nii.gz").write_bytes(packed[: len(packed) // 2])
    result = CliRunner().invoke(app, words_of(trained_bundle, scans, tmp_path / "out"))
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if "1 refused: expected a whole gzip stream" in line]
    assert "scan-001.nii.gz" in line


def test_a_dry_run_refuses_several_volumes_of_which_none_is_chosen(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 8, 7, 3), np.int16), np.eye(4)), tmp_path / "x.nii")
    words = ["predict", "--dry-run", "--input", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "expected one volume, got 3: choose one with --volume K" in result.output
    assert CliRunner().invoke(app, [*words, "--volume", "1"]).exit_code == 0


def test_a_file_in_place_of_the_output_costs_no_time(trained_bundle, tmp_path):
    (tmp_path / "out").write_text("mine")
    result = CliRunner().invoke(app, words_of(trained_bundle, write_scans(tmp_path / "scans", 1), tmp_path / "out"))
    assert result.exit_code == 2
    assert "expected --output to be a folder, got" in result.output
    assert (tmp_path / "out").read_text() == "mine"
