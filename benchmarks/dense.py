# SPDX-License-Identifier: Apache-2.0
"""Cost of a booster on the feature maps of a U-Net, where all tokens are read, and of what makes it cheaper.

MONAI's DynUNet in two plans like those of nnU-Net, boosted at the bottleneck or after the first decoder stage. The
sides are the plain network, the block computed as it is ("whole block"), F_E folded into queries, keys and values where
that needs fewer operations ("folded", exact), and "token_stride 2", an approximation. Operations are counted on meta
tensors, for blocks of the size of the embedded one and of a layer of LLaMA-7B. Where no side has more than --most-gflop
operations, forward passes are timed too, in CPU seconds of the process, which depend less on the machine's other work.
Cells that are in the file already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from boosted_networks import BLOCKS, features, uncomputed_block
from monai.networks.nets import DynUNet
from report import RESULTS, save, show
from torch import nn
from tqdm import tqdm

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.llm import FrozenBlock, random_block
from monai_llmboost.networks import boost
from monai_llmboost.networks.insertion import BoostedModule
from monai_llmboost.studies.cost.arms import read_out
from monai_llmboost.studies.cost.measure import device_name, flops, forward, training_step

# Voxels of a patch, and the channels of each stage.
PLANS = {
    "40x56x40": ((40, 56, 40), (32, 64, 128, 256)),
    "96x96x96": ((96, 96, 96), (32, 64, 128, 256, 320)),
}
JOINTS = {"bottleneck": "bottleneck", "decoder": "upsamples.0"}
SIDES = ("plain", "whole block", "folded", "token_stride 2")
BENCHMARK = "a booster on the feature maps of DynUNet"


def make_network(plan: str, at: str, side: str, block: FrozenBlock, device: str = "cpu") -> nn.Module:
    """Return DynUNet in a plan, with a booster at a joint as a side computes it."""
    size, filters = PLANS[plan]
    kernels, strides = [3] * len(filters), [1] + [2] * (len(filters) - 1)
    with torch.device(device):
        torch.manual_seed(0)
        network = DynUNet(3, 1, 3, kernels, strides, strides[1:], filters=filters)
        booster = None if side == "plain" else partial(ResidualBooster, block=block)
        stride = 2 if side == "token_stride 2" else 1
        network = boost(network, booster, JOINTS[at], example=torch.zeros(1, 1, *size), token_stride=stride)
    for module in network.modules():
        if isinstance(module, BoostedModule) and side == "whole block":
            module.booster.readout.folds = False
    return network


def count(plan: str, at: str, block: str) -> list[dict[str, Any]]:
    """Return a row for each side at a joint, with its operations."""
    rows: list[dict[str, Any]] = []
    x = torch.empty(1, 1, *PLANS[plan][0], device="meta")
    with torch.device("meta"):
        uncomputed = uncomputed_block(BLOCKS[block])
    for side in SIDES:
        network = make_network(plan, at, side, uncomputed, "meta")
        row: dict[str, Any] = {"volume": plan, "joint": at, "block": block, "side": side, **features(network, x)}
        for kind, make in (("forward", forward), ("step", training_step)):
            row[f"GFLOP {kind}"] = flops(make(network, x)) / 1e9
            plain = (rows or [row])[0][f"GFLOP {kind}"]
            row[f"operations / plain, {kind}"] = row[f"GFLOP {kind}"] / plain
        row["read out"] = read_out(network, x)
        rows.append(row)
    return rows


def measure(plan: str, at: str, block: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Return the CPU seconds of a forward pass of each side; sides alternate, and share the block."""
    shared, x = random_block(BLOCKS[block]), torch.rand(1, 1, *PLANS[plan][0])
    passes = {side: forward(make_network(plan, at, side, shared), x) for side in SIDES}
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds + 1):  # the first one is not timed
        for side, run in passes.items():
            start = time.process_time()
            run()
            if number:
                times[side].append(time.process_time() - start)
    found = {}
    for side, seconds in times.items():
        ratios = [one / plain for one, plain in zip(seconds, times["plain"])]
        found[side] = {
            "CPU seconds": statistics.median(seconds),
            "time / plain": statistics.median(ratios),
            "time / plain, least and most": f"{min(ratios):.2f} to {max(ratios):.2f}",
        }
    return found


def main() -> None:
    """Count, measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--most-gflop", type=float, default=120, help="most operations of a side that is timed")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing; the results are medians")
    parser.add_argument("--out", type=Path, default=RESULTS / "dense-cpu.json", help="the JSON file to write")
    options = parser.parse_args()
    settings = {"rounds": options.rounds, "dtype": "torch.float32", "most_gflop": options.most_gflop}
    device = device_name(torch.device("cpu"))
    known = json.loads(options.out.read_text()) if options.out.is_file() else {}
    rows = known["rows"] if (known.get("device"), known.get("settings")) == (device, settings) else []
    done = {(row["volume"], row["joint"], row["block"]) for row in rows}
    cells = [(plan, at, block) for plan in options.plans for at in JOINTS for block in options.blocks]
    for plan, at, block in tqdm([cell for cell in cells if cell not in done]):
        found = count(plan, at, block)
        if max(row["GFLOP forward"] for row in found) <= options.most_gflop:
            timed = measure(plan, at, block, options.rounds)
            found = [row | timed[row["side"]] for row in found]
        rows += found
        save(options.out, BENCHMARK, device, settings, rows)
    show(options.out)


if __name__ == "__main__":
    main()
