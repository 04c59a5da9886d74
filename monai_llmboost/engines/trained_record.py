# SPDX-License-Identifier: Apache-2.0
"""The description of a trained network for ``model.json``: block, preprocessing, cases and versions."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from monai_llmboost.artifacts.digests import file_digest
from monai_llmboost.artifacts.signature import KeptText
from monai_llmboost.bundle.contract import MODEL_RECORD, TRAINED
from monai_llmboost.bundle.trained import block_file, trained_config, trained_data, write_record
from monai_llmboost.engines.checkpoint_files import BEST
from monai_llmboost.networks.class_names import class_names_of, label_values_of
from monai_llmboost.networks.wrappers import unwrap

logger = logging.getLogger("monai_llmboost")
PACKAGES = ("monai-llmboost", "monai", "torch", "numpy", "nibabel", "SimpleITK", "pydicom")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the installed versions of packages; those that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_block(network: nn.Module) -> dict[str, str] | None:
    """Return the text of the signature and the fingerprint of the frozen block in a network; ``None`` without one."""
    parts = (part for part in unwrap(network).modules() if hasattr(part, "signature"))
    blocks = (part for part in parts if getattr(part, "fingerprint", None) is not None)
    block: Any = next(blocks, None)
    return None if block is None else {"block": block.signature.text, "fingerprint": block.fingerprint}


class TrainedRecord:
    """Writes ``model.json`` when ``model.pt`` has changed.

    Nothing is written for code without a config, or (with a warning) for a config whose network cannot be described as
    text.

    Args:
        folder: folder of the checkpoints.
        config: the merged config of the training.

    Example:
        >>> TrainedRecord(Path("models"), {}).write(torch.nn.Linear(1, 2), "")  # there is no config: nothing is written
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.file = folder / MODEL_RECORD
        self.config = config
        self.written: str | None = None

    def write(self, network: nn.Module, digest: str | None) -> None:
        """Write the file, unless it has this digest already.

        Args:
            network: the trained network.
            digest: sha256 of ``model.pt``; empty if there is none yet, ``None`` if it is unknown.
        """
        if not self.config or (digest is not None and digest == self.written):
            return
        weights = self.file.with_name(BEST)
        if digest is None:
            digest = file_digest(weights) if weights.is_file() else ""
        self.written = digest
        names = class_names_of(network)
        try:
            config = trained_config(self.config, names, label_values_of(network))
        except ValueError as error:
            logger.warning(f"no {self.file} is written, because {error}: give evaluation and inference the options")
            return
        metadata = self.config.get("_meta_") or {}
        block = describe_block(network)
        if block is not None and (file := block_file(self.config)) is not None:
            block = {**block, "file": str(file)}
        about = {
            "bundle": metadata.get("name"),
            "bundle_version": metadata.get("version"),
            **self.config.get(TRAINED, {}),
            "class_names": names,
            "signature": getattr(getattr(network, "signature", None), "text", type(network).__name__),
            "block": block,
            "preprocessing": _text(network, "preprocessing").splitlines(),
            "training_cases": _text(network, "training_cases"),
            "data": {key: value for key, value in trained_data(self.config).items() if key not in config},
            "weights_sha256": digest,
            "versions": versions(),
        }
        write_record(self.file, about, config)


def _text(network: nn.Module, name: str) -> str:
    kept = getattr(unwrap(network), name, None)
    return kept.text if isinstance(kept, KeptText) else ""
