# SPDX-License-Identifier: Apache-2.0
"""Cost of the booster: ViT3D plain, boosted (CLS read-out), boosted in full, and with the layer of transformers.

All sides do the same work in one process, in turn: a ViT3D of the published R-LLM size (8 layers, C = 1024), a
block of random weights of a donor's size, the same trained maps. If the sides run in float32, an additional side
has its block in bfloat16, as most donors store it: half the memory, and faster on processors with bfloat16.

Operations are counted on meta tensors for every cell of the table; time and memory are measured for sides with at most
--most-tflop operations. Each cell is saved when it is done, and cells that are in the file already are not measured
again: an interrupted run is resumed, and a call with few cells and a larger --most-tflop can be made first.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import RESULTS, save, show
from torch import Tensor, nn
from tqdm import tqdm

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.llm import BlockGeometry, DonorLayers, FrozenBlock, Layer, random_block
from monai_llmboost.networks import ViT3D
from monai_llmboost.precision import computes_bfloat16
from monai_llmboost.studies.cost.measure import (
    device_name,
    flops,
    forward,
    memory_growth,
    seconds,
    training_step,
    weight_bytes,
)

PATCH = 4
NETWORK = {"in_channels": 1, "num_classes": 2, "patch_size": PATCH, "hidden_size": 1024, "mlp_dim": 1024}
LAYERS = {"num_layers": 8, "num_heads": 8, "head_size": 64}
DONORS = {
    "LLaMA-7B": BlockGeometry(width=4096, mlp_width=11008, num_heads=32, num_kv_heads=32, head_size=128),
    "TinyLlama-1.1B": BlockGeometry(width=2048, mlp_width=5632, num_heads=32, num_kv_heads=4, head_size=64),
    "SmolLM-135M": BlockGeometry(width=576, mlp_width=1536, num_heads=9, num_kv_heads=3, head_size=64),
}
BENCHMARK = "ViT3D of the published size, plain and boosted"
KINDS: dict[str, Callable[..., Callable[[], None]]] = {"forward": forward, "step": training_step}


class FullComputation(nn.Module):
    """A booster that computes all its tokens, although only one is used."""

    def __init__(self, booster: ResidualBooster) -> None:
        super().__init__()
        self.booster = booster

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, C) to tokens (B, N, C)."""
        return self.booster(x)


