# SPDX-License-Identifier: Apache-2.0
"""Run the tutorials as they are written: their commands, then their Python, in an empty folder, without a network."""

import csv
import json
import os
import re
import runpy
import subprocess
import sys
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Client, Listener
from threading import Thread

import numpy as np
import pytest
import torch
from conftest import ROOT
from dicom_files import write_series
from processes import run_python

TUTORIALS = ROOT / "docs" / "tutorials"
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?```(bash|python)\n(.*?)```", re.DOTALL)
CASES = {"train": 24, "val": 12, "test": 12}
# A command of a tutorial: it asks the test to run Python with these words, in its folder and with its variables.
COMMAND = """#!/bin/sh
exec "{python}" -SE -c '
import os, sys
from multiprocessing.connection import Client
with Client(sys.argv[1], authkey=b"tutorial") as test:
    test.send(({arguments} + sys.argv[2:], os.getcwd(), dict(os.environ)))
    status, output, errors = test.recv()
sys.stdout.write(output)
sys.stderr.write(errors)
sys.exit(status)' "{address}" "$@"
"""
# Run by each process at its start: a small file stands in for the official one, with its checksum.
OFFICIAL = """
import hashlib, medmnist.info
from pathlib import Path
entry = medmnist.info.INFO["adrenalmnist3d"]
entry["n_samples"] = {cases}
entry["MD5"] = hashlib.md5(Path("{file}").read_bytes()).hexdigest()
"""


def scripts(page):
    """Yield the scripts of a page, by language: blocks that follow each other in one language are one script."""
    parts = []
    for skipped, language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if skipped:
            continue
        if parts and parts[-1][0] == language:
            parts[-1] = (language, parts[-1][1] + "\n" + code)
        else:
            parts.append((language, code))
    return parts


def medmnist_file(folder):
    random, arrays = np.random.default_rng(0), {}
    for split, cases in CASES.items():
        arrays[f"{split}_images"] = random.integers(0, 256, (cases, 28, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(cases, dtype=np.uint8)[:, None] % 2
    (folder / "data").mkdir()
    file = folder / "data" / "adrenalmnist3d.npz"
    np.savez_compressed(file, **arrays)
    (folder.parent / "start.py").write_text(OFFICIAL.format(cases=CASES, file=file))


def dicom_folder(folder):
    volume = np.random.default_rng(0).integers(-200, 300, (20, 20, 12)).astype(np.int16)
    write_series(folder / "scans" / "patient-1", volume, np.diag([0.7, 0.7, 2, 1]), series="complete")
    paths = write_series(folder / "scans" / "patient-2", volume, np.diag([0.7, 0.7, 2, 1]), series="gap")
    paths[5].unlink()


def nothing(folder):
    pass


def names_in(file):
    """Yield the keys and columns of a file, as far as they are no names of classes, arms and the like."""
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as content:
            yield from (name for name in next(csv.reader(content)) if not name.startswith("p_"))
        return
    if file.suffix == ".pt":
        content = torch.load(file, weights_only=True)
        yield from content if file.name == "last.pt" else (name for name in content if name.endswith(".code"))
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    if file.name == "model.json":  # its other keys are those of the bundle's configs
        yield from ("_trained_", *content["_trained_"])
        return
    yield from content
    for case in content.get("cases", []) if file.name == "predictions.json" else []:
        yield from case
    for data in content["datasets"].values() if file.name == "results.json" else []:
        yield from (*data, *data["comparisons"][0], *(key for arm in data["arms"].values() for key in arm))


def undocumented(folder):
    """Return the files, keys and columns in a folder that the page of file formats does not name."""
    page = (ROOT / "docs" / "reference" / "file-formats.md").read_text(encoding="utf-8")
    known = {word for words in re.findall(r"`([^`\n]+)`", page) for word in (words, *words.split("/"))}
    known |= set(re.findall(r"^#+ (\S+)", page, re.MULTILINE))
    return {
        f"{file.name}: {name}"
        for file in folder.rglob("*")
        if file.suffix in (".csv", ".pt", ".json") and file.name != "cost.json" and "configs" not in file.parts
        for name in names_in(file)
        if name not in known
    }


@pytest.fixture
def commands(tmp_path):
    """A folder of commands, which run in processes that have imported torch and MONAI already."""
    (folder := tmp_path / "commands").mkdir()
    (tmp_path / "start.py").touch()

    def serve():
        while True:
            with suppress(OSError, EOFError), listener.accept() as asked:  # a script may have ended, by its time limit
                words, cwd, environment = asked.recv()
                if words == ["stop"]:
                    return
                command, start = [sys.executable, "-W", "ignore", *words], str(tmp_path / "start.py")
                done = run_python(command, cwd=cwd, env=environment, preexec_fn=partial(runpy.run_path, start))
                asked.send((done.returncode, done.stdout, done.stderr))

    with Listener(authkey=b"tutorial") as listener:
        for name, arguments in {"monai-llmboost": ["-m", "monai_llmboost"], "python": []}.items():
            words = json.dumps(arguments)
            (folder / name).write_text(COMMAND.format(python=sys.executable, arguments=words, address=listener.address))
            (folder / name).chmod(0o755)
        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield folder
        with Client(listener.address, authkey=b"tutorial") as end:
            end.send((["stop"], "", {}))
        thread.join()


@pytest.mark.parametrize(
    ("name", "prepare", "said"),
    [
        ("medmnist", medmnist_file, r"boosted: AUC 0\.\d+ \[0\.\d+, [01]\.\d+\] on 12 cases"),
        ("monai-script", nothing, r"the checkpoint was made with the block"),
        ("dicom-folder", dicom_folder, r"patient-2: refused \(missing-slices\)"),
        ("is-it-worth-it", nothing, r"pretrained against none: AUC"),
    ],
)
def test_a_tutorial_runs(commands, tmp_path, name, prepare, said):
    (work := tmp_path / "work").mkdir()
    prepare(work)
    environment = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    output = ""
    for language, code in scripts(TUTORIALS / f"{name}.md"):
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else ["python", "-c", code]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{code}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        output += done.stdout
    assert re.search(said, output), output[-3000:]
    assert not undocumented(work)


def test_each_tutorial_is_run():
    (marks,) = (mark for mark in test_a_tutorial_runs.pytestmark if mark.name == "parametrize")
    assert {f"{case[0]}.md" for case in marks.args[1]} == {page.name for page in TUTORIALS.glob("*.md")} - {"index.md"}
