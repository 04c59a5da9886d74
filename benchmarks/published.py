# SPDX-License-Identifier: Apache-2.0
"""Published R-LLM code (from a clone) compared with our networks: outputs, operations, memory and time.

    git clone https://github.com/ZhixinLai/LLMBoostMedical
    python benchmarks/published.py --published LLMBoostMedical

Four 3D vision transformers of the published size (C = 1024, 8 layers, a LLaMA-7B block) with the same weights, in one
process, in turn: theirs and ours, boosted and plain. Their boosted network runs unchanged. Its constructor reads the
last layer of a LLaMA-7B checkpoint in the working directory; here the file has no layers, so that the network keeps its
random initial weights. They are loaded into ours like a checkpoint. Their repository has no plain network (it uses that
of `vit-pytorch`): plain is theirs without the step between the transformer and the pooling.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from report import RESULTS, save, show
from torch import Tensor, nn

from monai_llmboost.networks import ViT3D, from_published
from monai_llmboost.networks.published import RESIDUAL_OF_MODE
from monai_llmboost.studies.cost.measure import (
    checkpoint_bytes,
    device_name,
    flops,
    forward,
    memory_growth,
    seconds,
    training_step,
)

MODELS = Path("3D_classification", "models")
# Path of LLaMA for their constructor, relative to the working directory.
LLAMA = Path("llama", "pyllama_data", "7B", "consolidated.00.pth")
# Settings of their training script; those of the block are fixed in their code.
NETWORK = {"channels": 3, "num_classes": 2, "dim": 1024, "depth": 8, "heads": 8, "dim_head": 64, "mlp_dim": 1024}
PATCHES = {"image_patch_size": 4, "frame_patch_size": 4}
BLOCK = {"llm_dim": 4096, "llm_heads": 32, "llm_norm_eps": 1e-6}
BOOSTER_PARTS = ("llama", "llama_dim_mapper1", "llama_dim_mapper2", "llama_dim_dim_mapper")
# Their parameters -> ours, to compare gradients.
GRADIENTS = {"pos_embedding": "positions", "llama_dim_mapper1.weight": "booster.encode.weight"}
KINDS: dict[str, Callable[[nn.Module, Tensor], Callable[[], None]]] = {"forward": forward, "step": training_step}


def import_published(clone: Path) -> ModuleType:
    """Import their module of the boosted 3D vision transformer, under a separate name.

    Raises:
        FileNotFoundError: the folder is not a clone of their repository.
        ImportError: a package that their code needs is missing.
    """
    if not (clone / MODELS / "vit3d_llama.py").is_file():
        raise FileNotFoundError(
            f"no {MODELS / 'vit3d_llama.py'} in {clone}: give a clone  of https://github.com/ZhixinLai/LLMBoostMedical"
        )
    package = ModuleType("published_rllm")
    package.__path__ = [str((clone / MODELS).resolve())]
    sys.modules[package.__name__] = package
    try:
        return importlib.import_module(f"{package.__name__}.vit3d_llama")
    except ModuleNotFoundError as error:
        raise ImportError(f"the published code needs {error.name}: pip install {error.name}") from error


def make_published(module: ModuleType, mode: str, pool: str, img_size: int) -> nn.Module:
    """Make their boosted network, with a LLaMA layer of random weights."""
    sizes = {**NETWORK, **PATCHES, "image_size": img_size, "frames": img_size}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        file = Path(folder) / LLAMA
        file.parent.mkdir(parents=True)
        torch.save({}, file)
        os.chdir(folder)
        try:
            return module.ViTLLama(**sizes, pool=pool, model_name=mode)
        finally:
            os.chdir(here)


def make_published_plain(module: ModuleType, boosted: nn.Module, pool: str, img_size: int) -> nn.Module:
    """Make their network without the booster, with the weights of the boosted one."""
    network: Any = make_published(module, "llm", pool, img_size)
    network.load_state_dict(boosted.state_dict())
    for part in BOOSTER_PARTS:
        delattr(network, part)
    network.forward_features = lambda tokens: tokens
    return network


def make_ours(boosted: nn.Module, mode: str, pool: str, img_size: int) -> tuple[nn.Module, nn.Module]:
    """Make our networks, boosted and plain, with the weights of theirs."""
    cube = {"image_size": img_size, "frames": img_size}
    network = from_published(
        boosted.state_dict(), kind="vit3d", mode=mode, pool=pool, **NETWORK, **PATCHES, **BLOCK, **cube
    )
    plain = ViT3D(
        in_channels=NETWORK["channels"],
        num_classes=NETWORK["num_classes"],
        img_size=img_size,
        patch_size=PATCHES["image_patch_size"],
        hidden_size=NETWORK["dim"],
        mlp_dim=NETWORK["mlp_dim"],
        num_layers=NETWORK["depth"],
        num_heads=NETWORK["heads"],
        head_size=NETWORK["dim_head"],
        pool=pool,
    )
    weights = {name: weight for name, weight in network.state_dict().items() if not name.startswith("booster.")}
    plain.load_state_dict(weights, strict=True)
    return network, plain


def measure_differences(theirs: nn.Module, ours: nn.Module, x: Tensor) -> dict[str, float]:
    """Return the differences of the logits (forward) and of the gradients in ``GRADIENTS`` (step)."""
    with torch.inference_mode():
        result = {"forward": measure_relative(theirs.eval()(x), ours.eval()(x))}
    for network in (theirs, ours):
        training_step(network, x)()
    expected, got = (dict(network.named_parameters()) for network in (theirs, ours))
    pairs = [(expected[a].grad, got[b].grad) for a, b in GRADIENTS.items() if b in got]
    result["step"] = max(measure_relative(*pair) for pair in pairs)
    for network in (theirs, ours):
        network.zero_grad(set_to_none=True)
    return result


def measure_relative(expected: Tensor, got: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((got - expected).abs().max() / expected.abs().max())


def measure_rows(networks: dict[str, nn.Module], x: Tensor, rounds: int) -> list[dict[str, Any]]:
    """Measure one row for each kind of work and network."""
    far = {
        arm: measure_differences(networks[f"published, {arm}"], networks[f"ours, {arm}"], x)
        for arm in ("boosted", "plain")
    }
    saved = {name: checkpoint_bytes(network) for name, network in networks.items()}
    rows = []
    for kind, make in KINDS.items():
        steps = {name: make(network, x) for name, network in networks.items()}
        operations, memory = {}, {}
        for name, step in steps.items():
            operations[name] = flops(step)
            networks[name].zero_grad(set_to_none=True)
            memory[name] = memory_growth(step, x.device)
            networks[name].zero_grad(set_to_none=True)
        times = seconds(steps, rounds, x.device, f"timing {kind}")
        for name, network in networks.items():
            code, arm = name.split(", ")
            row = {
                "kind": kind,
                "side": name,
                "GFLOP per volume": operations[name] / len(x) / 1e9,
                "ms per volume": 1e3 * statistics.median(times[name]) / len(x),
                "time / own plain": ratio(times[name], times[f"{code}, plain"]),
                "time / published": ratio(times[name], times[f"published, {arm}"]),
            }
            if memory[name] is not None:
                row["peak MB of the batch"] = memory[name] / 1e6
            row["trained"] = sum(p.numel() for p in network.parameters() if p.requires_grad)
            row["checkpoint MB"] = saved[name] / 1e6
            row["difference to published"] = far[arm][kind] if code == "ours" else None
            rows.append(row)
    return rows


def ratio(times: list[float], reference: list[float]) -> float:
    """Return the median of the ratios to the reference time in the same round."""
    return statistics.median(a / b for a, b in zip(times, reference))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="time / own plain: relative to the plain network of the same code; time / published: relative to their "
        "network of the same kind; both in the same round. difference to published: largest relative difference of the "
        "logits (forward) and of the gradients of the positions and of the first linear map (step).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--published", type=Path, required=True, help="a clone of ZhixinLai/LLMBoostMedical")
    parser.add_argument("--mode", choices=RESIDUAL_OF_MODE, default="llm_in", help="residual, by their name")
    parser.add_argument("--pool", choices=("cls", "mean"), default="cls", help="their default is cls")
    parser.add_argument("--size", type=int, default=28, help="voxels along each axis, a multiple of 4")
    parser.add_argument("--batch", type=int, default=1, help="volumes in a batch")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timing; the results are medians")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to measure")
    parser.add_argument("--out", type=Path, help="default: results/published-DEVICE.json next to this file")
    options = parser.parse_args()
    if min(options.batch, options.rounds) < 1 or options.size < 4 or options.size % 4:
        parser.error("--batch and --rounds must be from 1, and --size a multiple of 4")
    device = torch.device(options.device)
    torch.manual_seed(0)
    cell = (options.mode, options.pool, options.size)
    try:
        module = import_published(options.published)
    except (FileNotFoundError, ImportError) as error:
        sys.exit(f"published: {error}")
    theirs = make_published(module, *cell)
    networks = {"published, boosted": theirs, "published, plain": make_published_plain(module, theirs, *cell[1:])}
    networks["ours, boosted"], networks["ours, plain"] = make_ours(theirs, *cell)
    x = torch.rand(options.batch, NETWORK["channels"], options.size, options.size, options.size, device=device)
    rows = measure_rows({name: network.to(device) for name, network in networks.items()}, x, options.rounds)
    settings = {name: getattr(options, name) for name in ("mode", "pool", "size", "batch", "rounds")}
    settings["dtype"] = str(x.dtype)
    out = options.out or RESULTS / f"published-{device.type}.json"
    save(out, "the published R-LLM network and ours with the same weights", device_name(device), settings, rows)
    show(out)


if __name__ == "__main__":
    main()
