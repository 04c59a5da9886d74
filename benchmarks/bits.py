# SPDX-License-Identifier: Apache-2.0
"""Block files with few bits a weight: their size, and the error of the block and of a boosted network.

For each number of bits, four ways to spend bytes: uniform groups of 64 inputs; the same with a tenth of the input
channels in 16 bits; and, in at most as many bytes as these take, smaller groups without salient channels, and one bit
more a weight without salient channels.

Errors are relative to the original weights, on the same input. Tokens are normal noise of the donor's size. The network
is a small ViT3D with untrained maps, on random volumes; its error is the root mean square over several of them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from report import RESULTS, save, show
from tqdm import tqdm

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.llm import (
    BlockGeometry,
    DonorLayers,
    FrozenBlock,
    find_h_rms,
    quantise_layers,
    random_layer,
    read_block,
    read_layers,
    write_block,
)
from monai_llmboost.llm.quantised_matrix import GROUP
from monai_llmboost.networks import ViT3D
from monai_llmboost.studies.cost.measure import device_name

BENCHMARK = "Block files with few bits a weight"
RANDOM = BlockGeometry(width=4096, mlp_width=11008, num_heads=32, num_kv_heads=32, head_size=128)  # LLaMA-7B
SALIENT = 0.1
SIZE, VOLUMES, NETWORKS = 28, 8, 8


def halve(donor: DonorLayers) -> DonorLayers:
    """Return a donor of one layer with bfloat16 weights, as most large donors have."""
    (layer,) = donor.layers
    return replace(donor, layers=(replace(layer, tensors={k: t.bfloat16() for k, t in layer.tensors.items()}),))


def bits_a_weight(inputs: int, bits: int, salient: float, group: int) -> float:
    """Return the bits a weight of a matrix with so many inputs."""
    kept = round(salient * inputs)
    return (16 * kept + bits * (inputs - kept) + 16 * -(-(inputs - kept) // group)) / inputs


def ways(donor: DonorLayers, bits: int) -> dict[str, dict[str, Any]]:
    """Return the ways to spend bytes at these bits; smaller groups have at most the bytes of salient channels."""
    shapes = [tuple(t.shape) for layer in donor.layers for t in layer.tensors.values() if t.ndim == 2]

    def size(*options: Any) -> float:
        return sum(out * inputs * bits_a_weight(inputs, *options) for out, inputs in shapes)

    most = size(bits, SALIENT, GROUP)
    group = next(group for group in range(1, GROUP + 1) if size(bits, 0.0, group) <= most)
    found = {
        "uniform": {"bits": bits, "salient": 0.0, "group": GROUP},
        "salient channels": {"bits": bits, "salient": SALIENT, "group": GROUP},
        "smaller groups": {"bits": bits, "salient": 0.0, "group": group},
    }
    if bits < 8:
        found["one bit more"] = {"bits": bits + 1, "salient": 0.0, "group": GROUP}
    return found


def logits(donor: DonorLayers, h_rms: float | None) -> torch.Tensor:
    """Return the logits of untrained boosted networks on random volumes, (networks, volumes, 2)."""
    block = FrozenBlock(donor, h_rms=h_rms, known_fingerprint="not needed")
    found = []
    for seed in range(NETWORKS):
        torch.manual_seed(seed)
        network = ViT3D(1, 2, SIZE, 7, booster=ResidualBooster(192, block, start="published")).eval()
        with torch.no_grad():
            found.append(network(torch.rand(VOLUMES, 1, SIZE, SIZE, SIZE)).double())
    return torch.stack(found)


def measure(donor: DonorLayers, all_bits: list[int]) -> Iterator[dict[str, Any]]:
    """Yield a row for each way to store a donor."""
    h_rms = find_h_rms(donor)
    whole = logits(donor, h_rms)
    row = {"donor": donor.name, "weights": donor.num_weights}
    yield {**row, "way": "as in the model", "set by": 16, "bits": 16, "MB": file_bytes(donor) / 1e6}
    for bits in all_bits:
        for way, options in ways(donor, bits).items():
            small = quantise_layers(donor, **options)
            changed = logits(small.donor, h_rms)
            yield {
                **row,
                "way": way,
                "set by": bits,
                **options,
                "MB": file_bytes(small) / 1e6,
                "error of the output": small.error,
                "error of the logits": float((changed - whole).norm() / whole.norm()),
            }


def file_bytes(donor: Any) -> int:
    """Return the size of the block file."""
    with tempfile.TemporaryDirectory() as folder:
        write_block(donor, Path(folder) / "block.safetensors")
        return (Path(folder) / "block.safetensors").stat().st_size


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=[], help="other donors, native models as for `extract`")
    parser.add_argument("--layer", default="-1", help="layer of these models")
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 6, 5, 4, 3, 2], help="bits of a weight")
    parser.add_argument(
        "--large-bits", nargs="+", type=int, default=[4], help="bits of random weights of LLaMA-7B's layer size"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "bits-cpu.json", help="the JSON file to write")
    options = parser.parse_args()
    settings = {"layer": options.layer, "salient": SALIENT, "volumes": VOLUMES, "networks": NETWORKS}
    rows: list[dict[str, Any]] = []
    for model in ("embedded", *options.models, "random"):
        if model == "random":
            donor, bits = halve(random_layer(RANDOM)), options.large_bits
        else:
            donor, bits = read_block(model) if model == "embedded" else read_layers(model, options.layer), options.bits
        for row in tqdm(measure(donor, bits), desc=donor.name):
            rows.append(row)
            save(options.out, BENCHMARK, device_name(torch.device("cpu")), settings, rows)
    show(options.out)


if __name__ == "__main__":
    main()
