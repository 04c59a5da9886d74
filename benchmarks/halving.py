# SPDX-License-Identifier: Apache-2.0
"""The search for learning rates of a study, with and without successive halving: epochs trained and rates chosen.

Both studies are in new folders, and share no run. The floors are left out, which are the same in both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from report import RESULTS, save, show

from monai_llmboost.studies.cost.measure import device_name

WAYS = {"all rates to the end": (), "halving": ("--lr-halving",)}


def measure(words: list[str], more: tuple[str, ...]) -> tuple[int, dict[str, Any]]:
    """Run a study and return the number of epochs that it trained, and its results."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "monai_llmboost", "study", "--output", f"{folder}/study", *words, *more]
        subprocess.run(command, check=True)
        curves = Path(folder, "study", "runs").rglob("learning_curves.csv")
        epochs = sum(len(file.read_text().splitlines()) - 1 for file in curves)
        return epochs, json.loads(Path(folder, "study", "results.json").read_text())


def main() -> None:
    """Run both studies and write their results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--dataset", default="adrenalmnist3d", help="data set")
    parser.add_argument("--arms", default="none,pretrained", help="arms")
    parser.add_argument("--rates", default="0.0005,0.001,0.002,0.004", help="learning rates")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of a training")
    parser.add_argument("--out", type=Path, default=RESULTS / "halving-cpu.json", help="file of the results")
    options = parser.parse_args()
    words = [
        *("--network", "resnet", "--preset", "strong", "--seeds", "1", "--floors", "none", "--arms", options.arms),
        *("--dataset", options.dataset, "--dataset_dir", str(options.dataset_dir.resolve())),
        *("--lr-grid", options.rates, "--epochs", str(options.epochs)),
    ]
    rows = []
    for way, more in WAYS.items():
        epochs, result = measure(words, more)
        (data,) = result["datasets"].values()
        for arm, found in data["learning_rates"].items():
            chosen, auc = found["chosen"], data["arms"][arm]["auc"]["mean"]
            validation = max(found["validation_auc"].values())
            row = {"search": way, "epochs trained": epochs, "arm": arm, "chosen": chosen}
            rows.append({**row, "validation AUC": validation, "test AUC": auc})
    settings = {"rates": options.rates, "epochs": options.epochs, "data set": options.dataset}
    save(options.out, "the search for learning rates", device_name(torch.device("cpu")), settings, rows)
    show(options.out)


if __name__ == "__main__":
    main()