class TransformersBooster(nn.Module):
    """The same booster around the layer of ``transformers``, written without this package."""

    def __init__(self, booster: ResidualBooster) -> None:
        super().__init__()
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

        geometry = booster.block.geometry
        config = LlamaConfig(
            hidden_size=geometry.width,
            intermediate_size=geometry.mlp_width,
            num_attention_heads=geometry.num_heads,
            num_key_value_heads=geometry.num_kv_heads,
            head_dim=geometry.head_size,
            attn_implementation="sdpa",
        )
        self.encode, self.decode = booster.encode, booster.decode
        self.layer = LlamaDecoderLayer(config, 0).to(booster.block.layer.down.weight.dtype).requires_grad_(False)
        self.layer.self_attn.is_causal = False
        self.norm = LlamaRMSNorm(geometry.width).requires_grad_(False)
        self.head_size = geometry.head_size

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, C) to tokens (B, N, C)."""
        h = self.encode(x)
        cos = torch.ones(x.shape[0], x.shape[1], self.head_size, device=x.device, dtype=h.dtype)
        y = self.layer(h, position_embeddings=(cos, torch.zeros_like(cos)), attention_mask=None)
        return self.decode(self.norm(y) + h)


def make_networks(block: FrozenBlock, img_size: int) -> dict[str, nn.Module]:
    """Return the network of each side; the boosted ones share the maps and (except transformers) the block."""
    booster = ResidualBooster(NETWORK["hidden_size"], block, start="published")
    boosters = {
        "plain": None,
        "ours": booster,
        "full way": FullComputation(booster),
        "transformers": TransformersBooster(booster),
    }
    if block.layer.down.weight.dtype == torch.float32:
        boosters["ours, bfloat16 block"] = narrow = copy.deepcopy(booster)
        narrow.block.to(torch.bfloat16)
    return {name: ViT3D(img_size=img_size, **NETWORK, **LAYERS, booster=part) for name, part in boosters.items()}


def count_operations(geometry: BlockGeometry, img_size: int, batch: int) -> dict[str, dict[str, int]]:
    """Count the operations of each kind and side for the whole batch, without computing them."""
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in geometry.tensor_shapes.items()}
        block = FrozenBlock(DonorLayers((Layer(tensors, geometry),), "counted"))
        networks = make_networks(block, img_size)
        x = torch.empty(batch, 1, img_size, img_size, img_size)
        return {kind: {name: flops(make(net, x)) for name, net in networks.items()} for kind, make in KINDS.items()}


def count_tokens(img_size: int) -> int:
    """Return the number of patches of a volume, plus one for the CLS token."""
    return (img_size // PATCH) ** 3 + 1


def measure_cell(
    geometry: BlockGeometry,
    block: FrozenBlock,
    img_size: int,
    batch: int,
    most: float,
    rounds: int,
    device: torch.device,
    amp: torch.dtype | None,
) -> list[dict[str, Any]]:
    """Return the rows of one donor, number of tokens and batch size: one for each kind and side."""
    operations = count_operations(geometry, img_size, batch)
    rows = []
    networks: dict[str, nn.Module] = {}
    if min(min(of_kind.values()) for of_kind in operations.values()) <= most * 1e12:  # otherwise nothing is timed
        networks = {name: network.to(device) for name, network in make_networks(block, img_size).items()}
        x = torch.rand(batch, 1, img_size, img_size, img_size, device=device)
    for kind, make in KINDS.items():
        steps = {name: make(net, x, amp) for name, net in networks.items() if operations[kind][name] <= most * 1e12}
        times = seconds(steps, rounds, device, f"{kind}, batch {batch}, {img_size} voxels")
        memory = {}
        for name, step in steps.items():
            networks[name].zero_grad(set_to_none=True)
            memory[name] = memory_growth(step, device)
            networks[name].zero_grad(set_to_none=True)
        for name in operations[kind]:
            row = {
                "tokens": count_tokens(img_size),
                "batch": batch,
                "kind": kind,
                "side": name,
                "GFLOP per volume": operations[kind][name] / batch / 1e9,
                "operations / plain": operations[kind][name] / operations[kind]["plain"],
            }
            if name in networks:
                row["weights MB"] = weight_bytes(networks[name]) / 1e6
            if name in times and "plain" in times:
                ratios = [a / b for a, b in zip(times[name], times["plain"])]
                row["ms per volume"] = 1e3 * statistics.median(times[name]) / batch
                row["time / plain"] = statistics.median(ratios)
                row["time / plain, least and most"] = f"{min(ratios):.2f} to {max(ratios):.2f}"
            if memory.get(name) is not None:
                row["peak MB of the batch"] = memory[name] / 1e6
            rows.append(row)
    return rows


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--donors", nargs="+", choices=DONORS, default=list(DONORS), help="sizes of the block")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="volumes in a batch")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[28, 56, 80], help="voxels along each axis, multiples of 4"
    )
    parser.add_argument("--most-tflop", type=float, default=1.5, help="largest number of operations of a timed side")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing; the results are medians")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to measure")
    parser.add_argument("--out", type=Path, help="default: results/booster-DEVICE.json next to this file")
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" and computes_bfloat16("cuda") else torch.float32
    out = options.out or RESULTS / f"booster-{device.type}.json"
    settings = {"dtype": str(dtype), "rounds": options.rounds}
    rows = read_earlier_rows(out, device_name(device), settings)
    done = {(row["donor"], row["tokens"], row["batch"]) for row in rows}
    cells = [(donor, size, batch) for donor in options.donors for size in options.sizes for batch in options.batches]
    block = None
    for donor, size, batch in tqdm(cells, desc="cells"):
        if (donor, count_tokens(size), batch) in done:
            continue
        if block is None or block.geometry != DONORS[donor]:
            block = random_block(DONORS[donor], dtype=dtype)
        amp = dtype if dtype == torch.bfloat16 else None
        measured = measure_cell(DONORS[donor], block, size, batch, options.most_tflop, options.rounds, device, amp)
        rows += [{"donor": donor, **row} for row in measured]
        save(out, BENCHMARK, device_name(device), settings, rows)
    show(out)


def read_earlier_rows(out: Path, device: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows that an earlier run saved in ``out``; empty if there are none.

    Raises:
        SystemExit: they were measured on another device or with other settings.
    """
    if not out.exists():
        return []
    earlier = json.loads(out.read_text())
    if (earlier["device"], earlier["settings"]) != (device, settings):
        sys.exit(
            f"{out} has results of {earlier['device']} with {earlier['settings']}: remove it, or give another --out"
        )
    return earlier["rows"]


if __name__ == "__main__":
    main()
