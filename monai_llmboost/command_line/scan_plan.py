# SPDX-License-Identifier: Apache-2.0
"""The option --data of commands that train: labelled scans, which are inspected and planned first."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from monai_llmboost.bundle import Option, bundle_path, merged, typed_values
from monai_llmboost.bundle.content import read_config
from monai_llmboost.bundle.contract import CONFIGS, METADATA, PLAN, TRAIN_CONFIG
from monai_llmboost.bundle.options import check_early
from monai_llmboost.bundle.words import plain_text
from monai_llmboost.command_line.options import DEFAULT_BUNDLE, split_options

# Exit status for mistakes in the labelled scans.
WRONG_DATA = 1
Data = Annotated[
    str | None,
    typer.Option(
        help="Labelled scans: a CSV file, a JSON datalist, a folder with one for each class, or one with imagesTr and "
        "labelsTr. They are inspected, and --bundle FOLDER becomes a copy of the bundle scans_classification, or of "
        "scans_segmentation for label maps, if it does not exist."
    ),
]


def plan_scans(data: str, bundle: str, words: list[str], overlays: Iterable[str] = ()) -> None:
    """Inspect labelled scans and write the plan into a bundle's folder, unless it has a plan of the same list.

    Args:
        data: the list.
        bundle: the folder.
        words: the options of the bundle, as :class:`BundleCommand` leaves them; those that are lines of a plan are
            taken instead of derived ones.
        overlays: names of overlays, whose keys are options too.

    Raises:
        ValueError: no folder was given.
        SystemExit: the list has errors, which are printed.
    """
    if bundle == DEFAULT_BUNDLE:
        raise ValueError("--data needs a folder to train in: give --bundle FOLDER, which is made if it does not exist")
    texts = {key.replace("::", "#"): text for key, text in split_options(words)[0].items()}
    folder = Path(bundle)
    config = folder / CONFIGS / TRAIN_CONFIG
    config = config if config.is_file() else _usual_config(data, texts)
    options = typed_values(merged([config]), texts)
    check_early(config.parent, options, overlays)
    from monai_llmboost.data.labelled import Columns
    from monai_llmboost.data.labelled.lists.read import check_list

    check_list(data, Columns.of(options))  # takes no time; what follows imports for seconds
    from monai_llmboost.inspection import LINES, inspect_list, plan_is_current

    if (folder / CONFIGS / METADATA).is_file() and plan_is_current(folder / CONFIGS / PLAN, data, options):
        typer.echo(f"plan: {folder / CONFIGS / PLAN}")
        return
    from monai_llmboost.command_line.inspect import show

    found = inspect_list(data, bundle=folder, given={key: options[key] for key in LINES if key in options})
    show(found)
    if found.findings.errors:
        sys.exit(WRONG_DATA)


def _usual_config(data: str, texts: Mapping[str, str]) -> Path:
    """Return the config of the bundle of this package for the labels of a list."""
    from monai_llmboost.data.labelled import Columns, is_for_segmentation
    from monai_llmboost.data.labelled.case import BUNDLES

    return bundle_path(BUNDLES[is_for_segmentation(data, Columns.of(texts))]) / CONFIGS / TRAIN_CONFIG


def list_is_planned(bundle: Path) -> bool:
    """Return whether the list of a bundle's plan is as it was when it was inspected; True without a plan."""
    file = bundle / CONFIGS / PLAN
    if not file.is_file() or not isinstance(data := read_config(file).get(Option.DATA), str):
        return True
    path = Path(plain_text(data))
    if not path.is_file():  # finding the scans of a folder may take long, and a training reports a missing list
        return True
    from monai_llmboost.inspection import plan_is_current

    return plan_is_current(file, path, {})
