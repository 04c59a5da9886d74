# SPDX-License-Identifier: Apache-2.0
"""Functions to find and copy bundles, and to list the config files of a job."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monai_llmboost.arguments import check_choice
from monai_llmboost.bundle.contract import (
    ARMS,
    CONFIGS,
    EVAL,
    EVALUATE_CONFIG,
    INFERENCE_CONFIG,
    METADATA,
    MODELS,
    NETWORKS,
    OVERLAYS,
    PLAN,
    TRAIN_CONFIG,
    Option,
)
from monai_llmboost.bundle.words import is_computed

# Configs of a job in the order in which MONAI merges them; the overlays of a network and an arm follow the first.
JOBS = {"train": [TRAIN_CONFIG], "evaluate": [TRAIN_CONFIG, EVALUATE_CONFIG], "inference": [INFERENCE_CONFIG]}

_PACKAGE = Path(__file__).parents[1]
# An installed wheel has the bundles inside the package, a checkout (and so an editable install) next to it.
PLACES = (_PACKAGE / "bundles", _PACKAGE.parent / "bundles")


def bundle_path(name: str | Path) -> Path:
    """Return the folder of a bundle.

    Args:
        name: a folder, which is returned unchanged, or the name of a bundle in this package.

    Raises:
        FileNotFoundError: there is no such bundle; the message lists the bundles of the package.
    """
    for folder in (Path(name), *(place / name for place in PLACES)):
        if (folder / CONFIGS / METADATA).is_file():
            return folder
    names = sorted(folder.name for folder in package_bundles())
    raise FileNotFoundError(
        f"there is no bundle {str(name)!r}: give a bundle's folder, or one of {', '.join(names) or '(none installed)'}"
    )


def package_bundles() -> list[Path]:
    """Return the folders of the bundles in this package."""
    return sorted(file.parents[1] for place in PLACES for file in place.glob(f"*/{CONFIGS}/{METADATA}"))


def bundle_of_record(name: Any, folder: Path) -> Path:
    """Return the bundle in this package with the name that the ``model.json`` of a folder contains.

    Raises:
        FileNotFoundError: there is none.
    """
    for bundle in package_bundles():
        if json.loads((bundle / CONFIGS / METADATA).read_text(encoding="utf-8")).get("name") == name:
            return bundle
    raise FileNotFoundError(
        f"{folder} was trained with the bundle {name!r}, which is not in this package: give the bundle's folder, and "
        f"ckpt_dir={str(folder)!r}"
    )


def overlay_file(bundle: Path, name: str) -> Path:
    """Return the file of an overlay, in the bundle's ``configs`` or among the overlays of this package.

    Args:
        bundle: folder of the bundle.
        name: such as ``"published/network"`` or, for any bundle, ``"boost"``; with ``.json`` or without.

    Raises:
        FileNotFoundError: there is no such overlay.
    """
    own = bundle / CONFIGS / f"{name.removesuffix('.json')}.json"
    shared = [place / OVERLAYS for place in PLACES]
    for file in (
        own,
        *(folder / own.relative_to(bundle / CONFIGS) for folder in shared if not Path(name).is_absolute()),
    ):
        if file.is_file():
            return file
    names = ", ".join(sorted(file.stem for folder in shared for file in folder.glob("*.json")))
    raise FileNotFoundError(
        f"the bundle has no such overlay, there is nothing at {own}: correct --overlay, or choose one for any bundle "
        f"({names})"
    )


def copy_bundle(name: str | Path, to: Path) -> None:
    """Copy a bundle without its trained weights and results.

    Raises:
        FileExistsError: ``to`` already exists.
    """
    source = bundle_path(name)
    if to.exists():
        raise FileExistsError(f"{to} already exists: give another folder, or remove it")
    shutil.copytree(source, to, ignore=shutil.ignore_patterns(MODELS, EVAL, "__pycache__"))


def job_configs(
    bundle: Path, job: str, arm: str | None = None, network: str | None = None, overlays: Iterable[str] = ()
) -> list[Path]:
    """Return the config files of a job, with the overlays of another network and of an arm, and the bundle's plan.

    Args:
        bundle: folder of the bundle.
        job: ``"train"``, ``"evaluate"`` or ``"inference"``.
        arm: name of an arm, of the bundle or of an overlay, see :func:`arms_of`.
        network: name of another network of the bundle.
        overlays: names of further overlays, which are applied last, see :func:`overlay_file`.

    Raises:
        ValueError: an unknown job, arm or network.
        FileNotFoundError: there is no such overlay.
    """
    check_choice("job", job, JOBS)
    first, *rest = JOBS[job]
    early, last = [], [overlay_file(bundle, name) for name in overlays]
    if network is not None:
        _check_network(bundle, network)
        early.append(bundle / CONFIGS / NETWORKS / f"{network}.json")
    if arm is not None:
        files = _arm_files(bundle, last)
        check_choice("arm", arm, files)
        (early if files[arm].parent == bundle / CONFIGS / ARMS else last).append(files[arm])
    plan = [file for file in [bundle / CONFIGS / PLAN] if first == TRAIN_CONFIG and file.is_file()]
    # Before the overlay of another network, whose own options are not those of the planned one.
    return [bundle / CONFIGS / first, *plan, *early, *(bundle / CONFIGS / name for name in rest), *last]


def arms_of(bundle: Path, overlays: Iterable[str] = ()) -> list[str]:
    """Return the names of the arms of a bundle; those of an overlay, in a folder of its name, take their place."""
    return list(_arm_files(bundle, [overlay_file(bundle, name) for name in overlays]))


def _arm_files(bundle: Path, overlays: Iterable[Path]) -> dict[str, Path]:
    """Return the files of the arms by their names."""
    of_overlays = [file for overlay in overlays for file in overlay.with_suffix("").glob("*.json")]
    files = {file.stem: file for file in of_overlays or (bundle / CONFIGS / ARMS).glob("*.json")}
    return {name: files[name] for name in sorted(files)}


def networks_of(bundle: Path) -> list[str]:
    """Return the names of the networks that a bundle has in addition to its own."""
    return sorted(file.stem for file in (bundle / CONFIGS / NETWORKS).glob("*.json"))


def split_network(bundle: Path, options: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the network that the option ``network`` names, and the options without it.

    An expression or a component is no name: it stays among the options, as the value of the bundle's key ``network``.

    Raises:
        ValueError: a name that the bundle does not have.
    """
    rest = dict(options)
    value = rest.get(Option.NETWORK)
    if value is None or is_computed(value) or isinstance(value, Mapping):
        return None, rest
    _check_network(bundle, value)
    del rest[Option.NETWORK]
    return value, rest


def _check_network(bundle: Path, name: Any) -> None:
    names = networks_of(bundle)
    if name not in names:
        known = (
            f"choose from {', '.join(names)}" if names else f"the bundle has no other network in {CONFIGS}/{NETWORKS}"
        )
        raise ValueError(
            f"unknown network {name!r}; {known}, leave it out for the bundle's own, or give an expression for its key "
            f"{Option.NETWORK!r}, such as '$torch.compile(@network_def.to(@device))'"
        )
