# SPDX-License-Identifier: Apache-2.0
"""The command demo: train two arms on phantoms, evaluate them, predict NIfTI files, show the tables."""

from __future__ import annotations

import csv
import json
import logging
import sys
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

BUNDLE = "medmnist3d_rllm_classification"
ARMS = {"none": "plain", "pretrained": "boosted"}
NUM_NIFTI = 8


def demo(
    output: Annotated[Path, typer.Option(help="The folder to make; it must not exist yet.")] = Path("llmboost-demo"),
    epochs: Annotated[int, typer.Option(help="Epochs of each training run.")] = 6,
) -> None:
    """Train two arms on phantoms made by code, evaluate them, predict NIfTI files, print the tables."""
    from rich.console import Console

    from monai_llmboost.bundle import copy_bundle

    if output.exists():
        raise FileExistsError(f"{output} already exists: give another folder with --output, or remove it")
    if epochs < 1:
        raise ValueError(f"expected at least one epoch, got {epochs}")
    console = Console(file=sys.stdout)
    bundle = output / "bundle"
    copy_bundle(BUNDLE, bundle)
    # MONAI's and Ignite's own lines go into a file, so that the progress bars and the tables stay readable.
    warnings.simplefilter("ignore")
    with (output / "demo.log").open("w") as log, redirect_stdout(log):
        logging.basicConfig(stream=log, level=logging.INFO, format="%(asctime)s %(name)s %(message)s", force=True)
        results = _train_and_predict(console, output, bundle, epochs)
    _show(console, output, results)


def _train_and_predict(console: Console, output: Path, bundle: Path, epochs: int) -> dict[str, dict[str, Any]]:
    from monai_llmboost.bundle import run_bundle

    results = {}
    for arm, meaning in ARMS.items():
        console.print(
            f"\n[bold]{meaning} network[/bold] (arm {arm}): training {epochs} epochs on phantoms, then the test split"
        )
        options: dict[str, Any] = {
            "ckpt_dir": str(output / arm),
            "output_dir": str(output / arm),
            "logging_file": False,
        }
        start = time.perf_counter()
        run_bundle(bundle, "train", arm, epochs=epochs, **options)
        seconds = time.perf_counter() - start
        run_bundle(bundle, "evaluate", arm, **options)
        results[arm] = {**json.loads((output / arm / "metrics.json").read_text()), "seconds": seconds}
    _write_nifti(output / "nifti")
    console.print(f"\n[bold]predicting[/bold] {NUM_NIFTI} test volumes written as NIfTI files, by the boosted network")
    places = {"dataset_dir": str(output / "nifti"), "output_dir": str(output / "predictions")}
    run_bundle(bundle, "inference", "pretrained", logging_file=False, ckpt_dir=str(output / "pretrained"), **places)
    return results


def _write_nifti(folder: Path) -> None:
    """Write the first test phantoms as files with the identity for an affine (1 mm voxels, RAS+)."""
    import nibabel
    import numpy as np

    from monai_llmboost.data import PHANTOM_CLASSES, phantom_arrays

    folder.mkdir()
    images, labels = phantom_arrays("test", cases=NUM_NIFTI)
    for index, (image, label) in enumerate(zip(images, labels)):
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / f"{PHANTOM_CLASSES[label]}-{index}.nii.gz")


def _show(console: Console, output: Path, results: dict[str, dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title="Test split: 240 phantoms [95 % interval over the cases]")
    for heading in ("arm", "AUC", "ACC", "training"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm, result in results.items():
        spans = {name: "[{:.3f}, {:.3f}]".format(*result[f"{name}_interval_95"]) for name in ("auc", "acc")}
        table.add_row(
            arm,
            f"{result['auc']:.3f} {spans['auc']}",
            f"{result['acc']:.3f} {spans['acc']}",
            f"{result['seconds']:.0f} s",
        )
    console.print(table)
    console.print("One seed, phantoms, a small donor: this shows that everything runs, not that a block helps.")
    predictions = output / "predictions" / "predictions.csv"
    with predictions.open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = [name for name in rows[0] if name in ("case", "predicted") or name.startswith("p_")]
    table = Table(*shown, title="Predictions for the NIfTI files (arm pretrained)")
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    console.print(table)
    for what, path in {
        "predictions": predictions,
        "the same as a page to look at": predictions.parent / "report.html",
        "metrics and per-case table of each arm": output / "<arm>",
        "trained weights": output / "<arm>" / "model.pt",
        "learning curves": f"tensorboard --logdir {output}",
        "the bundle, yours to change": output / "bundle",
        "full log": output / "demo.log",
    }.items():
        console.print(f"{what}: {path}", highlight=False, markup=False, soft_wrap=True)
