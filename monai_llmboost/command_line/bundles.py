# SPDX-License-Identifier: Apache-2.0
"""Commands for bundles: bundle (copies a bundle) and run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from monai_llmboost.bundle import (
    Option,
    bundle_path,
    check_options,
    copy_bundle,
    job_files,
    parsed,
    run_bundle,
    split_network,
)
from monai_llmboost.bundle.trained_copy import copy_trained
from monai_llmboost.command_line.options import DEFAULT_BUNDLE, Bundle, Network, options_of_bundle, split_options

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
