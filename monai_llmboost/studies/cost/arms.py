# SPDX-License-Identifier: Apache-2.0
"""The cost of each arm of a bundle, measured without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from monai_llmboost.arguments import check_whole
from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.bundle import BundleJob, Option
from monai_llmboost.networks.insertion import BoostedModule
from monai_llmboost.networks.wrappers import unwrap
from monai_llmboost.studies.cost.measure import costs, device_name
from monai_llmboost.studies.cost.teacher import Ensemble, load_ensemble

# Name of the teacher among the arms.
TEACHER = "teacher"


def cost_of_arms(
    arms: Mapping[str, Sequence[Path]],
    overrides: Mapping[str, Any],
    rounds: int = 5,
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Build the network of each arm as training does, without the data, and measure its cost.

    Args:
        arms: by name, the config files of training with the arm's overlay; all arms are compared with the first one.
        overrides: config keys and their values, such as ``{"hidden_size": 1024}``; ``batch_size`` is for training. The
            network of a ``teacher``, the folder of a training or several of an ensemble, is measured too: first, under
            the name ``"teacher"``, so that all arms are compared with it.
        rounds: rounds of timing.
        own: by name of an arm, overrides for this arm only, such as its block.

    Returns:
        ``device``, ``amp`` (dtype of autocast, or ``None``), ``batch_size``, ``img_size`` (voxels along each axis, one
        number for a cube), ``rounds`` and under ``arms`` the result of :func:`monai_llmboost.studies.costs` with
        ``read_out``, see :func:`read_out`.

    Raises:
        ValueError: fewer than one round, options that the bundle refuses, or a teacher for another task.
        FileNotFoundError: no trained network in the folder of a teacher.
    """
    check_whole("rounds", rounds, 1, advice="timing needs one")
    folders = overrides.get(Option.TEACHER) or []
    if folders and TEACHER in arms:
        raise ValueError(f"the bundle has an arm of the name {TEACHER!r}: rename it, or measure without --teacher")
    networks: dict[str, nn.Module] = {}
    for name, files in arms.items():
        options = {**overrides, **(own or {}).get(name, {})}
        job = BundleJob.read(files, {key: value for key, value in options.items() if key != Option.TEACHER})
        torch.manual_seed(0)
        # An overlay may boost the network on its way from its definition to the device.
        networks[name] = (unwrap(job.network) if "network" in job else job.network_definition).to(job.device)
    check_whole(Option.BATCH_SIZE, job.batch_size, 1, advice=f"give --{Option.BATCH_SIZE}")
    channels, *size = job.image_shape
    x = torch.rand(job.batch_size, channels, *size, device=job.device)
    if folders:
        folders = [folders] if isinstance(folders, (str, Path)) else folders
        networks = {TEACHER: load_ensemble(folders, next(iter(networks.values())), x, job.amp_dtype), **networks}
    results = costs(networks, x, rounds, job.amp_dtype)
    for name, network in networks.items():
        members = network.networks if isinstance(network, Ensemble) else [network]
        results[name]["read_out"] = "; ".join(dict.fromkeys(read_out(member, x) for member in members))
    return {
        "device": device_name(job.device),
        "amp": None if job.amp_dtype is None else str(job.amp_dtype),
        "batch_size": job.batch_size,
        "img_size": size[0] if len(size) > 1 and len(set(size)) == 1 else size,
        "rounds": rounds,
        "arms": results,
    }


def read_out(network: nn.Module, x: Tensor) -> str:
    """Return as text the read-out method of a network's booster in training; ``x`` is a batch."""
    own = getattr(unwrap(network), "booster", None)  # the network of another bundle may not have one
    inserted = [part for part in network.modules() if isinstance(part, BoostedModule)]
    strides = {part.booster: part.token_stride for part in inserted}
    boosters = [booster for booster in (own, *strides) if isinstance(booster, ResidualBooster)]
    calls: dict[nn.Module, tuple[Any, ...]] = {}
    watches = [booster.register_forward_pre_hook(calls.__setitem__) for booster in boosters]
    if boosters:
        with torch.inference_mode():
            network.train()(x)
    for watch in watches:
        watch.remove()
    texts = [_describe_read_out(booster, strides.get(booster, 1), *calls[booster]) for booster in boosters]
    return "; ".join(texts) or "-"


