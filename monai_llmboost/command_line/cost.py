# SPDX-License-Identifier: Apache-2.0
"""The command cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from monai_llmboost.arguments import is_whole
from monai_llmboost.bundle import (
    Option,
    bundle_path,
    check_job_effect,
    check_options,
    job_configs,
    job_files,
    merged,
    root_cause,
    split_network,
    value_at,
)
from monai_llmboost.bundle.contract import MODEL_RECORD, MODELS
from monai_llmboost.bundle.find import arms_of
from monai_llmboost.bundle.job import BATCHES, COST_KEYS, check_keys
from monai_llmboost.bundle.study_settings import StudySettings
from monai_llmboost.bundle.trained_options import trained_places
from monai_llmboost.command_line.bundles import Overlay
from monai_llmboost.command_line.options import DEFAULT_BUNDLE, Bundle, Network, options_of_bundle, split_options
from monai_llmboost.command_line.scan_plan import Data, plan_scans

# Name of a trained network next to its teacher.
STUDENT = "student"


def cost(
    context: typer.Context,
    bundle: Bundle = DEFAULT_BUNDLE,
    data: Data = None,
    network: Network = None,
    donor: Annotated[
        Path | None,
        typer.Option(
            help="config.json of a natively supported model, or its folder: measure a random block of its size."
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of a trained teacher, as of distil, to measure next to the students; several of them, each "
            "with its own --teacher, are an ensemble. If --bundle has a trained student, that is measured."
        ),
    ] = None,
    overlay: Overlay = None,
    rounds: Annotated[int, typer.Option(help="Rounds of timing; medians are shown.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers into this file.")] = None,
) -> None:
    """Measure each arm on this machine: weights, operations, memory and time per volume, before you train.

    All further options are the bundle's own: --block FILE, --size N,
    --batch_size N, --hidden_size N ... Nothing is trained and no data are read.
    """
    if data is not None:
        plan_scans(data, bundle, context.args, overlay or ())
    if teacher and _is_trained(Path(bundle)):
        if donor is not None:
            raise ValueError(
                f"--donor is for a network before its training, and {bundle} has a trained one: leave it out"
            )
        arms, options = _trained_student(Path(bundle), network, overlay or [], context.args)
    else:
        arms, options = _arms(bundle, network, donor, overlay or [], context.args)

    from rich.console import Console

    from monai_llmboost.studies import cost_of_arms, cost_table  # takes seconds; mistakes are reported without it

    try:
        result = cost_of_arms(arms, {**options, Option.TEACHER: teacher}, rounds)
    except RuntimeError as error:
        raise root_cause(error) from error
    Console().print(cost_table(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")


def _arms(
    bundle: str, network: str | None, donor: Path | None, overlays: list[str], words: list[str]
) -> tuple[dict[str, list[Path]], dict[str, Any]]:
    """Return the config files of the arms of a bundle, and the options of its training."""
    folder = bundle_path(bundle)
    chosen = {} if network is None else {Option.NETWORK: network}
    named, expression = split_network(folder, chosen)
    own = job_configs(folder, "train", network=named, overlays=overlays)
    content = merged(own)
    # Other bundles may have a number at BATCHES instead of the key batch_size.
    keys = [key for key in COST_KEYS if key != Option.BATCH_SIZE or not is_whole(value_at(content, BATCHES))]
    check_keys(content, keys, "cost", bundle)
    options = options_of_bundle(words, own) | expression
    if donor is not None and Option.BLOCK in options:
        raise ValueError("--block and --donor exclude one another: a donor's config takes the place of its block")
    boosted = "random" if donor is not None or options.get(Option.BLOCK) == "random" else "pretrained"
    names = _measured_arms(arms_of(folder, overlays), boosted)
    arms = {arm or folder.name: job_configs(folder, "train", arm, named, overlays) for arm in names}
    for configs in arms.values():
        check_options(configs, {**options, Option.BLOCK: "random"} if donor else options)
    check_job_effect(bundle, "train", names, {**options, **chosen}, overlays)
    dataset = options.get(Option.DATASET, content.get(Option.DATASET))
    StudySettings.of(folder).check_used(options, [str(dataset)])

    if donor is not None:
        from monai_llmboost.llm.paths import find_config

        find_config(donor)
        from monai_llmboost.llm import read_geometry  # takes seconds; a wrong path is reported without it

        options[Option.BLOCK] = read_geometry(donor)
    return arms, options


def _is_trained(folder: Path) -> bool:
    return any((folder / place / MODEL_RECORD).is_file() for place in (".", MODELS))


def _trained_student(
    place: Path, network: str | None, overlays: list[str], words: list[str]
) -> tuple[dict[str, list[Path]], dict[str, Any]]:
    """Return the config files of a trained network, and its options."""
    folder, ckpt_dir = trained_places(place)
    chosen = {} if network is None else {Option.NETWORK: network}
    named, expression = split_network(folder, chosen)
    given = {Option.CKPT_DIR: str(ckpt_dir), **split_options(words)[0]}
    files = job_files(folder, "evaluate", None, named, given, overlays)
    if files.trained is None:
        raise FileNotFoundError(
            f"there is no trained network in {given[Option.CKPT_DIR]}: give the --ckpt_dir of the training, or none"
        )
    options = {**given, **options_of_bundle(words, files.configs), **expression}
    check_options(files.configs, options)
    check_job_effect(folder, "evaluate", [None], {**options, **chosen}, overlays)
    return {STUDENT: files.configs}, files.with_options_of_training(options)


def _measured_arms(known: list[str], boosted: str) -> list[str | None]:
    """Return the names of the arms to measure; ``None`` is a bundle without arms."""
    usual: list[str | None] = [arm for arm in ("none", "mlp", boosted) if arm in known]
    return usual or [*known] or [None]
