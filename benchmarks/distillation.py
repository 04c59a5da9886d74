# SPDX-License-Identifier: Apache-2.0
"""Studies of distillation: a small student alone, with a boosted teacher, and with a booster in training only.

For each set, boosted networks are trained first, in a study of their own. The one with the best validation, or all of
them as an ensemble, then teach students with few and with all labels; the teachers had all of them. Interrupted studies
are resumed; results and reports are copied.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from report import RESULTS

TEACHER_ARM = "pretrained"
STUDENTS = "scratch,logit,feature,rd,drd,booster"
NETWORK = ("--network", "resnet", "--preset", "strong")


def run_study(folder: Path, *words: object) -> None:
    """Run a study in a folder, or resume it."""
    command = [sys.executable, "-m", "monai_llmboost", "study", "--output", folder.name, *NETWORK, *map(str, words)]
    subprocess.run(command, cwd=folder.parent, check=True)


def find_teachers(study: Path, dataset: str) -> list[Path]:
    """Return the folders of the teachers of a set, the one with the best validation first."""
    runs = sorted((study / "runs" / dataset / TEACHER_ARM).glob("seed*"))
    best = {run: json.loads((run / "trained.json").read_text())["best"]["validation"] for run in runs}
    return sorted(runs, key=lambda run: -best[run])


def main() -> None:
    """Run the studies and copy their results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of the files of all data sets")
    parser.add_argument("--datasets", default="adrenalmnist3d,vesselmnist3d,lidcshapes_sizefree", help="data sets")
    parser.add_argument("--block", default="embedded", help="block of the boosters, a file or embedded")
    parser.add_argument("--teachers", default="best,ensemble", help="best, ensemble, or both")
    parser.add_argument("--student_size", type=int, default=16, help="features of the student's last stage")
    parser.add_argument("--seeds", type=int, default=5, help="number of teachers, and of students of each kind")
    parser.add_argument("--label_fractions", default="0.1,0.25,1", help="fractions of the training labels")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--folder", type=Path, default=Path("distillation"), help="working folder")
    parser.add_argument("--out", type=Path, default=RESULTS / "distillation", help="folder of the results")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():  # a short name in the results
        (folder / "data").symlink_to(options.dataset_dir.resolve())
    common = ("--seeds", options.seeds, "--jobs", options.jobs, "--dataset_dir", "data")
    teachers = folder / "teachers"
    run_study(
        teachers, "--arms", f"none,{TEACHER_ARM}", "--dataset", options.datasets, "--block", options.block, *common
    )
    studies = [teachers]
    block = () if options.block == "embedded" else ("--block", options.block)
    for teacher in options.teachers.split(","):
        for dataset in options.datasets.split(","):
            several = [str(run.relative_to(folder)) for run in find_teachers(teachers, dataset)]
            given = several[0] if teacher == "best" else str(sorted(several))
            studies.append(folder / f"{dataset}-{teacher}")
            run_study(
                *(studies[-1], "--overlay", "distil", "--arms", STUDENTS, "--dataset", dataset, "--teacher", given),
                *("--hidden_size", options.student_size, "--label-fraction", options.label_fractions, *common, *block),
            )
    for study in studies:
        out = options.out / study.name
        out.mkdir(parents=True, exist_ok=True)
        for name in ("results.json", "report.html"):
            shutil.copyfile(study / name, out / name)


if __name__ == "__main__":
    main()
