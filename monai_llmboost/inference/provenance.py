# SPDX-License-Identifier: Apache-2.0
"""Provenance of predictions: weights, block, config, code and versions, and the digest of all of these."""

from __future__ import annotations

import platform
import uuid
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from torch import nn

from monai_llmboost.artifacts.digests import file_digest, text_digest
from monai_llmboost.bundle import (
    FREE_IN_PREDICTION,
    Option,
    as_plain,
    code_digests,
    counting_config,
    reads_outside,
    running_config,
)
from monai_llmboost.bundle.contract import TRAINED
from monai_llmboost.engines.trained_record import describe_block, versions
from monai_llmboost.inference.journal import INCOMPARABLE
from monai_llmboost.networks.class_names import unwrap

# Packages that determine a prediction; rows from different versions are not mixed.
DECISIVE_PACKAGES = ("monai-llmboost", "monai", "torch")


def run_provenance(
    weights: str | Path,
    network: nn.Module,
    options: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the provenance of a run's predictions as JSON types, with the digest ``key`` that identifies the run.

    The key is a digest of the weights' digest, the block's fingerprint, the text of the merged config (without
    :data:`monai_llmboost.bundle.FREE`), the code that the config names outside installed packages, and versions. If the
    config contains Python objects, or expressions that read files or the environment, or if there is no config, runs
    cannot be compared and each run has a unique key.

    Args:
        weights: the checkpoint file.
        network: the network for these weights.
        options: values that change predictions and are not in the text of the config, such as the precision.
        metadata: values that do not change predictions, such as the bundle's name.
        device: device of the run; not part of the key.
        config: the merged config; ``None`` uses the config of the running bundle.

    Raises:
        ValueError: an option is not a plain value.
    """
    path = Path(weights)
    config = running_config() if config is None else config
    counting = counting_config(config, FREE_IN_PREDICTION)
    folder = config.get("bundle_root")
    why = [f"{name} is a {kind} object of Python" for name, kind in counting.objects.items()]
    why += [f"{name} depends on more than its text" for name in reads_outside(config, FREE_IN_PREDICTION)]
    if not config:
        why = ["there is no config"]
    decisive = {
        "weights_sha256": file_digest(path) if path.is_file() else "",
        "block": describe_block(network),
        "config": list(counting.values.items()),  # a list, because the order matters
        "code": code_digests({**config, TRAINED: None}, folder if isinstance(folder, str) else None),
        "options": {name: _plain(name, value) for name, value in (options or {}).items()},
        "versions": versions(DECISIVE_PACKAGES),
    }
    return {
        **dict(metadata or {}),
        "key": _own_key(why) if why else text_digest(decisive),
        "weights": {"file": str(path), "sha256": decisive["weights_sha256"]},
        "block": decisive["block"],
        "network": str(unwrap(network)),
        # If names are hidden, the config is not written, because its text may contain names.
        "config": {**counting.values, **counting.objects} if config.get(Option.SALT) is None else {},
        "code": decisive["code"],
        "options": decisive["options"],
        "device": f"{torch.device(device)} ({_device_name(torch.device(device))})",
        "versions": {**versions(), "python": platform.python_version()},
    }


def _plain(name: str, value: Any) -> Any:
    try:
        return as_plain(value)
    except TypeError as error:
        raise ValueError(
            f"the option {name!r} must be a plain value, such as a number or a text, not {value!r}: give its name"
        ) from error


def _own_key(why: Iterable[str]) -> str:
    """Return a key that is unique to this run and equal in all its processes."""
    token: Any = uuid.uuid4().hex
    if idist.get_world_size() > 1:
        token = idist.broadcast(token, src=0)
    return f"{INCOMPARABLE}{', '.join(why)}; {token}"


def _device_name(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else ""
    return name or platform.processor() or platform.machine()


def run_facts(
    weights: str | Path,
    network: nn.Module,
    steps: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Return :func:`run_provenance`, for bundles that were copied from version 0.1.0 or before."""
    warnings.warn(
        "monai_llmboost.inference.run_facts is deprecated: use monai_llmboost.inference.run_provenance",
        DeprecationWarning,
        stacklevel=2,
    )
    return run_provenance(weights, network, options, about, device)
