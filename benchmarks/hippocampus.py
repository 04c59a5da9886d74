# SPDX-License-Identifier: Apache-2.0
"""A study on the hippocampus (Medical Segmentation Decathlon, task 4): the planned U-Net, plain and boosted.

Its 260 training cases are divided into 208, 26 and 26 at random. A study is run (an interrupted one is resumed), its
results and report are copied, and the Dice of each structure in the test cases is written, as means and as medians.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

from report import RESULTS, save, show

CASES = {"training": 208, "validation": 26, "test": 26}
# Median Dice over 26 other cases of a plain 3D U-Net with 16 to 128 channels, as its authors report it
# (github.com/edisons3608/hippocampus_seg).
PUBLIC = {"Anterior": 0.891, "Posterior": 0.857}


def write_list(folder: Path, file: Path) -> None:
    """Write the datalist of a folder of the task, divided by a fixed seed."""
    content = json.loads((folder / "dataset.json").read_text())
    cases = sorted(content["training"], key=lambda case: case["image"])
    random.Random(0).shuffle(cases)
    divided: dict[str, list[dict[str, str]]] = {}
    for split, count in CASES.items():
        divided[split] = [
            {key: str((folder / case[key]).resolve()) for key in ("image", "label")} for case in cases[:count]
        ]
        cases = cases[count:]
    described = {key: content[key] for key in ("labels", "modality")}
    file.write_text(json.dumps({**described, **divided}, indent=1))


def rows_of(study: Path) -> list[dict[str, Any]]:
    """Return a row for each arm, seed and structure of a finished study, from its tables of cases."""
    rows = []
    for table in sorted(study.glob("runs/*/**/test/predictions.csv")):
        arm, *_, seed = table.relative_to(study).parts[2:-2]
        with table.open(newline="") as file:
            cases = list(csv.DictReader(file))
        for structure, public in PUBLIC.items():
            dice = [float(case[f"dice_{structure}"]) for case in cases]
            row = {"arm": arm, "seed": seed.removeprefix("seed"), "structure": structure, "cases": len(dice)}
            rows.append({**row, "mean Dice": mean(dice), "median Dice": median(dice), "public median": public})
    return rows


def main() -> None:
    """Run the study and write its results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder Task04_Hippocampus with dataset.json")
    parser.add_argument("--block", type=Path, required=True, help="block file of the arm pretrained")
    parser.add_argument("--folder", type=Path, default=Path("hippocampus"), help="working folder of the study")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds for each arm")
    parser.add_argument("--epochs", type=int, default=60, help="number of epochs")
    parser.add_argument("--precision", default="bfloat16", help="float32, or bfloat16 on a processor that has it")
    parser.add_argument("--filters", type=int, default=16, help="features of the U-Net's first stage")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "hippocampus", help="folder of the results")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    write_list(options.data, options.folder / "list.json")
    shutil.copyfile(options.block, options.folder / options.block.name)
    words = [
        *("--bundle", "bundle", "--data", "list.json", "--arms", "none,pretrained", "--references", "none"),
        *("--block", options.block.name, "--seeds", options.seeds, "--jobs", options.jobs, "--lr-grid", 0.002),
        *("--filters", options.filters, "--batch_size", 2, "--epochs", options.epochs),
        *("--precision", options.precision, "--val_interval", 3, "--output", "study"),
    ]
    command = [sys.executable, "-m", "monai_llmboost", "study", *map(str, words)]
    subprocess.run(command, cwd=options.folder, check=True)
    study = options.folder / "study"
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "report.html"):
        shutil.copyfile(study / name, options.out / name)
    result = json.loads((study / "results.json").read_text())
    benchmark = "Dice of test cases of the Medical Segmentation Decathlon's hippocampus, by arm, seed and structure"
    save(options.out / "dice.json", benchmark, result["device"], {"command": result["command"]}, rows_of(study))
    show(options.out / "dice.json")


if __name__ == "__main__":
    main()
