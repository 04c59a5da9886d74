# SPDX-License-Identifier: Apache-2.0
"""The precision in which a network computes: float32, or mixed with bfloat16 or float16, by device."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch

from monai_llmboost.arguments import check_choice

logger = logging.getLogger("monai_llmboost")
AUTO, FLOAT32, BFLOAT16, FLOAT16 = PRECISIONS = ("auto", "float32", "bfloat16", "float16")
# Names of x86 and of ARM processors for matrix products in bfloat16, as torch gives them.
CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
# This variable keeps oneDNN, which computes for torch on a CPU, from some instructions; these values allow all.
INSTRUCTIONS, ALL = "ONEDNN_MAX_CPU_ISA", ("", "DEFAULT", "ALL")


def find_precision(precision: str = AUTO, device: torch.device | str = "cpu", training: bool = False) -> torch.dtype:
    """Return the dtype of matrix products and convolutions of a network on a device.

    Args:
        precision: float32; bfloat16 or float16, which means mixed precision: weights, losses and sums stay in float32;
            or auto, the fastest that this device computes natively: bfloat16, else float16 on a GPU and float32 on
            a CPU.
        device: the device of the network.
        training: whether auto is float32 on every CPU, because torch's gradients in bfloat16 are not always right there
            (:class:`monai_llmboost.engines.autocast.SmallMapsInFloat32`).

    Raises:
        ValueError: an unknown precision; float16 on a CPU, or for training on another device than a GPU.

    Example:
        >>> find_precision("bfloat16"), find_precision("auto") in (torch.float32, torch.bfloat16)
        (torch.bfloat16, True)
    """
    check_choice("precision", precision, PRECISIONS)
    kind = torch.device(device).type
    if precision == FLOAT16 and (kind == "cpu" or (training and kind != "cuda")):  # gradients are scaled on CUDA only
        where = "a CPU" if kind == "cpu" else f"the device {kind}"
        raise ValueError(f"the precision float16 needs a GPU: use bfloat16, float32 or auto on {where}")
    native = computes_bfloat16(device)
    if precision == BFLOAT16 and not native:
        logger.warning(f"this {_word(kind)} only emulates bfloat16, which is slow: float32 is faster")
    chosen = precision
    if precision == AUTO:
        slower = training and kind == "cpu"
        chosen = BFLOAT16 if native and not slower else FLOAT16 if kind == "cuda" else FLOAT32
        why = "for training on a CPU" if slower else f"the fastest of this {_word(kind)}"
        logger.info(f"precision {chosen}, {why}; --precision chooses another")
    return getattr(torch, chosen)


def computes_bfloat16(device: torch.device | str | None = None) -> bool:
    """Return whether this machine computes bfloat16 natively; an emulated one is slower than float32.

    Args:
        device: the device, whose number counts if GPUs differ; ``None``: the GPU, or the CPU without one.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda":
        if not torch.cuda.is_available():
            return False
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.device(device).type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not _allowed(os.environ.get(INSTRUCTIONS, "").upper()):
        return False
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.8
    return any(capabilities.get(name, False) for name in CPU_BFLOAT16)


def _allowed(instructions: str) -> bool:
    return instructions in ALL or any(word in instructions for word in ("BF16", "FP16", "AMX", "AVX10"))


def _word(kind: str) -> str:
    return "processor" if kind == "cpu" else "GPU" if kind == "cuda" else f"device {kind}"
