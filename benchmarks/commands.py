# SPDX-License-Identifier: Apache-2.0
"""CPU seconds of short commands: help, lists, a dry run, and wrong options.

Each command runs in a fresh process, in turn, round by round. Seconds are user and system time of the process. The
first round, in which files are compiled and read from disk, is not counted. For comparison, the start of Python and the
imports of torch and MONAI are measured the same way.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import torch
from report import RESULTS, save, show
from tqdm import tqdm

from monai_llmboost.studies.cost.measure import device_name

BENCHMARK = "CPU seconds of short commands, each in a fresh process"
IMPORTS = {"python": "pass", "import torch": "import torch", "import monai": "import monai"}
SCANS = 8
COMMANDS = (
    "--help", "predict --help", "donors", "info embedded", "predict --dry-run --input scans",
    "predict --dry-run --bundle scans_classification --input scans", "run train --epoch 1",
    "train --bundle scans_classification --data nowhere", "predict --input scans --output out --device gpu",
    "study --output out --dataset adrenal",
)  # fmt: skip


def seconds(words: list[str], folder: Path) -> float:
    """Run a command, and return its CPU seconds.

    Raises:
        RuntimeError: it ended in a traceback.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-W", "ignore", *words], cwd=folder, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if "Traceback" in done.stderr:
        raise RuntimeError(f"{' '.join(words)} ended in {done.stderr.splitlines()[-1]}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def make_scans(folder: Path) -> None:
    """Write a few small scans."""
    folder.mkdir()
    for number in range(SCANS):
        voxels = np.random.default_rng(number).integers(0, 255, (32, 32, 32)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"scan-{number}.nii.gz")


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the results are medians")
    parser.add_argument("--commands", nargs="*", default=COMMANDS, help="the commands")
    parser.add_argument("--out", type=Path, default=RESULTS / "commands-cpu.json", help="the JSON file to write")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {options.rounds}")
    words = {name: ["-c", code] for name, code in IMPORTS.items()}
    words |= {f"monai-llmboost {one}": ["-m", "monai_llmboost", *one.split()] for one in options.commands}
    measured: dict[str, list[float]] = {name: [] for name in words}
    with tempfile.TemporaryDirectory() as folder:
        make_scans(Path(folder) / "scans")
        for number in tqdm(range(options.rounds + 1), desc="rounds"):
            for name, own in words.items():
                taken = seconds(own, Path(folder))
                if number:
                    measured[name].append(taken)
    rows = [
        {"command": name, "seconds": statistics.median(all_), "least": min(all_), "most": max(all_)}
        for name, all_ in measured.items()
    ]
    save(options.out, BENCHMARK, device_name(torch.device("cpu")), {"rounds": options.rounds, "scans": SCANS}, rows)
    show(options.out)


if __name__ == "__main__":
    main()
