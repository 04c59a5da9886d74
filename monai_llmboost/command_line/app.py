# SPDX-License-Identifier: Apache-2.0
"""All commands, in the order of `monai-llmboost --help`, and their common options."""

from __future__ import annotations

import io
import sys
from typing import Annotated, Any

import typer

from monai_llmboost import __version__
from monai_llmboost.command_line.blocks import donors, extract, info
from monai_llmboost.command_line.bundles import bundle, run
from monai_llmboost.command_line.cost import cost
from monai_llmboost.command_line.demo import demo
from monai_llmboost.command_line.distil import distil
from monai_llmboost.command_line.errors import USER_ERRORS, report_error
from monai_llmboost.command_line.inspect import inspect
from monai_llmboost.command_line.options import BundleCommand
from monai_llmboost.command_line.predict import predict
from monai_llmboost.command_line.study import study
from monai_llmboost.command_line.training import evaluate, train

# Settings of commands that also accept the bundle's own options.
WITH_BUNDLE_OPTIONS: dict[str, Any] = {
    "cls": BundleCommand,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="A frozen block of a language model as a booster for MONAI networks on 3D medical images.",
)
app.command()(inspect)
app.command(**WITH_BUNDLE_OPTIONS)(train)
app.command(**WITH_BUNDLE_OPTIONS)(evaluate)
app.command(**WITH_BUNDLE_OPTIONS)(predict)
app.command(**WITH_BUNDLE_OPTIONS)(study)
app.command(**WITH_BUNDLE_OPTIONS)(distil)
app.command(**WITH_BUNDLE_OPTIONS)(cost)
app.command()(bundle)
app.command(**WITH_BUNDLE_OPTIONS)(run)
app.command()(extract)
app.command()(info)
app.command()(donors)
app.command()(demo)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error prints one sentence (with MONAI_LLMBOOST_DEBUG=1 a traceback), exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that the terminal or log cannot encode must not fail
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except USER_ERRORS as error:
        report_error(error)
        sys.exit(1)
