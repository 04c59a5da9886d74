# SPDX-License-Identifier: Apache-2.0
"""A study of distillation on the hippocampus: a small U-Net alone, and taught by the boosted one of hippocampus.py.

The students have a quarter of their teacher's features and a tenth of the labelled cases, which the teacher had all of.
An interrupted study is resumed; results and report are copied, and the Dice of each structure is written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from hippocampus import rows_of
from report import RESULTS, save, show

# Of the teacher, in the folder of hippocampus.py.
TEACHER = "study/runs/list/pretrained/lr0.002/seed0"
PATCH = "[1,40,56,40]"


def main() -> None:
    """Run the study and write its results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("hippocampus"), help="folder of the finished hippocampus.py"
    )
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds for each arm")
    parser.add_argument("--epochs", type=int, default=8, help="number of epochs, each as long as one of all cases")
    parser.add_argument("--precision", default="bfloat16", help="float32, or bfloat16 on a processor that has it")
    parser.add_argument(
        "--filters", type=int, default=4, help="features of the U-Net's first stage; the teacher has 16"
    )
    parser.add_argument("--label_fractions", default="0.1", help="fractions of the training cases")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "hippocampus-students", help="folder of the results")
    options = parser.parse_args()
    words = [
        *("--bundle", "students", "--data", "list.json", "--overlay", "distil", "--arms", "scratch,logit,drd"),
        *("--references", "scratch", "--teacher", TEACHER, "--seeds", options.seeds, "--jobs", options.jobs),
        *("--filters", options.filters, "--image_shape", PATCH, "--batch_size", 2, "--epochs", options.epochs),
        *("--precision", options.precision, "--lr-grid", 0.01, "--val_interval", 2),
        *("--label-fraction", options.label_fractions, "--output", "distilled"),
    ]
    command = [sys.executable, "-m", "monai_llmboost", "study", *map(str, words)]
    subprocess.run(command, cwd=options.folder, check=True)
    study = options.folder / "distilled"
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "report.html"):
        shutil.copyfile(study / name, options.out / name)
    result = json.loads((study / "results.json").read_text())
    benchmark = "Dice of test cases of the hippocampus, by student, seed and structure"
    save(options.out / "dice.json", benchmark, result["device"], {"command": result["command"]}, rows_of(study))
    show(options.out / "dice.json")


if __name__ == "__main__":
    main()
