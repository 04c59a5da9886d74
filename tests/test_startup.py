# SPDX-License-Identifier: Apache-2.0
"""Commands that need no network answer without slow imports: which modules they import, not how long it takes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

import monai_llmboost

# Modules whose import takes a noticeable part of a second, or seconds.
SLOW = {
    "torch", "monai", "ignite", "transformers", "huggingface_hub", "medmnist", "sklearn", "scipy", "matplotlib",
    "pydicom", "SimpleITK",
}  # fmt: skip
RUN = """
import atexit, sys
slow = set(sys.argv.pop().split(","))
atexit.register(lambda: print("imported:", *sorted(slow & sys.modules.keys())))
from monai_llmboost.command_line.app import main
sys.argv[0] = "monai-llmboost"
main()
"""
BUNDLE = "medmnist3d_rllm_classification"


def run(folder, *words):
    """Return the exit status, the printed text and the slow modules of a command."""
    command = [sys.executable, "-W", "ignore", "-c", RUN, *words, ",".join(SLOW)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    text, _, imported = done.stdout.rpartition("imported:")
    return done.returncode, text + done.stderr, set(imported.split())


@pytest.fixture
def folder(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "scan.nii.gz")
    (tmp_path / "list.csv").write_text("image,grade\nscan.nii.gz,1\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--help", "inspect"),
        ("--version", "0."),
        ("donors", "SmolLM2"),
        ("train --help", "--bundle"),
        ("predict --help", "--dry-run"),
        ("study --help", "--arms"),
    ],
)
def test_answers_without_slow_imports(folder, words, message):
    status, text, imported = run(folder, *words.split())
    assert status == 0
    assert message in text
    assert not imported


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("donor", "donor"),
        ("info nowhere", "no block file at nowhere"),
        ("info empty", "empty is a folder"),
        ("extract nowhere --out block.safetensors", "no model at 'nowhere'"),
        ("extract empty --out block.txt", "does not end in .safetensors"),
        ("bundle nowhere --to copy", "no bundle 'nowhere'"),
        ("bundle nowhere --to copy --trained", "no bundle 'nowhere'"),
        ("demo --epochs 0", "epochs must be a whole number from 1"),
        ("run tran", "did you mean train?"),
        ("run train --epoch 1", "did you mean --epochs?"),
        ("run train --dataset adrenal", "unknown dataset 'adrenal'"),
        ("run train --arm random-frozen", "unknown arm"),
        ("cost --hiddn 1", "did you mean --hidden_size?"),
        ("cost --donor nowhere", "no config.json at nowhere"),
        ("train --bundle nowhere", "no bundle 'nowhere'"),
        ("train --bundle new --data nowhere", "no list at nowhere"),
        ("train --bundle new --data list.csv", "label"),
        ("train --bundle scans_classification --epoch 1", "did you mean --epochs?"),
        ("evaluate --bundle scans_classification --data nowhere", "no list at nowhere"),
        ("inspect --dat nowhere", "--dat"),
        ("inspect --data nowhere", "no list at nowhere"),
        ("inspect --data scan.nii.gz", "neither a CSV file nor a JSON datalist"),
        ("inspect --data list.csv --label-column grades", "grades"),
        ("inspect --data list.csv --missing-channels zero", "did you mean zeros?"),
        ("predict --dry-run --input nowhere", "nothing at nowhere"),
        ("predict --input scan.nii.gz --output out", "no trained weights"),
        ("predict --input scan.nii.gz --output out --device gpu", "unknown --device 'gpu'"),
        ("predict --input scan.nii.gz --output out --batchsize 2", "no option --batchsize"),
        ("predict --input scan.nii.gz --output out --engine rays", "unknown engine 'rays'"),
        ("predict --input scan.nii.gz --output out --address auto", "--address is for --engine ray"),
        ("study --dataset phantom", "a study needs a folder"),
        ("study --output out --dataset adrenal", "unknown dataset 'adrenal'"),
        ("study --output out --arms none,rando", "unknown arm 'rando'"),
        ("study --output out --epoch 1", "did you mean --epochs?"),
        ("study --output out --floors pca", "unknown floor 'pca'"),
        ("study --output out --preset rlm", "unknown preset 'rlm'"),
        ("study --output out --network resne", "unknown network 'resne'"),
        ("study --output out --engine rays", "unknown engine 'rays'"),
        ("study --output out --jobs 0", "jobs must be a whole number from 1"),
        ("study --output out --lr-grid fast", "not 'fast'"),
        ("study --output out --arms none,random@nowhere", "no block file nowhere"),
        ("study --output out --bundle nowhere", "no bundle 'nowhere'"),
        ("study --report empty", "no results.json"),
    ],
)
def test_mistakes_are_reported_without_slow_imports(folder, words, message):
    status, text, imported = run(folder, *words.split())
    assert status in (1, 2)
    assert message in " ".join(text.split())
    assert "Traceback" not in text
    assert not imported
    assert not (folder / "out").exists()


@pytest.mark.parametrize("bundle", [BUNDLE, "scans_classification", "scans_segmentation"])
@pytest.mark.parametrize("words", ["--input .", "--data list.csv", "--input . --salt x --only scan*"])
def test_scans_are_listed_without_slow_imports(folder, bundle, words):
    words = words if "--data" not in words or bundle != BUNDLE else "--input scan.nii.gz --batch-size 2"
    status, text, imported = run(folder, "predict", "--dry-run", "--bundle", bundle, *words.split())
    assert status in (0, 2), "this scan is too small for one of the bundles"
    assert "scan.nii.gz" in text or "case-" in text
    assert "1 to predict" in text or "1 refused" in text
    assert imported == {"pydicom", "SimpleITK", "scipy"}, "nibabel imports the small part of scipy"


def test_a_block_is_described_without_monai(folder):
    status, text, imported = run(folder, "info", "embedded")
    assert status == 0
    assert "passed" in text
    assert imported == {"torch", "scipy"}, "this file does not store the size of tokens, which scipy finds"


def test_the_package_runs_without_its_sources(tmp_path):
    """As in installations that hold compiled files only."""
    package = Path(monai_llmboost.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    compiled = [sys.executable, "-m", "compileall", "-q", "-b", str(tmp_path)]
    subprocess.run(compiled, check=True)
    for source in tmp_path.rglob("*.py"):
        source.unlink()
    code = """
import monai_llmboost, monai_llmboost.data, monai_llmboost.inference, monai_llmboost.llm
assert monai_llmboost.__file__.endswith(".pyc")
print(monai_llmboost.data.Scan, *(name for name in ("Journal", "ScanCases") if name in dir(monai_llmboost.inference)))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout.split() == ["<class", "'monai_llmboost.data.scans.scan.Scan'>", "Journal", "ScanCases"]
