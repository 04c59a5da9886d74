# SPDX-License-Identifier: Apache-2.0
"""Cost and accuracy of float32 and bfloat16 on one device.

``time``: forward passes and steps of networks in both precisions, in turn in one process, as ratios to the first one
of each group in float32. The first group is ViT3D of the published size with a block of LLaMA-7B's size, also with
the layer of transformers. In bfloat16 the block is kept in bfloat16, as bundles do.

``accuracy``: the bundle's ViT3D is trained on a MedMNIST3D set in both precisions with the same seeds. Each network is
evaluated on the test split in both precisions, and probabilities are compared by case.
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from booster import DONORS, make_networks
from monai.networks.nets import DenseNet121, SegResNet, resnet18
from report import RESULTS, save, show
from torch import Tensor, nn
from tqdm import tqdm

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.bundle import run_bundle
from monai_llmboost.llm import random_block
from monai_llmboost.networks import planned_unet
from monai_llmboost.studies.cost.measure import device_name, forward, seconds, training_step
from monai_llmboost.tasks import medmnist_auc

BUNDLE = "medmnist3d_rllm_classification"
FLOAT32, BFLOAT16 = "float32", "bfloat16"
PUBLISHED = "ViT3D of the published size, 1 x 28³"
SIDES = {
    "plain": "plain",
    "ours": "boosted, CLS read",
    "full way": "boosted, all tokens",
    "transformers": "boosted, all tokens, `transformers`' layer",
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-18, 2 x 64³": (lambda: resnet18(n_input_channels=1, num_classes=2), (2, 1, 64, 64, 64)),
    "DenseNet-121, 2 x 64³": (lambda: DenseNet121(3, 1, 2), (2, 1, 64, 64, 64)),
    "planned U-Net, 2 x 40 x 56 x 40": (lambda: planned_unet(1, 3, (40, 56, 40), (1, 1, 1)), (2, 1, 40, 56, 40)),
    "SegResNet, 1 x 64³": (lambda: SegResNet(in_channels=1, out_channels=2), (1, 1, 64, 64, 64)),
}


def published_sides(device: torch.device) -> dict[str, tuple[nn.Module, torch.dtype | None]]:
    """Return the network and the dtype of autocast of each side, in both precisions."""
    networks = make_networks(random_block(DONORS["LLaMA-7B"]), 28)
    sides: dict[str, tuple[nn.Module, torch.dtype | None]] = {}
    for side, name in SIDES.items():
        network = networks[side]
        sides[f"{name}, {FLOAT32}"] = (network.to(device), None)
        sides[f"{name}, {BFLOAT16}"] = (_in_bfloat16(network).to(device), torch.bfloat16)
    return sides


def _in_bfloat16(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose frozen layer is kept in bfloat16."""
    narrow = copy.deepcopy(network)
    booster = getattr(narrow, "booster", None)
    booster = getattr(booster, "booster", booster)
    if isinstance(booster, ResidualBooster):
        booster.block.to(torch.bfloat16)
    elif hasattr(booster, "layer"):  # of transformers
        booster.layer.to(torch.bfloat16)
    return narrow


