# SPDX-License-Identifier: Apache-2.0
"""The cost of each arm of a bundle, before anyone spends a GPU hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from rich.table import Table
from torch import Tensor, nn

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.bundle import config_values, merged
from monai_llmboost.data import check_source
from monai_llmboost.networks.wrappers import unwrap
from monai_llmboost.studies.cost.measure import costs, device_name


def cost_of_arms(arms: Mapping[str, Sequence[Path]], overrides: Mapping[str, Any], rounds: int = 5) -> dict[str, Any]:
    """Build the network of each arm as training would, without its data, and measure what it costs.

    Args:
        arms: by name, the config files of training with the arm's overlay; the first is compared with.
        overrides: config keys and their values, such as ``{"hidden_size": 1024}``; ``batch_size`` is that of training.
        rounds: of timing.

    Returns:
        ``device``, ``amp`` (dtype of autocast, or ``None``), ``batch_size``, ``img_size`` and under ``arms`` what
        :func:`monai_llmboost.studies.costs` gives.

    Raises:
        ValueError: fewer than one round; whatever the bundle refuses.
    """
    if rounds < 1:
        raise ValueError(f"expected at least one round of timing, got {rounds}")
    networks = {}
    for name, files in arms.items():
        parser = ConfigParser()
        parser.read_config([str(file) for file in files])
        parser.update(config_values(merged(files), overrides))
        _check_data(parser)
        device = torch.device(parser.get_parsed_content("device"))
        torch.manual_seed(0)
        networks[name] = parser.get_parsed_content("network_def").to(device)
    batch_size, size = (parser.get_parsed_content(key) for key in ("batch_size", "size"))
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"expected batch_size to be a whole number from 1, got {batch_size!r}: give --batch_size")
    x = torch.rand(batch_size, parser.get_parsed_content("network_def#in_channels"), size, size, size, device=device)
    amp = parser.get_parsed_content("train#trainer#amp_kwargs")["dtype"] if parser.get_parsed_content("amp") else None
    results = costs(networks, x, rounds, amp)
    for name, network in networks.items():
        results[name]["read_out"] = read_out(network, x)
    return {
        "device": device_name(device),
        "amp": None if amp is None else str(amp),
        "batch_size": batch_size,
        "img_size": size,
        "rounds": rounds,
        "arms": results,
    }


def _check_data(parser: ConfigParser) -> None:
    """Refuse options of data that the data set does not use, though no data are read here."""
    keys = ("dataset", "dataset_dir", "download")
    if all(key in parser for key in keys):
        check_source(*(parser.get_parsed_content(key) for key in keys))


def read_out(network: nn.Module, x: Tensor) -> str:
    """How the booster of a network computes in training what is read of it, in words; ``x`` is a batch of volumes."""
    booster = getattr(unwrap(network), "booster", None)  # another network of somebody's bundle need not have one
    if not isinstance(booster, ResidualBooster):
        return "-"
    calls: list[tuple[Any, ...]] = []
    watch = booster.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    with torch.inference_mode():
        network.train()(x)
    watch.remove()
    tokens, read = calls[0][0], calls[0][1:]
    if not read and not booster.tokenwise:
        return "all tokens are read: whole block"
    return booster.describe_readout(tokens.shape[0], tokens.shape[1], *(read or (1,)))


def cost_table(result: Mapping[str, Any]) -> Table:
    """What :func:`cost_of_arms` measured, to be printed: a column for each arm."""
    arms, size, batch = result["arms"], result["img_size"], result["batch_size"]
    amp = f", autocast to {result['amp']}" if result["amp"] else ""
    table = Table(
        title=f"Cost per volume of {size} x {size} x {size} voxels in batches of {batch}\n{result['device']}{amp}",
        caption=(
            f"step: forwards and backwards. Times: medians of {result['rounds']} rounds. Ratio: to the first arm in "
            "the same round, the least and the largest in brackets. Training memory: weights, gradients, Adam's two "
            "moments and what the step of a batch holds at its peak. Milliseconds per volume: seconds per 1000 volumes."
        ),
    )
    table.add_column("arm")
    for arm in arms:
        table.add_column(arm, justify="right")
    for name, text in ROWS.items():
        table.add_row(name, *(text(cost) for cost in arms.values()))
    return table


def _training_memory(cost: Mapping[str, Any]) -> str:
    growth = cost["step_memory_bytes"]
    return (
        "not known here" if growth is None else f"{(cost['weight_bytes'] + 8 * cost['trained'] + growth) / 1e6:.0f} MB"
    )


def _ratio(cost: Mapping[str, Any], kind: str) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(cost[f"{kind}_ratio"], *cost[f"{kind}_ratio_range"])


ROWS = {
    "read out": lambda cost: cost["read_out"],
    "trained weights": lambda cost: f"{cost['trained'] / 1e6:.2f} M",
    "frozen weights": lambda cost: f"{cost['frozen'] / 1e6:.2f} M",
    "checkpoint": lambda cost: f"{cost['checkpoint_bytes'] / 1e6:.1f} MB",
    "training memory": _training_memory,
    "forward, GFLOP": lambda cost: f"{cost['forward_flops'] / 1e9:.3g}",
    "step, GFLOP": lambda cost: f"{cost['step_flops'] / 1e9:.3g}",
    "forward, ms": lambda cost: f"{1e3 * cost['forward_seconds']:.3g}",
    "step, ms": lambda cost: f"{1e3 * cost['step_seconds']:.3g}",
    "forward, ratio": lambda cost: _ratio(cost, "forward"),
    "step, ratio": lambda cost: _ratio(cost, "step"),
}
