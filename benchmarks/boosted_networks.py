# SPDX-License-Identifier: Apache-2.0
"""Cost of a booster in MONAI's networks: at the deepest features, and at the pooled vector of classifiers.

Operations are counted on meta tensors, for blocks of the size of the embedded one and of a layer of LLaMA-7B. Time and
memory are measured for the former, by networks whose plain forward pass has at most --most-gflop operations. Each
network is saved when it is done, and rows that are in the file already are not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import monai.networks.nets as nets
import torch
from report import RESULTS, save, show
from torch import Tensor, nn
from tqdm import tqdm

from monai_llmboost.boosters import ResidualBooster, mlp_booster
from monai_llmboost.llm import BlockGeometry, DonorLayers, FrozenBlock, Layer, load_block, random_block
from monai_llmboost.networks import boost
from monai_llmboost.networks.insertion import BoostedModule
from monai_llmboost.networks.joints import DEEPEST, POOLED, known_joints
from monai_llmboost.studies import costs
from monai_llmboost.studies.cost.measure import device_name, flops, forward, numbers_of_weights, training_step

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNet": lambda: nets.UNet(3, 1, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2),
    "DenseNet121": lambda: nets.DenseNet121(3, 1, 2),
    "SegResNet": lambda: nets.SegResNet(3, 16, 1, 2, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1)),
    "resnet18": lambda: nets.resnet18(spatial_dims=3, n_input_channels=1, num_classes=2),
    "SwinUNETR": lambda: nets.SwinUNETR(1, 2, feature_size=48),
}
BLOCKS = {
    "embedded": load_block("embedded").geometry,
    "LLaMA-7B": BlockGeometry(width=4096, mlp_width=11008, num_heads=32, num_kv_heads=32, head_size=128),
}
BENCHMARK = "MONAI's networks, plain and boosted"


def make_network(
    name: str, at: str, arm: str, block: Callable[[], nn.Module], like: BlockGeometry, device: str = "cpu"
) -> nn.Module:
    """Return a network with the booster of an arm; SwinUNETR cannot be made on the device meta, only moved there."""
    network = NETWORKS[name]().to(device)
    makers = {"none": None, "mlp": partial(mlp_booster, like=like), "random": None}
    with torch.device(device):
        maker = partial(ResidualBooster, block=block()) if arm == "random" else makers[arm]
        return boost(network, maker, at)


def uncomputed_block(geometry: BlockGeometry) -> FrozenBlock:
    """Return a block without values, to count its operations."""
    tensors = {name: torch.empty(shape) for name, shape in geometry.tensor_shapes.items()}
    return FrozenBlock(DonorLayers((Layer(tensors, geometry),), "counted"))


def count(name: str, at: str, size: int) -> list[dict[str, Any]]:
    """Return a row for each block and arm at a joint of a network, with its operations."""
    rows: list[dict[str, Any]] = []
    arms = [("", "none"), *((block, arm) for block in BLOCKS for arm in ("mlp", "random"))]
    x = torch.empty(1, 1, size, size, size, device="meta")
    for block, arm in arms:
        geometry = BLOCKS[block or "embedded"]
        network = make_network(name, at, arm, partial(uncomputed_block, geometry), geometry, "meta")
        row = {"network": name, "joint": at, "block": block, "arm": arm, **features(network, x)}
        row |= numbers_of_weights(network)
        for kind, make in (("forward", forward), ("step", training_step)):
            row[f"GFLOP {kind}"] = flops(make(network, x)) / 1e9
            plain = (rows or [row])[0][f"GFLOP {kind}"]
            row[f"operations / plain, {kind}"] = row[f"GFLOP {kind}"] / plain
        rows.append(row)
    return rows


def features(network: nn.Module, x: Tensor) -> dict[str, Any]:
    """Return the form of the features that a network boosts, and the numbers of their tokens and channels."""
    shapes: list[Tensor] = []
    boosted = [module for module in network.modules() if isinstance(module, BoostedModule)]
    for module in boosted:
        module.booster.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0]))
    network.eval()(x)
    for module in boosted:
        module.booster._forward_pre_hooks.clear()
    return {
        "form": boosted[0].form if boosted else "",
        "tokens": shapes[0].shape[1] if shapes else None,
        "channels": shapes[0].shape[2] if shapes else None,
    }


def measure(name: str, at: str, size: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Return time and memory of the arms with a block of the embedded size, by arm."""
    geometry = BLOCKS["embedded"]
    networks = {
        arm: make_network(name, at, arm, partial(random_block, geometry), geometry) for arm in ("none", "mlp", "random")
    }
    measured = costs(networks, torch.rand(1, 1, size, size, size), rounds)
    return {
        arm: {
            "ms forward": 1e3 * cost["forward_seconds"],
            "ms step": 1e3 * cost["step_seconds"],
            "time / plain, forward": cost["forward_ratio"],
            "time / plain, step": cost["step_ratio"],
            "step memory MB": None if cost["step_memory_bytes"] is None else cost["step_memory_bytes"] / 1e6,
        }
        for arm, cost in measured.items()
    }


def joints_of(name: str) -> list[str]:
    """Return the joints of a network."""
    known = known_joints(NETWORKS[name]())
    return [DEEPEST] if known is None or known.pooled is None else [DEEPEST, POOLED]


def main() -> None:
    """Count, measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis")
    parser.add_argument("--most-gflop", type=float, default=50, help="most operations of a network that is timed")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timing; the results are medians")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "boosted-networks-cpu.json", help="the JSON file to write"
    )
    options = parser.parse_args()
    settings = {
        "size": options.size,
        "rounds": options.rounds,
        "dtype": "torch.float32",
        "most_gflop": options.most_gflop,
    }
    device = device_name(torch.device("cpu"))
    known = json.loads(options.out.read_text()) if options.out.is_file() else {}
    rows = known["rows"] if (known.get("device"), known.get("settings")) == (device, settings) else []
    done = {(row["network"], row["joint"]) for row in rows}
    cells = [(name, at) for name in options.networks for at in joints_of(name) if (name, at) not in done]
    for name, at in tqdm(cells):
        found = count(name, at, options.size)
        if found[0]["GFLOP forward"] <= options.most_gflop:
            timed = measure(name, at, options.size, options.rounds)
            for row in found:
                row |= timed[row["arm"]] if row["block"] in ("", "embedded") else {}
        rows = sorted(rows + found, key=lambda row: list(NETWORKS).index(row["network"]))
        save(options.out, BENCHMARK, device, settings, rows)
    show(options.out)


if __name__ == "__main__":
    main()
