# SPDX-License-Identifier: Apache-2.0
"""Predictions on a local Ray cluster: the files of one process, and nothing lost where a process is killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import SMALL
from dicom_sources import oblique, write_series

from monai_llmboost.data import phantom_arrays
from monai_llmboost.inference.distributed import head
from monai_llmboost.inference.distributed.cluster import RayOptions
from monai_llmboost.inference.run import run_predict

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'monai-llmboost[ray]'")
# Ray and its actors warn of much; MONAI and Ignite, too.
pytestmark = pytest.mark.filterwarnings("ignore")
NETWORK = {key: value for key, value in SMALL.items() if key != "batch_size"}
TWO_ACTORS = RayOptions(actors=2)
# What differs between any two runs: the command, times in JSON, tables, the page (with the digest of a script that has
# some) and DICOM objects, and the random name of a viewer.
TIMES = re.compile(
    rb'"(?:seconds|started|command)": [^\n]*|(?<=,)[\d.]+(?=\n)|\d{4}-\d\d-\d\d[T ][\d:+]+|[\d.]+ seconds|'
    rb'(?<=<td class="seconds">)[^<]*|sha256-[\w+/]+=|(?:\d{8})?\d{6}\.\d{6}|<dt>seconds</dt><dd>[\d.]+|'
    rb"(?<=, )[\d.]+(?=, (?:true|false)\])|(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])"
)

POISON = '''
import os
import signal
import sys
from pathlib import Path

from monai.transforms import MapTransform

class Poison(MapTransform):
    """Kills its process, where it is an actor of Ray, at volumes that begin with 201; once at those with 202."""

    def __call__(self, item):
        sign, killed = round(float(item["image"].flatten()[0])), Path(__file__).parent / "killed"
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized() and ray.get_runtime_context().get_actor_id():
            if sign == 201 or (sign == 202 and not killed.exists()):
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return item
'''


@pytest.fixture(scope="module")
def cluster():
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)  # in whose place Ray puts its own


def write_scans(folder, count, signs=None):
    folder.mkdir()
    images, _ = phantom_arrays("test", cases=count)
    for index in range(count):
        image = images[index].copy()
        image[0, 0, 0] = (signs or {}).get(index, image[0, 0, 0])
        nibabel.save(nibabel.Nifti1Image(image, np.diag([1, 1.5, 2, 1])), folder / f"scan-{index:03d}.nii.gz")
    return folder


def files_of(folder):
    """The content of all files of a run but the journal's, without what differs between any two runs."""
    files = [file for file in folder.rglob("*") if file.is_file() and "journal" not in file.parts]
    return {str(file.relative_to(folder)): TIMES.sub(b"", file.read_bytes()) for file in files}


def cases_of(output):
    table = json.loads((output / "predictions.json").read_text())
    return {row.pop("case"): row | {"seconds": 0} for row in table["cases"]}


def actors_now():
    """The process IDs of actors on this machine."""
    pids = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if b"ray::PredictActor" in _read(path)]
    return set(map(int, pids))


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


@pytest.mark.usefixtures("cluster")
def test_files_are_those_of_one_process(trained_bundle, tmp_path):
    scans = write_scans(tmp_path / "scans", 5)
    write_series(scans / "series", oblique())
    (scans / "broken.nii.gz").write_bytes((scans / "scan-000.nii.gz").read_bytes()[:2000])
    (scans / "notes.txt").write_text("hello")
    options = {"dataset_dir": [str(scans)], "batch_size": 2, "saliency": True, "dicom": True, "size": 28, **NETWORK}
    options["intensity_range"], options["clip_intensities"] = [0, 255], True
    one = run_predict(trained_bundle, tmp_path / "one", "none", **options)
    several = run_predict(trained_bundle, tmp_path / "several", "none", ray=TWO_ACTORS, num_workers=1, **options)
    assert several.counts == one.counts
    assert one.counts["predicted"] == 6
    assert any(name.endswith(".dcm") for name in files_of(tmp_path / "one"))
    first, second = files_of(tmp_path / "one"), files_of(tmp_path / "several")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


