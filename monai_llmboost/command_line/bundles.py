# SPDX-License-Identifier: Apache-2.0
"""Commands for bundles: bundle (copies a bundle), run, cost."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from monai_llmboost.arguments import is_whole
from monai_llmboost.bundle import (
    Option,
    bundle_path,
    check_job_effect,
    check_options,
    copy_bundle,
    job_configs,
    job_files,
    merged,
    parsed,
    root_cause,
    run_bundle,
    split_network,
    value_at,
)
from monai_llmboost.bundle.find import arms_of
from monai_llmboost.bundle.job import BATCHES, COST_KEYS, check_keys
from monai_llmboost.bundle.study_settings import StudySettings
from monai_llmboost.bundle.trained_copy import copy_trained
from monai_llmboost.command_line.options import DEFAULT_BUNDLE, Bundle, Network, options_of_bundle, split_options
from monai_llmboost.command_line.scan_plan import Data, plan_scans

Overlay = Annotated[
    list[str] | None,
    typer.Option(
        help="Another config of the bundle, applied last, such as published/network; or boost, which places a booster "
        "in the network of any bundle."
    ),
]


def bundle(
    to: Annotated[Path, typer.Option(help="The folder to create; it must not exist yet.")],
    name: Annotated[str, typer.Argument(help="Name of a bundle of this package, or a folder.")] = DEFAULT_BUNDLE,
    trained: Annotated[
        bool,
        typer.Option(
            "--trained",
            help="NAME is a folder with a trained network: copy that too, with its options written into "
            "inference.json, for MONAI Label, MONAI Deploy and MONAI's own commands.",
        ),
    ] = False,
    named: Annotated[str | None, typer.Option("--name", hidden=True, help="An earlier way to give the name.")] = None,
) -> None:
    """Copy a bundle out of the package, to run and change it; or a trained one, for other tools."""
    name = named or name
    if trained:
        for difference in copy_trained(name, to):
            typer.echo(f"warning: {difference}", err=True)
        typer.echo(f"{to}: copied with its trained network")
        return
    copy_bundle(name, to)
    # MONAI's own command line reads 1e3 as a number and -x as an option.
    is_word = parsed(str(to)) == str(to) and not str(to).startswith(("-", "~"))
    place = shlex.quote(str(to) if is_word else f"./{to}")
    command = f"python -m monai.bundle run --config_file {place}/configs/train.json --bundle_root {place}"
    if set(str(to)) & {"#", "$", "@", "%", ","}:  # special characters on MONAI's own command line
        command = f"monai-llmboost run train --bundle {place}"
    typer.echo(f"{to}: copied; run it with {command}")


def run(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="train, evaluate or inference.")],
    arm: Annotated[
        str | None,
        typer.Option(
            help="none, mlp, random, pretrained, pretrained-trained, lora (or of --overlay); default: that of --block."
        ),
    ] = None,
    network: Network = None,
    bundle: Bundle = DEFAULT_BUNDLE,
    overlay: Overlay = None,
) -> None:
    """Run a job of a bundle: `python -m monai.bundle run` with its configs, and clear error messages.

    Further options are the bundle's own; they are listed below. Output goes to
    models/ and eval/ in the bundle's folder (for a bundle of this package: in
    the working directory).
    """
    chosen = {} if network is None else {Option.NETWORK: network}
    named, expression = split_network(bundle_path(bundle), chosen)
    configs = job_files(bundle, job, arm, named, split_options(context.args)[0], overlay or ()).configs
    options = options_of_bundle(context.args, configs) | expression
    logging_file = options.pop("logging_file", None)  # an argument of MONAI that check_options does not know
    check_options(configs, options)  # before they are passed as keyword arguments of run_bundle
    run_bundle(bundle, job, arm, logging_file, overlay or (), **{**options, **chosen})


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
    folder = bundle_path(bundle)
    chosen = {} if network is None else {Option.NETWORK: network}
    named, expression = split_network(folder, chosen)
    overlays = overlay or []
    own = job_configs(folder, "train", network=named, overlays=overlays)
    content = merged(own)
    # Other bundles may have a number at BATCHES instead of the key batch_size.
    keys = [key for key in COST_KEYS if key != Option.BATCH_SIZE or not is_whole(value_at(content, BATCHES))]
    check_keys(content, keys, "cost", bundle)
    options = options_of_bundle(context.args, own) | expression
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

    from rich.console import Console

    from monai_llmboost.studies import cost_of_arms, cost_table  # takes seconds; mistakes are reported without it

    try:
        result = cost_of_arms(arms, options, rounds)
    except RuntimeError as error:
        raise root_cause(error) from error
    Console().print(cost_table(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")


def _measured_arms(known: list[str], boosted: str) -> list[str | None]:
    """Return the names of the arms to measure; ``None`` is a bundle without arms."""
    usual: list[str | None] = [arm for arm in ("none", "mlp", boosted) if arm in known]
    return usual or [*known] or [None]
