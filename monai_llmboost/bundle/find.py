# SPDX-License-Identifier: Apache-2.0
"""Find and copy bundles; the config files of a job."""

from __future__ import annotations

import shutil
from pathlib import Path

from monai_llmboost.arguments import check_choice
from monai_llmboost.bundle.contract import (
    ARMS,
    CONFIGS,
    EVAL,
    EVALUATE_CONFIG,
    INFERENCE_CONFIG,
    METADATA,
    MODELS,
    TRAIN_CONFIG,
)

# Configs of a job, in the order in which MONAI merges them; the arm's overlay follows the first.
JOBS = {"train": [TRAIN_CONFIG], "evaluate": [TRAIN_CONFIG, EVALUATE_CONFIG], "inference": [INFERENCE_CONFIG]}


def bundle_path(name: str | Path) -> Path:
    """Return the folder of a bundle.

    Args:
        name: a folder, which is returned as it is, or the name of a bundle that comes with this package.

    Raises:
        FileNotFoundError: there is no such bundle; the message lists those of the package.
    """
    package = Path(__file__).parents[1]
    # In an installed wheel they lie inside the package, in a checkout (and so an editable install) next to it.
    places = (package / "bundles", package.parent / "bundles")
    for place in (Path(), *places):
        if (place / name / CONFIGS / METADATA).is_file():
            return place / name
    names = sorted(file.parts[-3] for place in places for file in place.glob(f"*/{CONFIGS}/{METADATA}"))
    raise FileNotFoundError(
        f"there is no bundle {str(name)!r}: give a bundle's folder, or one of {', '.join(names) or '(none installed)'}"
    )


def copy_bundle(name: str | Path, to: Path) -> None:
    """Copy a bundle without what was trained in it.

    Raises:
        FileExistsError: ``to`` already exists.
    """
    source = bundle_path(name)
    if to.exists():
        raise FileExistsError(f"{to} already exists: give another folder, or remove it")
    shutil.copytree(source, to, ignore=shutil.ignore_patterns(MODELS, EVAL, "__pycache__"))


def job_configs(bundle: Path, job: str, arm: str | None = None) -> list[Path]:
    """Return the config files of a job, with the overlay of an arm.

    Raises:
        ValueError: an unknown job or arm.
    """
    check_choice("job", job, JOBS)
    first, *rest = JOBS[job]
    overlays = []
    if arm is not None:
        check_choice("arm", arm, arms_of(bundle))
        overlays = [f"{ARMS}/{arm}.json"]
    return [bundle / CONFIGS / name for name in [first, *overlays, *rest]]


def arms_of(bundle: Path) -> list[str]:
    """Return the names of the arms of a bundle."""
    return sorted(file.stem for file in (bundle / CONFIGS / ARMS).glob("*.json"))