@pytest.mark.usefixtures("cluster")
def test_killed_actors_lose_no_case_and_a_poisonous_case_is_refused(trained_bundle, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(trained_bundle, bundle)
    (bundle / "poison.py").write_text(POISON)
    config = bundle / "configs" / "inference.json"
    content = json.loads(config.read_text())
    steps = content["inference_transforms"]
    content["inference_transforms"] = {
        "load": steps.pop("load"),
        "poison": {"_target_": "poison.Poison", "keys": "image"},
        **steps,
    }
    config.write_text(json.dumps(content))
    scans = write_scans(tmp_path / "scans", 8, {0: 202, 4: 201})
    options = {"dataset_dir": [str(scans)], "batch_size": 3, "report": False, **NETWORK}
    run_predict(bundle, tmp_path / "one", "none", **options)
    expected = cases_of(tmp_path / "one")
    result = run_predict(bundle, tmp_path / "out", "none", ray=TWO_ACTORS, **options)
    found = cases_of(tmp_path / "out")
    assert (bundle / "killed").exists()
    assert result.counts == {"predicted": 7, "refused": 1, "skipped": 0}
    poisonous = found.pop("scan-004.nii.gz")
    assert poisonous["refused_kind"] == "crashed"
    assert "each process that predicted this case ended without an answer" in poisonous["refused"]
    assert found == {case: row for case, row in expected.items() if case != "scan-004.nii.gz"}
    lines = (tmp_path / "out" / "journal" / "rank-0.jsonl").read_text().splitlines()[1:]
    assert sorted(json.loads(line)["case"] for line in lines) == sorted(expected), "each case once"
    wait_until(lambda: not actors_now())

    run_predict(bundle, tmp_path / "out", "none", **options)  # tries it again, with another engine
    assert cases_of(tmp_path / "out") == expected


@pytest.mark.usefixtures("cluster")
def test_an_actor_that_computes_something_else_is_refused(trained_bundle, tmp_path, monkeypatch):
    key = "0" * 64
    monkeypatch.setattr(head, "Setup", lambda *fields: original(*fields[:4], key, *fields[5:]))
    scans = write_scans(tmp_path / "scans", 1)
    with pytest.raises(ValueError, match=r"an actor on .* cannot start: its weights, block, bundle or versions"):
        run_predict(trained_bundle, tmp_path / "out", "none", ray=TWO_ACTORS, dataset_dir=[str(scans)], **NETWORK)
    assert [file.name for file in (tmp_path / "out" / "journal").iterdir()] == ["lock"]


original = head.Setup
# Enough that an interruption comes before the last one, on a busy machine too.
CASES_TO_INTERRUPT = 1500


def test_ctrl_c_leaves_a_journal_and_no_actor(trained_bundle, tmp_path):
    """On a cluster of its own, in a process of its own."""
    scans = write_scans(tmp_path / "scans", CASES_TO_INTERRUPT)
    network = [word for key, value in NETWORK.items() for word in (f"--{key}", str(value))]
    words = ["predict", "--bundle", trained_bundle, "--arm", "none", "--input", scans, "--output", tmp_path / "out"]
    words += ["--batch-size", "1", "--no-report", "--engine", "ray", "--cpus-per-actor", "1", "--actors", "1", *network]
    before = actors_now()
    process = subprocess.Popen(
        [sys.executable, "-m", "monai_llmboost", *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )
    journal = tmp_path / "out" / "journal" / "rank-0.jsonl"
    wait_until(lambda: process.poll() is not None or (journal.exists() and journal.read_bytes().count(b"\n") > 3))
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, (output, errors)
    assert "interrupted; what was predicted is kept" in errors
    assert "scan-0" not in errors, "progress, logs and errors name no case"
    done = {json.loads(line)["case"] for line in journal.read_text().splitlines()[1:]}
    assert 3 <= len(done) < CASES_TO_INTERRUPT
    wait_until(lambda: actors_now() <= before, 60)
    options = {"dataset_dir": [str(scans)], "batch_size": 1, "report": False, **NETWORK}
    result = run_predict(trained_bundle, tmp_path / "out", "none", **options)
    assert result.counts["predicted"] == CASES_TO_INTERRUPT
    lines = journal.read_text().splitlines()[1:]
    assert len(lines) == CASES_TO_INTERRUPT, "nothing was done twice"
