# SPDX-License-Identifier: Apache-2.0
"""Test AUC of a network whose frozen block is stored in few bits.

Each training differs only in the file of its block: the layer of this package in 16 bits, and in fewer. Trainings are
short, so their AUC is below that of a study; what counts is the difference between the bits of the same seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from precision import BUNDLE, FLOAT32, read_scores
from report import RESULTS, save, show
from tqdm import tqdm

from monai_llmboost.bundle import run_bundle
from monai_llmboost.llm import quantise_layers, read_block, write_block
from monai_llmboost.studies.cost.measure import device_name
from monai_llmboost.tasks import medmnist_auc

BENCHMARK = "Test AUC of ViT3D with a block in few bits"


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each seed, with the test AUC for each number of bits."""
    options.folder.mkdir(parents=True, exist_ok=True)
    donor, files, errors = read_block("embedded"), {}, {}
    for bits in options.bits:
        small = donor if bits == 16 else quantise_layers(donor, bits)
        errors[bits] = 0.0 if bits == 16 else small.error
        files[bits] = options.folder / f"{bits}-bits.safetensors"
        write_block(small, files[bits])
    rows = []
    for seed in tqdm(range(options.seeds), desc="seeds"):
        for bits, block in files.items():
            folder = options.folder / f"{bits}-{seed}"
            common: dict[str, Any] = {
                "logging_file": False, "dataset": options.dataset, "dataset_dir": options.dataset_dir,
                "ckpt_dir": str(folder / "models"), "block": str(block), "precision": FLOAT32, "device": "cpu",
            }  # fmt: skip
            if not (folder / "done").exists():
                run_bundle(
                    BUNDLE, "train", "pretrained", **common, output_dir=str(folder), seed=seed, epochs=options.epochs
                )
                (folder / "done").touch()
            run_bundle(BUNDLE, "evaluate", "pretrained", **common, output_dir=str(folder / "test"))
            auc = medmnist_auc(*read_scores(folder / "test" / "predictions.csv"))
            rows.append({"seed": seed, "bits": bits, "error of the output": errors[bits], "test AUC": auc})
    return rows


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--bits", nargs="+", type=int, default=[16, 8, 4], help="bits of a weight")
    parser.add_argument("--dataset", default="adrenalmnist3d", help="the set")
    parser.add_argument("--dataset-dir", default="~/.medmnist", help="folder of the MedMNIST files")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of a training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings for each number of bits")
    parser.add_argument("--folder", type=Path, default=Path("bits"), help="folder of the trainings, which are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "bits-accuracy-cpu.json", help="the JSON file to write")
    options = parser.parse_args()
    settings = {"dataset": options.dataset, "epochs": options.epochs, "seeds": options.seeds}
    save(options.out, BENCHMARK, device_name(torch.device("cpu")), settings, measure(options))
    show(options.out)


if __name__ == "__main__":
    main()
