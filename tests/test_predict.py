# SPDX-License-Identifier: Apache-2.0
"""`monai-llmboost predict` as its users run it: mixed folders, interruptions, mistakes, several processes."""

import csv
import errno
import gzip
import hashlib
import html
import json
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
import pydicom
import pytest
import torch
from conftest import EARLIER, SMALL, TWO_PROCESSES
from dicom_files import OBLIQUE, write_series
from processes import FORKS, run_two
from typer.testing import CliRunner

from monai_llmboost.bundle import run_bundle
from monai_llmboost.command_line.app import app
from monai_llmboost.data import BoundedNiftiReader, RefusedScan, phantom_arrays
from monai_llmboost.engines import TrainedWeights
from monai_llmboost.inference.run import StoppedEarly, run_predict
from monai_llmboost.networks import ViT3D

pytestmark = [
    # What MONAI, Ignite and torch say of themselves on every normal run (MONAI 1.6.1, torch 2.15).
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]
# Slices that follow each other sideways: 10 degrees.
TILTED = np.array([[1, 0, 0.2, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
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
    """Run the command's work in this process: predict(input, ...) -> exit code; it writes into tmp_path / "out"."""

    def run(*inputs, arm="none", output=None, **options):
        inputs = [str(path) for path in inputs]
        return run_predict(
            trained_bundle,
            output or tmp_path / "out",
            arm,
            **{"dataset_dir": inputs, "report": False, **NETWORK, **options},
        ).status

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


def test_a_folder_becomes_tables_provenance_and_a_page(command, tmp_path):
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
    table = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert table["class_names"] == ["shell", "ring"]
    assert "not for diagnosis" in table["intended_use"]
    case = table["cases"][1]
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
        "journal", "predictions.1.csv", "predictions.1.json", "predictions.csv", "predictions.json", "run.1.json",
        "run.json",
    ]  # fmt: skip
    write_scans(scans, 1, first=5)
    assert predict(scans, batch_size=1) == 0
    assert not (tmp_path / "out" / "predictions.2.csv").exists(), "nothing of the earlier table is lost"


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


@pytest.mark.parametrize("name", ["scan-001.nii.gz", "scan-000.nii.gz"])
@pytest.mark.parametrize("report", [True, False])
def test_tables_with_cases_of_another_input_are_set_aside(predict, tmp_path, name, report):
    """Another case, or another file of the same name."""
    write_scans(tmp_path / "a", 1)
    write_scans(tmp_path / "b", 1, first=1)
    other = (tmp_path / "b" / "scan-001.nii.gz").rename(tmp_path / "b" / name)
    out = tmp_path / "out"
    assert predict(tmp_path / "a" / "scan-000.nii.gz", report=True) == 0
    kept = {file: (out / file).read_bytes() for file in ("predictions.csv", "predictions.json", "report.html")}
    assert predict(other, report=report) == 0
    assert [row["case"] for row in rows_of(out)] == [name]
    for file, content in kept.items():
        stem, _, suffix = file.partition(".")
        assert (out / f"{stem}.1.{suffix}").read_bytes() == content
    assert (out / "report.html").exists() is report
    assert predict(other, report=report) == 0
    assert not (out / "predictions.2.csv").exists()


def test_a_page_of_what_is_overwritten_is_set_aside(predict, tmp_path):
    write_scans(tmp_path / "a", 1)
    write_scans(tmp_path / "b", 1, first=1)
    assert predict(tmp_path / "a", report=True) == 0
    assert predict(tmp_path / "b", overwrite=True) == 0
    assert {path.name for path in (tmp_path / "out").glob("report*")} == {"report.1.html"}


def predict_in_another_process(arguments):
    import warnings

    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    run_predict(**arguments)


def test_killed_ten_times_at_random_moments_ends_as_if_undisturbed(trained_bundle, tmp_path):
    """200 cases; each run is killed at a moment drawn from its first second, wherever it then is."""
    scans = write_scans(tmp_path / "scans", 198)
    (scans / "scan-050.nii.gz").write_bytes(b"no scan")
    (scans / "cut.nii.gz").write_bytes((scans / "scan-000.nii.gz").read_bytes()[:-50])
    arguments = {"bundle": trained_bundle, "arm": "none", "dataset_dir": str(scans), **NETWORK, "batch_size": 3}
    draw, kills, progress = random.Random(0), 0, []
    journal = tmp_path / "killed" / "journal" / "rank-0.jsonl"
    while kills < 10:
        run = FORKS.Process(target=predict_in_another_process, args=({**arguments, "output": tmp_path / "killed"},))
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
        run = FORKS.Process(target=predict_in_another_process, args=({**arguments, "output": tmp_path / output},))
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
    predict(scans, output=tmp_path / "one", batch_size=2, device="cpu" if TWO_PROCESSES else "cuda")
    words = [f"--{key}={value}" for key, value in NETWORK.items()]
    done = subprocess.run(
        [
            sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m",
            "monai_llmboost", "predict", "--bundle", str(trained_bundle), "--arm", "none", "--batch-size", "2",
            "--input", str(scans), "--output", str(tmp_path / "two"), *words,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **TWO_PROCESSES},
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


def test_salted_names_reveal_nothing(command, tmp_path):
    scans = write_scans(tmp_path / "Doe^Jane" / "1970-01-01", 2)
    (scans / "Doe.txt").write_text("x")
    volume = np.random.default_rng(0).integers(0, 255, (9, 8, 7)).astype(np.int16)
    for k, path in enumerate(write_series(scans / "gap", volume)):
        path.rename(path.with_name(f"Doe {k}"))
    shutil.copy(scans / "gap" / "Doe 0", scans / "gap" / "Doe 0 again")
    (scans / "gap" / "Doe 3").unlink()
    result = command("--input", tmp_path / "Doe^Jane", "--salt", "pepper")
    assert result.exit_code == 1
    table = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert any("missing: 1, between (a file) and (a file)" in case["refused"] for case in table["cases"]), table
    assert "a copy of (a file)" in [file["reason"] for file in table["skipped"]]
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
        (["--input", "/nothing"], "there is nothing at /nothing: correct the path of the scans"),
        (["--device", "gpu"], "unknown --device 'gpu'; choose from auto, cpu, cuda, cuda:1"),
        (["--device", "cuda:99"], "'cuda:99' is not here, there are .* GPUs: try auto"),
        (["--batchsize", "3"], "no option --batchsize: did you mean --batch_size"),
        (["--ckpt_dir", "/nothing"], "there are no trained weights at /nothing/model.pt: train first"),
        (["--view", "other.nii"], "--view 'other.nii' is none of the cases that were found"),
        (["--intensity_range", "[5,1]"], r"intensity_range must be \[low, high\], not \[5, 1\]"),
        (["--precision", "half"], "unknown precision 'half'; choose from auto, float32, bfloat16, float16"),
        (
            ["--precision", "float16", "--device", "cpu"],
            "the precision float16 needs a GPU: use bfloat16, float32 or auto",
        ),
        (["--amp", "False"], "the bundle has no option --amp: it is --precision float32"),
        (["--no-amp"], "got '--no-amp' and no value: it is --precision float32, bfloat16, float16 or auto now"),
        (["--gantry_tilt", "straight"], "gantry_tilt"),
        (["--volume", "x"], "volume"),
        (["--salt", "x", "--dicom"], "--salt hides names, and --dicom writes objects that belong to a patient"),
        (["--view", "scan-000.nii.gz", "--no-report"], "--view is a part of the report, and --no-report writes none"),
        (["--accepted", "x"], "the bundle has no option --accepted"),
        (["--num_heads", "3"], "num_heads"),
        (["--batch_size", "4"], "--batch_size is called --batch-size here"),
        (["--num_workers", "1"], "--num_workers is called --workers here"),
        (["--columns", "bogus"], "unknown column 'bogus'; choose from study_uid, accession_number"),
        (["--columns", "bogus", "--dry-run"], "unknown column 'bogus'; choose from study_uid, accession_number"),
        (["--class_names", "[1, 2]"], r"class names \[1, 2\] are no list of texts"),
        (["--class_names", '["a\\nb", "a b"]'], "are not all different"),
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


def test_a_missing_output_is_reported(command, tmp_path):
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


@pytest.fixture
def named_otherwise(trained_bundle, tmp_path):
    """A copy of the bundle whose checkpoint has other names than its config: left, right."""
    folder = shutil.copytree(trained_bundle, tmp_path / "named")
    file = folder / "models" / "model.pt"
    state = torch.load(file, weights_only=True)
    network = ViT3D(1, 2, 28, 7, 16, mlp_dim=16, num_layers=1, num_heads=2, class_names=["left", "right"])
    own = {key: value for key, value in network.state_dict().items() if key.startswith("class_names")}
    torch.save({**state, **own}, file)
    return folder


def names_in_files(output):
    """Return the names of the classes as each of the files has them."""
    head = (output / "predictions.csv").read_text().split("\n")[0].split(",")
    table = [json.loads((output / name).read_text())["class_names"] for name in ("predictions.json", "run.json")]
    page = (output / "report.html").read_text()
    return [
        [name[2:] for name in head if name.startswith("p_")],
        *table,
        re.findall('class="p"><button[^>]*>(.*?)<', page),
    ]


def as_copied_earlier(bundle):
    """Make of a bundle what it was before it named its weights: a handler loads them when the evaluator starts."""
    file = bundle / "configs" / "inference.json"
    config = json.loads((EARLIER / "inference.json").read_text())
    for key in ("weights", "columns"):
        del config["predictions"][key]
    config["handlers"].insert(0, config.pop("trained_weights"))
    del config["handlers"][0]["weights"]
    config["facts"]["weights"] = "$@ckpt_dir + '/model.pt'"
    for key in ("only", "columns", "weights"):
        del config[key]
    del config["cases"]["only"], config["facts"]["about"]["figures"]
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("copied", ["now", "earlier"])
@pytest.mark.parametrize("way", ["twice", "all refused", "some done", "overwrite", "plain MONAI"])
def test_names_come_from_the_weights_on_every_way_through(named_otherwise, tmp_path, copied, way):
    if copied == "earlier":
        as_copied_earlier(named_otherwise)
    scans = write_scans(tmp_path / "scans", 2)
    if way == "all refused":
        for file in scans.iterdir():
            file.write_bytes(file.read_bytes()[:-40])
    out = tmp_path / "out"
    options = {"dataset_dir": [str(scans)], **NETWORK}
    first = run_predict(named_otherwise, out, "none", **options).status
    assert first == (2 if way == "all refused" else 0)
    rows = rows_of(out)
    if way == "some done":
        write_scans(scans, 1, first=2)
    if way == "plain MONAI":
        run_bundle(named_otherwise, "inference", "none", False, output_dir=str(out), **options)
    else:
        again = (
            {"overwrite": True}
            if way == "overwrite"
            else {"view": None if way == "all refused" else ["scan-000.nii.gz"]}
        )
        assert run_predict(named_otherwise, out, "none", **options, **again).status == first
    assert names_in_files(out) == [["left", "right"]] * 4
    for row, before in zip(rows_of(out), rows):
        assert {**row, "seconds": ""} == {**before, "seconds": ""}


def test_names_come_from_the_weights_where_the_first_process_has_nothing_to_do(named_otherwise, tmp_path):
    scans = write_scans(tmp_path / "scans", 1)
    words = [f"--{key}={value}" for key, value in NETWORK.items()]
    command = [
        sys.executable, "-W", "ignore", "-m", "monai_llmboost", "predict", "--bundle", named_otherwise, "--arm", "none",
        "--input", scans, "--output", tmp_path / "out", *words, "--rank", "$1 - int(os.environ['RANK'])",
    ]  # fmt: skip
    done, _ = run_two(command, env={**os.environ, **TWO_PROCESSES})
    assert names_in_files(tmp_path / "out") == [["left", "right"]] * 4, done.stderr


def test_a_network_without_loaded_weights_is_not_written_about(named_otherwise, tmp_path):
    as_copied_earlier(named_otherwise)
    file = named_otherwise / "configs" / "inference.json"
    config = json.loads(file.read_text())
    config["handlers"].pop(0)
    config["facts"]["weights"] = "$@ckpt_dir + '/other.pt'"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"no trained weights were loaded into the network.*@trained_weights"):
        run_predict(named_otherwise, tmp_path / "out", "none", dataset_dir=[str(write_scans(tmp_path / "scans", 1))],
                    **NETWORK)  # fmt: skip
    assert not (tmp_path / "out" / "predictions.csv").exists()


def test_weights_that_do_not_fit_are_refused_before_the_folder_is_taken(predict, trained_bundle, tmp_path):
    scans = write_scans(tmp_path / "scans", 1)
    state = torch.load(trained_bundle / "models" / "model.pt", weights_only=True)
    (tmp_path / "models").mkdir()
    torch.save({key: value for key, value in state.items() if "head" not in key}, tmp_path / "models" / "model.pt")
    with pytest.raises(ValueError, match="only this network has 4 weights"):
        predict(scans, ckpt_dir=str(tmp_path / "models"))
    assert not (tmp_path / "out").exists()


def test_weights_that_change_while_they_are_read_are_noticed(predict, trained_bundle, tmp_path, monkeypatch):
    folder = shutil.copytree(trained_bundle / "models", tmp_path / "models")
    load = TrainedWeights.load

    def replaced(weights):
        load(weights)
        state = torch.load(weights.path, weights_only=True)
        torch.save({**state, "head.bias": state["head.bias"] + 1}, weights.path)

    monkeypatch.setattr(TrainedWeights, "load", replaced)
    with pytest.raises(ValueError, match="written while it was read: run this again"):
        predict(write_scans(tmp_path / "scans", 1), ckpt_dir=str(folder))


def test_weights_of_the_last_epoch_are_read_where_they_are_asked_for(command, trained_bundle, tmp_path):
    scans = write_scans(tmp_path / "scans", 1)
    folder = shutil.copytree(trained_bundle / "models", tmp_path / "models")
    words = ["--input", scans, "--ckpt_dir", folder]
    result = command(*words, "--weights", "last")
    assert result.exit_code == 2 and f"there are no trained weights at {folder}/last.pt" in result.output
    state = torch.load(folder / "model.pt", weights_only=True)
    state["head.bias"] = state["head.bias"] + torch.tensor([0.0, 1.0])
    torch.save({"model": state}, folder / "last.pt")
    table = {}
    for weights, file in (("best", "model.pt"), ("last", "last.pt")):
        out = tmp_path / weights
        given = [] if weights == "best" else ["--weights", weights]
        result = command(*words, *given, "--output", out, output=False)
        assert result.exit_code == 0, result.output
        assert f"weights: {folder / file}" in result.output
        run = json.loads((out / "run.json").read_text())
        assert run["weights"] == {
            "file": str(folder / file),
            "sha256": hashlib.sha256((folder / file).read_bytes()).hexdigest(),
        }
        table[weights] = float(rows_of(out)[0]["p_ring"])
    assert table["last"] > table["best"] + 0.05
    result = command(*words, "--weights", "lats")
    assert result.exit_code == 2 and "unknown weights 'lats'; choose from best, last" in result.output


def test_a_page_that_is_asked_for_later_has_its_pictures(predict, tmp_path):
    scans = write_scans(tmp_path / "scans", 2)
    predict(scans)
    predict(scans, report=True)
    assert (tmp_path / "out" / "report.html").read_text().count('src="data:image/png') == 2


ODD = "ck #1 @a %b $c 'q' \"d\" \\e [1], é ::x"


def test_odd_names_reach_every_file(trained_bundle, tmp_path, monkeypatch):
    """Input, output, weights and bundle; what they are called stands in the files as it is."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_bundle, f"bundle {ODD}")
    shutil.copytree(trained_bundle / "models", f"models {ODD}")
    write_scans(tmp_path / "scans" / ODD, 2)
    words = words_of(f"bundle {ODD}", "scans", f"out {ODD}", "--ckpt_dir", f"models {ODD}", "--view")
    result = CliRunner().invoke(app, [*words, f"{ODD}/scan-001.nii.gz"])
    assert result.exit_code == 0, result.output
    out = tmp_path / f"out {ODD}"
    assert [row["case"] for row in rows_of(out)] == [f"{ODD}/scan-000.nii.gz", f"{ODD}/scan-001.nii.gz"]
    run = json.loads((out / "run.json").read_text())
    assert run["weights"]["file"] == f"models {ODD}/model.pt"
    page = (out / "report.html").read_text()
    assert html.unescape(page).count(f"{ODD}/scan-001.nii.gz") >= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["scans", *(f"{what} {ODD}" for what in ("bundle", "models", "out"))]
    )
    result = CliRunner().invoke(app, words_of(f"bundle {ODD}", f"scans/{ODD}", "out #2", "--salt", "$HOME #%@"))
    assert result.exit_code == 0, result.output
    other = CliRunner().invoke(app, words_of(f"bundle {ODD}", f"scans/{ODD}", "out #3", "--salt", "$HOME #%"))
    assert other.exit_code == 0
    first, second = (rows_of(tmp_path / f"out #{number}")[0]["case"] for number in (2, 3))
    assert first != second


@pytest.mark.parametrize("name", ["2026_11_27", "1e5", "None", "-x", "~"])
def test_names_that_look_like_something_else(trained_bundle, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_bundle / "models", tmp_path / name / name)
    write_scans(tmp_path / "scans" / name, 1)
    monkeypatch.chdir(tmp_path / "scans")
    places = [f"--ckpt_dir={tmp_path / name / name}", f"--input={name}", f"--output={name}-out"]
    network = [f"--{key}={value}" for key, value in NETWORK.items()]
    result = CliRunner().invoke(app, ["predict", f"--bundle={trained_bundle}", "--arm=none", *places, *network])
    assert result.exit_code == 0, result.output
    assert [row["case"] for row in rows_of(tmp_path / "scans" / f"{name}-out")] == ["scan-000.nii.gz"]


@pytest.mark.parametrize(
    ("error", "tried_again"),
    [
        (MemoryError("no room"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (torch.OutOfMemoryError("out of memory"), True),
        (RefusedScan("expected x, got y: wait", may_pass=True), True),
        (RefusedScan("expected x, got y: mend it"), False),
        (ValueError("expected x, got y: mend it"), False),
        (gzip.BadGzipFile("Not a gzipped file"), False),
        (EOFError("cut short"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_may_pass_is_tried_again_and_nothing_else(predict, tmp_path, monkeypatch, error, tried_again):
    scans = write_scans(tmp_path / "scans", 2)
    read, reads = BoundedNiftiReader.get_data, []

    def failing(reader, img):
        reads.append(1)
        if img[1].voxels.name == "scan-001.nii.gz":
            raise error
        return read(reader, img)

    with monkeypatch.context() as broken:
        broken.setattr(BoundedNiftiReader, "get_data", failing)
        for _ in range(2):  # the exit status and the table are right both times
            before = len(reads)
            assert predict(scans, batch_size=1) == 1
            assert [bool(row["refused"]) for row in rows_of(tmp_path / "out")] == [False, True]
    assert len(reads) - before == (1 if tried_again else 0)
    assert predict(scans, batch_size=1) == (0 if tried_again else 1)
    assert [bool(row["predicted"]) for row in rows_of(tmp_path / "out")] == [True, tried_again]
    table = json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"][0]
    assert not {"run", "may_pass", "thumbnail"} & set(table)


@pytest.mark.parametrize(("fits", "tried_again"), [(False, True), (True, False)])
def test_a_case_without_room_on_the_device_is_tried_again_and_one_whose_output_is_nan_is_not(
    predict, tmp_path, monkeypatch, fits, tried_again
):
    scans = write_scans(tmp_path / "scans", 2)
    forward = ViT3D.forward

    def failing(network, x):
        bad = x.flatten(1).sum(1) == sums[1]
        if bad.any() and (not fits):
            raise torch.OutOfMemoryError("out of memory")
        return torch.where(bad[:, None], torch.nan, forward(network, x))

    sums = []
    with monkeypatch.context() as broken:
        broken.setattr(
            ViT3D, "forward", lambda network, x: sums.extend(x.flatten(1).sum(1).tolist()) or forward(network, x)
        )
        predict(scans, output=tmp_path / "sums")
    with monkeypatch.context() as broken:
        broken.setattr(ViT3D, "forward", failing)
        assert predict(scans) == 1
    (reason,) = [row["refused"] for row in rows_of(tmp_path / "out") if row["refused"]]
    assert ("fit the memory of the device" in reason) is not fits
    assert predict(scans) == (0 if tried_again else 1)


def test_maps_that_memory_was_short_for_are_drawn_the_next_time(predict, tmp_path, monkeypatch):
    scans = write_scans(tmp_path / "scans", 1)

    def failing(*_):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr("monai_llmboost.inference.maps.saliency.relevance_maps", failing)
        assert predict(scans, saliency=True) == 0
    assert "no saliency: out of memory" in rows_of(tmp_path / "out")[0]["warnings"]
    assert predict(scans, saliency=True) == 0
    assert rows_of(tmp_path / "out")[0]["warnings"] == ""
    assert list((tmp_path / "out").rglob("preview.webp"))


@pytest.mark.parametrize("gone", ["saliency", "saliency/scan-001.nii.gz/preview.webp", "dicom"])
def test_cases_whose_outputs_were_deleted_are_done_again(predict, tmp_path, gone):
    scans = write_scans(tmp_path / "scans", 2)
    options = {"saliency": True, "report": True, "batch_size": 1}
    if gone == "dicom":
        pytest.importorskip("highdicom")
        write_series(scans / "series", np.random.default_rng(0).integers(0, 255, (9, 8, 7)).astype(np.int16))
        options["dicom"] = True
    assert predict(scans, **options) == 0
    out = tmp_path / "out"
    before = {path for path in out.rglob("*") if path.is_file()}
    rows = [{**row, "seconds": ""} for row in rows_of(out)]
    path = out / gone
    assert path.exists()
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert predict(scans, **options) == 0
    assert before <= {path for path in out.rglob("*") if path.is_file()}
    assert [{**row, "seconds": ""} for row in rows_of(out)] == rows
    again = (out / "journal" / "rank-0.jsonl").read_text().splitlines()[1 + len(rows) :]
    assert len(again) == (2 if gone == "saliency" else 1), "of the others nothing was lost"


def test_a_run_that_runs_out_of_memory_keeps_what_it_has(predict, tmp_path, monkeypatch):
    scans = write_scans(tmp_path / "scans", 2)
    forward, calls = ViT3D.forward, []

    def failing(network, x):
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return forward(network, x)

    monkeypatch.setattr(ViT3D, "forward", failing)
    with pytest.raises(
        StoppedEarly, match=r"not even one case fits .*; 1 cases are kept: run the same command again to"
    ):
        predict(scans, batch_size=1)


def test_a_viewer_of_a_case_that_is_refused_is_reported_missing(command, tmp_path):
    scans = write_scans(tmp_path / "scans", 1)
    nibabel.save(nibabel.Nifti1Image(np.full((9, 8, 7), np.nan, np.float32), np.eye(4)), scans / "nan.nii")
    result = command("--input", scans, "--view", "nan.nii")
    assert result.exit_code == 1
    assert "no viewer of nan.nii: it is refused" in result.output
    assert rows_of(tmp_path / "out")[0]["warnings"] == "no viewer: the case is refused"


def test_only_some_cases(command, tmp_path):
    scans = write_scans(tmp_path / "scans", 3)
    write_scans(scans / "deep [1]", 2)
    result = command("--input", scans, "--only", "scan-00[01]*", "--only", "deep [1]/scan-001.nii.gz")
    assert result.exit_code == 0, result.output
    names = ["deep [1]/scan-001.nii.gz", "scan-000.nii.gz", "scan-001.nii.gz"]
    assert [row["case"] for row in rows_of(tmp_path / "out")] == names
    result = command("--input", scans, "--only", "scan-00[01]*", "--dry-run")
    assert result.exit_code == 0 and "2 to predict" in result.output
    for more in ([], ["--dry-run"]):
        result = command("--input", scans, "--only", "scan*", "--only", "nothing*", *more)
        assert result.exit_code == 2
        assert "--only 'nothing*' fits none of 5 cases, such as deep [1]/scan-" in result.output
    result = command("--input", scans, "--only", "scan-000*", "--salt", "x", "--output", tmp_path / "y", output=False)
    assert result.exit_code == 0
    (row,) = rows_of(tmp_path / "y")
    words = ["--input", scans, "--only", row["case"], "--salt", "x", "--output", tmp_path / "z"]
    assert command(*words, output=False).exit_code == 0, "the salted name is a name too"


def test_usual_refusals_are_accepted_by_kind_or_by_an_earlier_table(command, tmp_path):
    scans = write_scans(tmp_path / "scans", 1)
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 8, 7, 3), np.int16), np.eye(4)), scans / "four.nii")
    nibabel.save(nibabel.Nifti1Image(np.full((9, 8, 7), 5000, np.int16), np.eye(4)), scans / "hot.nii")
    result = command("--input", scans)
    assert result.exit_code == 1
    rows = {row["case"]: row["refused_kind"] for row in rows_of(tmp_path / "out")}
    assert rows == {"four.nii": "several-volumes", "hot.nii": "constant", "scan-000.nii.gz": ""}
    assert command("--input", scans, "--accept-refused", "several-volumes").exit_code == 1
    words = ["--accept-refused", "several-volumes", "--accept-refused", "constant"]
    assert command("--input", scans, *words).exit_code == 0
    table = shutil.copy(tmp_path / "out" / "predictions.csv", tmp_path / "usual.csv")
    result = command("--input", scans, "--known-refused", table)
    assert result.exit_code == 0
    assert "1 predicted, 2 refused (2 of them accepted)" in result.output
    nibabel.save(nibabel.Nifti1Image(np.full((9, 8, 7), np.nan, np.float32), np.eye(4)), scans / "new.nii")
    assert command("--input", scans, "--known-refused", table).exit_code == 1
    for more in ([], ["--dry-run"]):
        only = ["--input", scans, "--only", "four.nii", *more]
        assert command(*only).exit_code == 2
        assert command(*only, "--accept-refused", "several-volumes").exit_code == 0
        result = command(*only, "--accept-refused", "several")
        assert result.exit_code == 2
        assert "unknown kind of refusal 'several'; choose from single-slice, several-volumes" in result.output
        result = command(*only, "--known-refused", scans / "hot.nii")
        assert result.exit_code == 2
        assert "is no predictions.csv with the columns case and refused" in result.output


def test_a_table_that_the_run_replaces_is_read_before(command, tmp_path):
    scans = write_scans(tmp_path / "scans", 1)
    (scans / "old.nii").write_bytes(b"")
    assert command("--input", scans).exit_code == 1
    table = tmp_path / "out" / "predictions.csv"
    assert command("--input", scans, "--known-refused", table).exit_code == 0
    (scans / "new.nii").write_bytes(b"")
    result = command("--input", scans, "--known-refused", table)
    assert result.exit_code == 1, result.output
    assert "2 refused (1 of them accepted)" in result.output


def test_columns_that_identify_are_read_where_they_are_asked_for(command, tmp_path):
    scans = write_scans(tmp_path / "scans", 1)
    volume = np.random.default_rng(0).integers(0, 255, (9, 8, 7)).astype(np.int16)
    for path in write_series(scans / "series", volume):
        data = pydicom.dcmread(path)
        data.StudyInstanceUID, data.AccessionNumber = "1.2.3.4", "=A1+1"
        data.save_as(path)
    assert command("--input", scans).exit_code == 0
    assert not {"study_uid", "accession_number"} & set(rows_of(tmp_path / "out")[0])
    result = command("--input", scans, "--columns", "study_uid, accession_number")
    assert result.exit_code == 0, result.output
    rows = {row["case"]: (row["study_uid"], row["accession_number"]) for row in rows_of(tmp_path / "out")}
    assert rows == {"scan-000.nii.gz": ("", ""), "series": ("1.2.3.4", "'=A1+1")}, "no formula"
    cases = json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"]
    assert [case["accession_number"] for case in cases] == ["", "=A1+1"]
    for file in ("run.json", "report.html", "journal/rank-0.jsonl"):
        assert "A1+1" not in (tmp_path / "out" / file).read_text(), file
    assert command("--input", scans).exit_code == 0
    assert "study_uid" not in rows_of(tmp_path / "out")[0]
    for more, message in (
        (["--salt", "x"], "--salt hides names, and --columns identify a patient"),
        (["--columns=patient_name"], "unknown column 'patient_name'; choose from study_uid, accession_number"),
    ):
        result = command("--input", scans, *(["--columns", "study_uid"] if "--salt" in more else []), *more)
        assert result.exit_code == 2
        assert message in result.output


def test_names_are_not_hidden_in_a_folder_that_shows_them(command, tmp_path):
    scans = write_scans(tmp_path / "scans", 1)
    assert command("--input", scans).exit_code == 0
    (tmp_path / "out" / "run.json").unlink()  # as if it had been interrupted
    for more in ([], ["--overwrite"]):
        result = command("--input", scans, "--salt", "x", *more)
        assert result.exit_code == 2
        assert "holds names of cases, of an earlier run without --salt" in result.output


@pytest.mark.parametrize("words", [["--salt", ""], ["--salt="], ["--salt", " "]])
def test_an_empty_salt_hides_nothing(command, tmp_path, words):
    assert command("--input", write_scans(tmp_path / "scans", 1), *words).exit_code == 2


def test_a_dry_run_refuses_what_a_run_refuses_by_the_same_headers(command, tmp_path):
    scans = tmp_path / "scans"
    volume = np.random.default_rng(0).integers(0, 255, (9, 8, 7)).astype(np.int16)
    write_series(scans / "seven", volume)
    write_series(scans / "tilted", volume, OBLIQUE @ TILTED, series="tilted")
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), scans / "three.nii")
    nibabel.save(nibabel.Nifti1Image(np.stack([volume] * 3, -1), np.eye(4)), scans / "four.nii")
    nibabel.save(nibabel.Nifti1Image(volume[:3], np.eye(4)), scans / "small.nii")
    for number, words in enumerate(
        (
            [], ["--volume", "1"], ["--volume", "0"], ["--volume", "5"], ["--min_slices", "8"],
            ["--gantry_tilt", "refuse"], ["--gantry_tilt", "shear", "--min_slices", "7", "--volume", "2"],
        )
    ):  # fmt: skip
        out = tmp_path / str(number)
        dry = command("--input", scans, "--dry-run", *words)
        run = command("--input", scans, "--output", out, *words, output=False)
        assert dry.exit_code == run.exit_code, words
        refused = {row["case"]: row["refused"] for row in rows_of(out) if row["refused"]}
        assert f"{5 - len(refused)} to predict, {len(refused)} refused" in dry.output, words
        assert all(reason in dry.output for reason in refused.values()), words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--volum", "1"], "no option --volum: did you mean --volume"),
        (["--volume", "x"], "volume must be a whole number"),
        (["--gantry_tilt", "no"], "gantry_tilt"),
        (["--view", "other"], "--view 'other' is none of the cases that were found"),
        (["--salt", "x", "--dicom"], "--salt hides names, and --dicom writes objects that belong to a patient"),
        (["--lora_rank", "3"], "--lora_rank has no effect"),
        (["--bundle", "nowhere"], "no bundle 'nowhere'"),
        (["--arm", "all"], "unknown arm 'all'; choose from lora, mlp"),
        (["--device", "gpu"], "unknown --device 'gpu'"),
    ],
)
def test_a_dry_run_refuses_the_mistakes_of_a_run(trained_bundle, tmp_path, words, message):
    scans = write_scans(tmp_path / "scans", 1)
    usual = [] if "--bundle" in words else ["--bundle", str(trained_bundle)]
    result = CliRunner().invoke(app, ["predict", "--dry-run", "--input", str(scans), *usual, *words])
    assert result.exit_code == 2, result.output
    assert message in result.output.replace("\n", " ")


def test_a_dry_run_shows_the_names_that_the_run_would(command, tmp_path):
    scans = write_scans(tmp_path / "scans", 1)
    result = command("--input", scans, "--dry-run", "--salt", "x")
    assert "case-" in result.output and "scan-000" not in result.output


def test_refusals_in_a_journal_of_earlier_versions_are_tried_once_more(predict, tmp_path):
    """They may be for a lack of memory, and do not say so; what was predicted is not done again."""
    scans = write_scans(tmp_path / "scans", 2)
    content = (scans / "scan-001.nii.gz").read_bytes()
    (scans / "scan-001.nii.gz").write_bytes(content[:-40])
    assert predict(scans, batch_size=1) == 1
    journal = tmp_path / "out" / "journal" / "rank-0.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    earlier = [
        {key: value for key, value in row.items() if key not in ("run", "may_pass", "refused_kind")} for row in rows
    ]
    journal.write_text("".join(json.dumps(row) + "\n" for row in earlier))
    for added in (1, 0):
        before = journal.read_bytes().count(b"\n")
        assert predict(scans, batch_size=1) == 1
        assert journal.read_bytes().count(b"\n") == before + added


def test_rows_of_several_processes_are_those_of_the_latest_run(predict, tmp_path):
    """Another process wrote the case's row earlier, of other bytes: what is newer counts, whichever file it is in."""
    scans = write_scans(tmp_path / "scans", 3)
    assert predict(scans, rank=1, world_size=2, batch_size=1) == 0
    (first,) = (row["p_ring"] for row in rows_of(tmp_path / "out"))
    shutil.copy(scans / "scan-002.nii.gz", scans / "scan-001.nii.gz")
    assert predict(scans, batch_size=1) == 0
    rows = {row["case"]: row["p_ring"] for row in rows_of(tmp_path / "out")}
    assert {path.name for path in (tmp_path / "out" / "journal").glob("*.jsonl")} == {"rank-0.jsonl", "rank-1.jsonl"}
    assert rows["scan-001.nii.gz"] == rows["scan-002.nii.gz"] != first


def test_what_is_refused_while_it_is_read_is_reported(trained_bundle, tmp_path):
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
    assert "expected one volume, got 3 (shape (9, 8, 7, 3)): choose one with --volume K" in result.output
    assert CliRunner().invoke(app, [*words, "--volume", "1"]).exit_code == 0


def test_a_file_in_place_of_the_output_costs_no_time(trained_bundle, tmp_path):
    (tmp_path / "out").write_text("mine")
    result = CliRunner().invoke(app, words_of(trained_bundle, write_scans(tmp_path / "scans", 1), tmp_path / "out"))
    assert result.exit_code == 2
    assert "--output must be a folder" in result.output
    assert (tmp_path / "out").read_text() == "mine"


def test_predictions_by_another_config_are_not_reused(predict, trained_bundle, tmp_path):
    """A function, and the values that it is called with, do not show in the transform that is made of them."""
    scans = write_scans(tmp_path / "scans", 1)

    def step(expression):
        return {"inference_transforms#more": {"_target_": "Lambdad", "keys": "image", "func": expression}}

    partial = "$__import__('functools').partial(torch.clamp, max={})"
    for first, second in ((partial.format(1.0), partial.format(0.25)), ("$lambda x: x", "$lambda x: x * 0.5")):
        assert predict(scans, overwrite=True, **step(first)) == 0
        before = (tmp_path / "out" / "predictions.csv").read_bytes()
        with pytest.raises(ValueError, match="predictions made with other weights, block, options or versions: give"):
            predict(scans, **step(second))
        assert predict(scans, **step(first)) == 0, "this very run"
        assert predict(scans, overwrite=True, **step(second)) == 0
        assert (tmp_path / "out" / "predictions.csv").read_bytes() != before
    message = (
        r"cannot be compared \(inference_transforms#more#func is a function object of Python\): give another folder"
    )
    assert predict(scans, overwrite=True, **step(abs_of)) == 0
    with pytest.raises(ValueError, match=message):
        predict(scans, **step(abs_of))


def abs_of(volume):
    return volume.abs()
