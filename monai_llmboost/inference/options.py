# SPDX-License-Identifier: Apache-2.0
"""Checks of the options of a prediction, before anything that takes time."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_llmboost.bundle import Option
from monai_llmboost.bundle.contract import MODELS, USUAL_CKPT_DIR
from monai_llmboost.inference.identifiers import parse_columns

if TYPE_CHECKING:
    import torch

DEVICES = re.compile(r"cpu|cuda(:\d+)?")


def check_together(options: Mapping[str, Any]) -> None:
    """Refuse options that contradict each other."""
    salt = options.get(Option.SALT) is not None
    if salt and options.get(Option.DICOM):
        raise ValueError(
            "--salt hides names, and --dicom writes objects that belong to a patient: leave out one of them"
        )
    if salt and options.get(Option.COLUMNS):
        raise ValueError("--salt hides names, and --columns identify a patient: leave out one of them")
    parse_columns(options.get(Option.COLUMNS))
    if options.get(Option.VIEW) and options.get(Option.REPORT) is False:
        raise ValueError("--view is a part of the report, and --no-report writes none: leave out one of them")


def check_places(output: Path, options: Mapping[str, Any]) -> None:
    """Check that the output may be a folder, and that there is something at each input."""
    existing = next((path for path in (output, *output.parents) if path.exists()), output)
    if existing.exists() and not existing.is_dir():
        raise ValueError(f"--output must be a folder, and {existing} is a file: give another")
    given = options.get(Option.DATASET_DIR, [])
    for word in [given] if isinstance(given, str) else given:
        path = Path(word).expanduser()
        if not path.exists() and not any(character in str(word) for character in "*?["):
            raise FileNotFoundError(f"there is nothing at {word}: correct the path of the scans")


def check_weights(arguments: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Check that there are weights, where the bundle looks for them as ours do: before the scans are searched."""
    config_file = Path(arguments["config_file"][0])
    config = json.loads(config_file.read_text())
    if config.get(Option.CKPT_DIR) != USUAL_CKPT_DIR:
        return
    from monai_llmboost.engines.checkpoint_files import WEIGHTS

    root = config_file.parents[1] if Option.BUNDLE_ROOT in arguments else Path()
    folder = Path(options.get(Option.CKPT_DIR) or Path(options.get(Option.BUNDLE_ROOT, root)) / MODELS)
    file = folder / WEIGHTS.get(options.get(Option.WEIGHTS) or config.get(Option.WEIGHTS, "best"), WEIGHTS["best"])
    if not file.is_file():
        raise FileNotFoundError(f"there are no trained weights at {file}: train first, or give --ckpt_dir")


def parse_device(name: str) -> torch.device:
    """Return the torch device of a name such as ``"cpu"`` or ``"cuda:1"``.

    Raises:
        ValueError: an unknown name, or a device that is not here.
    """
    if not DEVICES.fullmatch(name):
        raise ValueError(f"unknown --device {name!r}; choose from auto, cpu, cuda, cuda:1 ...")
    import torch

    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"--device {name!r} is not here, there are {count} GPUs: try auto")
    return device
