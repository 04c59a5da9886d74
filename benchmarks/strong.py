# SPDX-License-Identifier: Apache-2.0
"""Validation AUC of a plain network with the strong preset, compared with the official ResNet-18 (3D).

A gain over a weak network proves nothing. So the preset is tuned, and here the plain ViT3D (or ``--network resnet``)
is compared with the convolutional network of the MedMNIST benchmark (Yang et al. 2023,
doi:10.1038/s41597-022-01721-8; at 28 voxels along each axis). The official validation splits are too small (98 and
191 cases), so training and validation cases are divided into folds, and each is predicted once by a network that did
not see it. The AUC is that of the weights of the last epoch, as the preset reads them; the test split is not opened.
The official figures are of the test split.

Folds are trained as in a study, each in a separate process; finished folds are not trained again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from report import RESULTS, save, show
from tqdm import tqdm

from monai_llmboost.studies import Plan
from monai_llmboost.studies.cost.measure import device_name
from monai_llmboost.studies.jobs import Job, run_locally
from monai_llmboost.studies.one_run import train
from monai_llmboost.studies.run_folder import RunFolder
from monai_llmboost.tasks import Classification

OFFICIAL = {"adrenalmnist3d": 0.827, "vesselmnist3d": 0.874}


def jobs_of(plan: Plan, folder: Path, arms: list[str]) -> dict[tuple[str, str], list[Job]]:
    """Return the trainings of each data set and arm, one for each fold."""
    jobs: dict[tuple[str, str], list[Job]] = {}
    for dataset in plan.datasets:
        for run in plan.runs(dataset, dict.fromkeys(plan.arms)):
            if run.arm in arms:
                place = RunFolder(folder / run.name)
                arguments = (plan, run, place, Classification.metrics["auc"].key)
                jobs.setdefault((dataset, run.arm), []).append(Job(run.name, place.path, train, arguments))
    return jobs


def rows_of(jobs: dict[tuple[str, str], list[Job]]) -> list[dict[str, Any]]:
    """Return one row for each data set and arm."""
    rows = []
    for (dataset, arm), folds in jobs.items():
        found = [trained for job in folds if (trained := RunFolder(job.folder).trained)]
        last, best = ([fold.of(weights).validation for fold in found] for weights in ("last", "best"))
        row = {"set": dataset, "arm": arm, "AUC": statistics.mean(last), "sd of folds": statistics.stdev(last)}
        row |= {"folds": [round(value, 4) for value in last], "AUC, epoch by validation": statistics.mean(best)}
        rows.append(row | {"ResNet-18 (3D), official": OFFICIAL[dataset]})
    return rows


def main() -> None:
    """Train and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset-dir", default="~/.medmnist", help="folder of the MedMNIST files")
    parser.add_argument("--datasets", nargs="+", choices=OFFICIAL, default=list(OFFICIAL))
    parser.add_argument("--arms", nargs="+", default=["none"], choices=["none", "mlp", "random", "pretrained"])
    parser.add_argument("--network", help="another network of the bundle, such as resnet; default: its own")
    parser.add_argument("--folds", type=int, default=5, help="from 2")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument(
        "--folder", type=Path, required=True, help="of the trainings; an interrupted one is resumed there"
    )
    parser.add_argument("--out", type=Path, help="the JSON file to write; default: strong[-NETWORK]-cpu.json")
    options = parser.parse_args()
    name = "strong" if options.network is None else f"strong-{options.network}"
    out = options.out or RESULTS / f"{name}-cpu.json"
    arms = ("none", "mlp", "random", "pretrained")  # a plan is of several; those asked for are trained
    try:
        settings = {"dataset_dir": options.dataset_dir}
        plan = Plan(
            "medmnist3d_rllm_classification",
            arms,
            tuple(options.datasets),
            seeds=1,
            folds=options.folds,
            preset="strong",
            network=options.network,
            options=settings,
        )
        jobs = jobs_of(plan, options.folder, options.arms)
    except (ValueError, OSError) as error:
        sys.exit(f"strong: {error}")
    rest = [job for folds in jobs.values() for job in folds if RunFolder(job.folder).trained is None]
    failed = {}
    with tqdm(total=len(rest), desc="folds") as bar:
        for ended in run_locally(rest, options.jobs):
            bar.update(len(ended or {}))
            failed |= {name: reason for name, reason in (ended or {}).items() if reason}
    if failed:
        sys.exit("\n".join(f"strong: {name}: {reason}" for name, reason in failed.items()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    benchmark = f"validation AUC of {options.folds} folds of the strong preset, weights of the last epoch"
    save(out, benchmark, device_name(device), {"folds": options.folds, "network": options.network}, rows_of(jobs))
    show(out)


if __name__ == "__main__":
    main()