def _describe_read_out(booster: ResidualBooster, stride: int, tokens: Tensor, *read: int) -> str:
    approximate = f"approximation, token_stride {stride}: " if stride > 1 else ""
    if tokens.shape[1] == 1:
        return f"{approximate}one pooled token"
    return approximate + booster.describe_readout(tokens.shape[0], tokens.shape[1], *read)


def cost_table(result: Mapping[str, Any]) -> Table:
    """Return the result of :func:`cost_of_arms` as a table to print, with a column for each arm."""
    arms, batch = result["arms"], result["batch_size"]
    size = result["img_size"]
    size = " x ".join(map(str, [size] * 3 if isinstance(size, int) else size))
    amp = f", autocast to {result['amp']}" if result["amp"] else ""
    table = Table(
        title=f"Cost per volume of {size} voxels in batches of {batch}\n{result['device']}{amp}",
        caption=(
            f"step: forward and backward. Times: medians of {result['rounds']} rounds. Ratio: to the first arm in the "
            "same round, the smallest and the largest in brackets. Training memory: weights, gradients, Adam's two "
            "moments and what the step of a batch needs at its peak. Milliseconds per volume: seconds per 1000 volumes."
        ),
    )
    table.add_column("arm")
    for arm in arms:
        table.add_column(arm, justify="right")
    for name, cells in cost_rows(arms).items():
        table.add_row(name, *cells.values())
    return table


def cost_rows(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return the rows of a table by their names, each with its texts by arm; next to a teacher, more ratios to it."""
    arms = {arm: cost for arm, cost in arms.items() if cost}
    rows = {name: {arm: text(cost) for arm, cost in arms.items()} for name, text in ROWS.items()}
    if TEACHER in arms:
        for name, number in SIZES.items():
            whole = number(arms[TEACHER])
            rows[name] = {arm: _short(number(cost) / whole) if whole else "-" for arm, cost in arms.items()}
    return rows


def _training_memory(cost: Mapping[str, Any]) -> str:
    growth = cost["step_memory_bytes"]
    return "unknown here" if growth is None else f"{(cost['weight_bytes'] + 8 * cost['trained'] + growth) / 1e6:.0f} MB"


def _short(number: float) -> str:
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"


def _ratio(cost: Mapping[str, Any], kind: str) -> str:
    return "{} [{}, {}]".format(*map(_short, (cost[f"{kind}_ratio"], *cost[f"{kind}_ratio_range"])))


ROWS = {
    "read out": lambda cost: cost["read_out"],
    "trained weights": lambda cost: f"{_short(cost['trained'] / 1e6)} M",
    "frozen weights": lambda cost: f"{_short(cost['frozen'] / 1e6)} M",
    "checkpoint": lambda cost: f"{cost['checkpoint_bytes'] / 1e6:.1f} MB",
    "training memory": _training_memory,
    "forward, GFLOP": lambda cost: f"{cost['forward_flops'] / 1e9:.3g}",
    "step, GFLOP": lambda cost: f"{cost['step_flops'] / 1e9:.3g}",
    "forward, ms": lambda cost: f"{1e3 * cost['forward_seconds']:.3g}",
    "step, ms": lambda cost: f"{1e3 * cost['step_seconds']:.3g}",
    "forward, ratio": lambda cost: _ratio(cost, "forward"),
    "step, ratio": lambda cost: _ratio(cost, "step"),
}
# Rows of ratios to the teacher, next to those of the times.
SIZES = {
    "weights, ratio": lambda cost: cost["trained"] + cost["frozen"],
    "forward GFLOP, ratio": lambda cost: cost["forward_flops"],
    "step GFLOP, ratio": lambda cost: cost["step_flops"],
}