def measure_times(networks: Sequence[str] | None, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each network and precision."""
    rows = []
    if networks is None or PUBLISHED in networks:
        x = torch.rand(1, 1, 28, 28, 28, device=device)
        rows += measure_group(PUBLISHED, published_sides(device), x, rounds)
    for group, (make, shape) in OTHERS.items():
        if networks is not None and group not in networks:
            continue
        network = make().to(device)
        sides = {FLOAT32: (network, None), BFLOAT16: (network, torch.bfloat16)}
        rows += measure_group(group, sides, torch.rand(shape, device=device), rounds)
    return rows


def measure_group(
    group: str, sides: dict[str, tuple[nn.Module, torch.dtype | None]], x: Tensor, rounds: int
) -> list[dict[str, Any]]:
    """Return a row for each side, with its times divided by those of the first side in the same round."""
    rows: dict[str, dict[str, Any]] = {name: {"network": group, "side": name} for name in sides}
    for kind, make in (("forward", forward), ("step", training_step)):
        steps = {name: make(network, x, amp) for name, (network, amp) in sides.items()}
        times = seconds(steps, rounds, x.device, f"{group}, {kind}")
        first = next(iter(times.values()))
        for name, values in times.items():
            ratios = [a / b for a, b in zip(values, first)]
            rows[name][f"{kind} ms"] = 1e3 * statistics.median(values)
            rows[name][f"{kind} ratio"] = statistics.median(ratios)
            rows[name][f"{kind} range"] = f"{min(ratios):.2f} to {max(ratios):.2f}"
        for network, _ in sides.values():
            network.zero_grad(set_to_none=True)
    return list(rows.values())


def measure_accuracy(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each seed and precision of the training."""
    rows = []
    runs = [(seed, precision) for seed in range(options.seeds) for precision in (FLOAT32, BFLOAT16)]
    for seed, trained_in in tqdm(runs, desc="trainings"):
        folder = options.folder / f"{trained_in}-{seed}"
        common: dict[str, Any] = {
            "logging_file": False, "dataset": options.dataset, "dataset_dir": options.dataset_dir,
            "ckpt_dir": str(folder / "models"),
        }  # fmt: skip
        if not (folder / "done").exists():
            run_bundle(
                BUNDLE, "train", "pretrained", **common, output_dir=str(folder), seed=seed, epochs=options.epochs,
                precision=trained_in,
            )  # fmt: skip
            (folder / "done").touch()
        found = {}
        for precision in (FLOAT32, BFLOAT16):
            out = folder / f"test-{precision}"
            run_bundle(BUNDLE, "evaluate", "pretrained", **common, output_dir=str(out), precision=precision)
            found[precision] = read_scores(out / "predictions.csv")
        (one, labels), (other, _) = found.values()
        rows.append(
            {
                "trained in": trained_in,
                "seed": seed,
                "test AUC in float32": medmnist_auc(one, labels),
                "test AUC in bfloat16": medmnist_auc(other, labels),
                "probabilities differ, mean": (one - other).abs().mean().item(),
                "probabilities differ, most": (one - other).abs().max().item(),
            }
        )
    return rows


def read_scores(table: Path) -> tuple[Tensor, Tensor]:
    """Return the probabilities (cases, classes) and the labels of an evaluation."""
    with table.open(newline="") as file:
        cases = list(csv.DictReader(file))
    names = [name for name in cases[0] if name.startswith("p_")]
    scores = torch.tensor([[float(case[name]) for name in names] for case in cases])
    labels = torch.tensor([names.index(f"p_{case['label']}") for case in cases])
    return scores, labels


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("what", choices=["time", "accuracy"])
    parser.add_argument("--networks", nargs="+", choices=[PUBLISHED, *OTHERS], help="time: some networks; default all")
    parser.add_argument("--rounds", type=int, default=5, help="time: rounds; the results are medians")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="time: the device")
    parser.add_argument("--dataset", default="adrenalmnist3d", help="accuracy: the set")
    parser.add_argument("--dataset-dir", default="~/.medmnist", help="accuracy: folder of the MedMNIST files")
    parser.add_argument("--epochs", type=int, default=20, help="accuracy: epochs of a training")
    parser.add_argument("--seeds", type=int, default=5, help="accuracy: trainings in each precision")
    parser.add_argument("--folder", type=Path, default=Path("precision"), help="accuracy: of trainings, which are kept")
    parser.add_argument("--out", type=Path, help="default: results/precision-WHAT-DEVICE.json next to this file")
    options = parser.parse_args()
    device = torch.device(options.device)
    out = options.out or RESULTS / f"precision-{options.what}-{device.type}.json"
    torch.manual_seed(0)
    if options.what == "time":
        rows = measure_times(options.networks, options.rounds, device)
        save(out, "Time in float32 and bfloat16", device_name(device), {"rounds": options.rounds}, rows)
    else:
        settings = {"dataset": options.dataset, "epochs": options.epochs, "seeds": options.seeds}
        rows = measure_accuracy(options)
        save(out, "Test AUC of ViT3D trained and evaluated in two precisions", device_name(device), settings, rows)
    show(out)


if __name__ == "__main__":
    main()
