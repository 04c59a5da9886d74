# SPDX-License-Identifier: Apache-2.0
"""The command demo: a small study on phantoms, a prediction of NIfTI files, and their tables."""

from __future__ import annotations

import csv
import importlib
import json
import logging
import os
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

BUNDLE = "medmnist3d_rllm_classification"
DATASET, NETWORK, PRESET = "phantom", "resnet", "strong"
PLAIN, BOOSTED = "none", "pretrained"
MEANING = {PLAIN: "plain network", BOOSTED: "boosted network"}
SEEDS = 3
NUM_NIFTI = 8


def demo(
    output: Annotated[Path, typer.Option(help="The folder to create; it must not exist yet.")] = Path("llmboost-demo"),
    epochs: Annotated[int, typer.Option(help="Epochs of each training run.")] = 5,
) -> None:
    """Compare a plain and a boosted network on synthetic phantoms with three seeds, and predict NIfTI files."""
    from rich.console import Console

    from monai_llmboost.bundle import copy_bundle

    if output.exists():
        raise FileExistsError(f"{output} already exists: give another folder with --output, or remove it")
    if epochs < 1:
        raise ValueError(f"epochs must be a whole number from 1, not {epochs}: give --epochs 5, for instance")
    console = Console(file=sys.stdout)
    bundle = output / "bundle"
    copy_bundle(BUNDLE, bundle)
    warnings.simplefilter("ignore")  # of MONAI and Ignite
    # MONAI's and Ignite's log lines go into a file, so that the tables stay readable.
    with (output / "demo.log").open("w") as log:
        logging.basicConfig(stream=log, level=logging.INFO, format="%(asctime)s %(name)s %(message)s", force=True)
        with redirect_stdout(log):
            importlib.import_module("monai.bundle")  # whose log keeps the stream that it finds
        study = _study(console, bundle, output / "study", epochs)
        _write_nifti(output / "nifti")
        console.print(f"\n[bold]predicting[/bold] {NUM_NIFTI} phantoms written as NIfTI files, by the boosted network")
        with redirect_stdout(log):
            _predict(bundle, output)
    _show_study(console, study)
    _show_predictions(console, output / "predictions" / "predictions.csv")
    for what, path in {
        "the study as a page to look at": output / "study" / "report.html",
        "the predictions as a page": output / "predictions" / "report.html",
        "trained weights, curves and per-case tables": output / "study" / "runs",
        "the bundle, yours to change": output / "bundle",
        "full log": output / "demo.log",
    }.items():
        console.print(f"{what}: {path}", highlight=False, markup=False, soft_wrap=True)


def _study(console: Console, bundle: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """Run the study and return the results of its data set."""
    from monai_llmboost.studies import Plan, run_study

    console.print(
        f"[bold]training[/bold] a plain and a boosted {NETWORK} on phantoms (arms {PLAIN}, {BOOSTED}), {epochs} "
        f"epochs, {SEEDS} seeds each; the test phantoms are predicted once, at the end",
        soft_wrap=True,
    )
    options = {"epochs": epochs}
    plan = Plan(str(bundle), (PLAIN, BOOSTED), (DATASET,), seeds=SEEDS, preset=PRESET, network=NETWORK, options=options)
    run_study(plan, folder, jobs=min(2, os.cpu_count() or 1), cost_rounds=1)
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["datasets"][DATASET]


def _predict(bundle: Path, output: Path) -> None:
    """Predict the NIfTI files with the weights of the first seed."""
    from monai_llmboost.bundle import run_bundle

    places = {"dataset_dir": str(output / "nifti"), "output_dir": str(output / "predictions")}
    weights = str(output / "study" / "runs" / DATASET / BOOSTED / "seed0")
    run_bundle(
        bundle, "inference", BOOSTED, logging_file=False, network=NETWORK, weights="last", ckpt_dir=weights, **places
    )


def _write_nifti(folder: Path) -> None:
    """Write the first test phantoms as NIfTI files with the identity as affine (1 mm voxels, RAS+)."""
    import nibabel
    import numpy as np

    from monai_llmboost.data import PHANTOM_CLASSES, phantom_arrays

    folder.mkdir()
    images, labels = phantom_arrays("test", cases=NUM_NIFTI)
    for index, (image, label) in enumerate(zip(images, labels)):
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"{PHANTOM_CLASSES[label]}-{index}.nii.gz")


def _show_study(console: Console, results: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"{results['cases']['test']} test phantoms, mean ± sd of {SEEDS} seeds")
    for heading in ("", "AUC", "ACC"):
        table.add_column(heading, justify="left" if not heading else "right")
    for arm, found in results["arms"].items():
        scores = [f"{found[name]['mean']:.3f} ± {found[name]['sd']:.3f}" for name in ("auc", "acc")]
        table.add_row(f"{MEANING[arm]} ({arm})" if arm in MEANING else arm, *scores)
    console.print(table)
    (difference,) = (each for each in results["comparisons"] if each["metric"] == "auc")
    low, high = difference["intervals"]["both"]
    console.print(
        f"boosted minus plain: AUC {difference['difference']:+.3f}, 95 % interval [{low:.3f}, {high:.3f}]. Phantoms, "
        "few epochs and a small donor: this shows that everything runs, not that a block helps.",
        highlight=False,
        soft_wrap=True,
    )


def _show_predictions(console: Console, file: Path) -> None:
    from rich.table import Table

    with file.open(newline="") as text:
        rows = list(csv.DictReader(text))
    shown = [name for name in rows[0] if name in ("case", "predicted") or name.startswith("p_")]
    table = Table(*shown, title=f"Predictions for the NIfTI files (arm {BOOSTED})")
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    console.print(table)
