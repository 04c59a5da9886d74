# SPDX-License-Identifier: Apache-2.0
"""The cost of a network: weights, operations, memory and time, measured on its device."""

from __future__ import annotations

import ctypes
import gc
import io
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from tqdm import tqdm

from monai_llmboost.engines import AutocastInferer

# Linux: writing this resets the peak of the resident memory (proc_pid_clear_refs(5)).
CLEAR_REFS, RESET_PEAK = Path("/proc/self/clear_refs"), "5"
STATUS = Path("/proc/self/status")
# FLOPs of attention on the CPU, which torch 2.14 and older do not count; recomputed scores are not counted.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: 2 * sdpa_flop_count(q, k, v)
    ),
}


def device_name(device: torch.device) -> str:
    """Return the name of the device, such as "NVIDIA H100 80GB HBM3" or the processor and the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def numbers_of_weights(network: nn.Module) -> dict[str, int]:
    """Count trained and frozen weights; frozen are parameters without gradient and buffers outside checkpoints."""
    # Not by name: a state dict may rename, as that of a module with a booster does.
    saved = {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}
    frozen = [b for b in network.buffers() if id(b) not in saved and b.is_floating_point()]
    frozen += [p for p in network.parameters() if not p.requires_grad]
    trained = [p for p in network.parameters() if p.requires_grad]
    return {"trained": sum(p.numel() for p in trained), "frozen": sum(t.numel() for t in frozen)}


def weight_bytes(network: nn.Module) -> int:
    """Return the size of all weights in memory, bytes."""
    return sum(t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()])


def checkpoint_bytes(network: nn.Module) -> int:
    """Return the size of a checkpoint of the network, bytes."""
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return file.tell()


def forward(network: nn.Module, x: Tensor, amp: torch.dtype | None = None) -> Callable[[], None]:
    """Return a forward pass in ``eval()`` without gradients, as in inference, under autocast to ``amp`` if given."""
    infer = AutocastInferer(amp or torch.float32)

    def run() -> None:
        network.eval()
        # As in MONAI's evaluators; in inference mode the FLOP counter fails on modules that receive a parameter.
        with torch.no_grad():
            infer(x, network)

    return run


def training_step(network: nn.Module, x: Tensor, amp: torch.dtype | None = None) -> Callable[[], None]:
    """Return a forward (under autocast to ``amp`` if given) and backward pass in ``train()``, without an optimizer."""
    infer = AutocastInferer(amp or torch.float32)

    def run() -> None:
        network.train()
        network.zero_grad(set_to_none=True)
        infer(x, network).logsumexp(dim=-1).sum().backward()

    return run


def flops(step: Callable[[], None]) -> int:
    """Count the operations of a step's matrix products, attention and convolutions, two per multiply-add.

    The step runs twice and only the second run is counted, so that filling the caches of ``eval()`` is not counted.
    """
    step()
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        step()
    return counter.get_total_flops()


def memory_growth(step: Callable[[], None], device: torch.device) -> int | None:
    """Return by how many bytes a step's peak memory exceeds the memory before it: activations, gradients, temporaries.

    On a GPU, torch measures this; on Linux, it is the process's resident memory; elsewhere ``None``.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    if not CLEAR_REFS.exists():
        return None
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # otherwise the step could reuse freed memory, which would not be measured
        libc.malloc_trim(0)
    CLEAR_REFS.write_text(RESET_PEAK)
    before = _resident("VmRSS")
    step()
    return max(_resident("VmHWM") - before, 0)


def _resident(field: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def seconds(
    steps: Mapping[str, Callable[[], None]], rounds: int, device: torch.device, desc: str = "timing"
) -> dict[str, list[float]]:
    """Return the seconds of each step in each round; steps alternate, so that a change in speed affects all of them.

    Before the first round, each step runs once without timing.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    with tqdm(total=(rounds + 1) * len(steps), desc=desc, delay=2, leave=False) as bar:
        for round_number in range(rounds + 1):
            for name, step in steps.items():
                _wait(device)
                start = time.perf_counter()
                step()
                _wait(device)
                if round_number:
                    times[name].append(time.perf_counter() - start)
                bar.update()
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def costs(
    networks: Mapping[str, nn.Module], x: Tensor, rounds: int, amp: torch.dtype | None = None
) -> dict[str, dict[str, Any]]:
    """Measure the costs of networks on the same volumes, per volume unless stated otherwise.

    Args:
        networks: by name, on the device of ``x``; all networks are compared with the first one.
        x: volumes (B, channels, S0, S1, S2).
        rounds: rounds of timing; medians are returned.
        amp: dtype of autocast in forward passes; ``None`` for no autocast.

    Returns:
        For each network: ``trained``, ``frozen`` (numbers of weights), ``checkpoint_bytes``, ``weight_bytes`` (all
        weights in memory), and for ``forward`` and ``step`` (forward and backward): ``_flops``, ``_seconds`` and
        ``_ratio`` (time divided by the first network's time in the same round, median over the rounds),
        ``_ratio_range`` (smallest and largest ratio), and for the whole batch ``_memory_bytes`` (``None`` if it cannot
        be measured).
    """
    results: dict[str, dict[str, Any]] = {}
    for name, network in networks.items():
        results[name] = {
            **numbers_of_weights(network),
            "checkpoint_bytes": checkpoint_bytes(network),
            "weight_bytes": weight_bytes(network),
        }
    for kind, make in (("forward", forward), ("step", training_step)):
        steps = {name: make(network, x, amp) for name, network in networks.items()}
        for name, step in steps.items():
            results[name][f"{kind}_flops"] = flops(step) // len(x)
            networks[name].zero_grad(set_to_none=True)  # the gradients are part of the memory of a step
            results[name][f"{kind}_memory_bytes"] = memory_growth(step, x.device)
            networks[name].zero_grad(set_to_none=True)
        times = seconds(steps, rounds, x.device, f"timing {kind}")
        first = next(iter(times.values()))
        for name, values in times.items():
            results[name][f"{kind}_seconds"] = statistics.median(values) / len(x)
            ratios = [a / b for a, b in zip(values, first)]
            results[name][f"{kind}_ratio"] = statistics.median(ratios)
            results[name][f"{kind}_ratio_range"] = [min(ratios), max(ratios)]
            networks[name].zero_grad(set_to_none=True)
    return results
