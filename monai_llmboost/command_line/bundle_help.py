# SPDX-License-Identifier: Apache-2.0
"""The options of a bundle in the `--help` of a command: read from its configs, without MONAI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

# Jobs that a command runs.
JOBS_OF = {
    "run": ("train", "evaluate", "inference"),
    "train": ("train",),
    "distil": ("train",),
    "evaluate": ("train", "evaluate"),
    "predict": ("inference",),
    "study": ("train", "evaluate"),
    "cost": ("train",),
}
# The bundle of commands that have none by default.
DEFAULTS = dict.fromkeys(("train", "distil", "evaluate"), "scans_classification")
# Keys that a command sets with its own options; each has the option --network.
TAKEN = {
    "predict": (
        "dataset_dir", "output_dir", "device", "batch_size", "num_workers", "saliency", "report", "view",
        "dicom", "salt", "follow_links", "overwrite", "only", "columns",
    ),
    "study": (
        "dataset", "bundle_root", "seed", "block_seed", "folds", "fold", "learning_rate", "resume", "split", "weights",
        "ckpt_dir", "output_dir",
    ),
}  # fmt: skip


def print_bundle_options(verb: str, words: Sequence[str], default_bundle: str) -> None:
    """Print the options of the bundle and job that the words of a command line name."""
    from monai_llmboost.bundle import bundle_path
    from monai_llmboost.bundle.describe import bundle_options

    default_bundle = DEFAULTS.get(verb, default_bundle)
    name = _value_of("--bundle", words) or default_bundle
    if verb in DEFAULTS and not Path(name).exists():  # a folder that the command will create
        name = default_bundle
    named = tuple(word for word in words[:1] if word in JOBS_OF["run"])
    jobs = named if verb == "run" and named else JOBS_OF[verb]
    console = Console(soft_wrap=False)
    try:
        options = bundle_options(bundle_path(name), jobs)
    except (ValueError, OSError) as error:
        console.print(f"The options of the bundle cannot be listed: {error}", markup=False, highlight=False)
        return
    table = Table(
        "option", "default", *(["jobs"] if len(jobs) > 1 else []), "meaning",
        title=f"Options of the bundle {name}", title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    table.columns[0].no_wrap = True
    table.columns[-1].overflow = "fold"
    for option in options:
        if option.name in (*TAKEN.get(verb, ()), "network"):
            continue
        where = "all" if option.jobs == tuple(jobs) else ", ".join(option.jobs)
        cells = [f"--{option.name}", option.default, *([where] if len(jobs) > 1 else []), option.meaning]
        table.add_row(*(cell.replace("[", "\\[") for cell in cells))
    console.print(table)
    console.print(
        "Nested keys are options too, such as --network_def#pool mean. Text is used unchanged, other values are read "
        "as Python literals. For keys that take no text, a value that starts with $ is a Python expression.",
        markup=False, highlight=False,
    )  # fmt: skip


def _value_of(option: str, words: Sequence[str]) -> str:
    for word, following in zip(words, [*words[1:], ""]):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return ""
