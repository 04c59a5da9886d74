# SPDX-License-Identifier: Apache-2.0
"""What made a prediction: digests of files, and plain descriptions of the objects that took part."""

from __future__ import annotations

import enum
import hashlib
import importlib.metadata
import platform
import random
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_llmboost.artifacts.digests import file_digest, text_digest
from monai_llmboost.networks.class_names import unwrap

PACKAGES = ("monai-llmboost", "monai", "torch", "numpy", "nibabel", "SimpleITK", "pydicom")
# The code that turns a file into a prediction: rows made by other versions of it are not mixed.
DECISIVE_PACKAGES = ("monai-llmboost", "monai", "torch")
# Random states differ from run to run, and nothing that predicts draws from them.
STATES = (np.random.RandomState, np.random.Generator, random.Random, torch.Generator)


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The installed versions of packages; those that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(value: Any) -> Any:
    """An object as plain JSON types, equal in every process: its class and, in depth, what its attributes hold.

    Made for transforms, inferers and the like, whose attributes are numbers, words and one another. Two objects that
    are described alike do the same, as far as their attributes and code tell; memory addresses and random states are
    left out, arrays become digests, functions their names and the digest of their code.
    """
    return _described(value, ())


def _described(value: Any, above: tuple[int, ...]) -> Any:
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, (enum.Enum, torch.dtype, torch.device, np.dtype, Path)):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)
        return f"{array.dtype}{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
    if id(value) in above:
        return "..."
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return {str(key): _described(item, above) for key, item in value.items() if not isinstance(item, STATES)}
    if isinstance(value, (set, frozenset)):
        return sorted(str(_described(item, above)) for item in value)
    if isinstance(value, (list, tuple)):
        return [_described(item, above) for item in value]
    if isinstance(value, types.FunctionType):
        code = value.__code__
        parts = (
            code.co_code.hex(),
            [str(c) for c in code.co_consts if not isinstance(c, types.CodeType)],
            code.co_names,
        )
        return f"{value.__module__}.{value.__qualname__} {text_digest(parts)[:16]}"
    if isinstance(value, types.MethodType):
        return f"{_name(type(value.__self__))}.{value.__name__}"
    if callable(value) and hasattr(value, "__qualname__"):  # a class, or a function written in C
        return _name(value)
    if isinstance(value, nn.Module):
        return str(value)
    attributes = {name: item for name, item in getattr(value, "__dict__", {}).items() if not isinstance(item, STATES)}
    told = {name: _described(item, above) for name, item in sorted(attributes.items())}
    return {"class": _name(type(value)), **told}


def _name(named: Any) -> str:
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}"


def describe_block(network: nn.Module) -> dict[str, str] | None:
    """The frozen block in a network: what its signature says and its fingerprint; None if it has none."""
    block: Any = getattr(getattr(unwrap(network), "booster", None), "block", None)
    fingerprint = getattr(block, "fingerprint", None)
    return None if fingerprint is None else {"block": block.signature.text, "fingerprint": fingerprint}


def run_facts(
    weights: str | Path,
    network: nn.Module,
    steps: Mapping[str, Any],
    options: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """What makes the predictions of a run, as plain JSON types, with the digest ``key`` of all that decides them.

    Args:
        weights: the checkpoint file.
        network: the network that it is loaded into.
        steps: transforms, inferer and the like by name, described in depth.
        options: words and numbers that decide what comes out, such as the precision.
        about: what is told and decides nothing, such as the bundle's name.
        device: where it runs; told.
    """
    path = Path(weights)
    decisive = {
        "weights_sha256": file_digest(path) if path.is_file() else "",
        "block": describe_block(network),
        "network": text_digest(str(unwrap(network))),
        "steps": {name: describe(step) for name, step in steps.items()},
        "options": describe(dict(options)),
        "versions": versions(DECISIVE_PACKAGES),
    }
    kind = torch.device(device)
    name = (
        torch.cuda.get_device_name(kind) if kind.type == "cuda" and torch.cuda.is_available() else platform.processor()
    )
    return {
        **dict(about or {}),
        "key": text_digest(decisive),
        "weights": {"file": str(path), "sha256": decisive["weights_sha256"]},
        "block": decisive["block"],
        "network": str(unwrap(network)),
        **decisive["steps"],
        "options": decisive["options"],
        "device": f"{kind} ({name or platform.machine()})",
        "versions": {**versions(), "python": platform.python_version()},
    }
