# SPDX-License-Identifier: Apache-2.0
"""The command line `monai-llmboost`: one thin call per verb."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from monai_llmboost import __version__, bundle_path

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A frozen block of a language model as a booster for MONAI networks on 3D medical images.",
)


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


@app.command()
def extract(
    model: Annotated[str, typer.Argument(help="Hugging Face folder or hub id, or folder with consolidated.*.pth.")],
    out: Annotated[Path, typer.Option(help="The block file to write, ending in .safetensors.")],
    layer: Annotated[int, typer.Option(help="Index of the layer; negative counts from the end.")] = -1,
    revision: Annotated[Optional[str], typer.Option(help="Branch, tag or commit of a hub id.")] = None,  # noqa: UP045
    overwrite: Annotated[bool, typer.Option(help="Replace the file if it is there.")] = False,
) -> None:
    """Cut one layer out of a language model and write it as a block file (for --block of a bundle)."""
    from monai_llmboost.llm import extract as extract_layer
    from monai_llmboost.llm import read_header

    donor = extract_layer(model, out, layer, revision, overwrite)
    number = sum(tensor.numel() for tensor in donor.tensors.values())
    typer.echo(
        f"{out}: layer {donor.layer} of {donor.num_layers} of {donor.donor}, width {donor.geometry.width}, "
        f"{number:,} weights, {out.stat().st_size / 1e6:.1f} MB, fingerprint {read_header(out)['fingerprint'][:12]}"
    )


@app.command()
def bundle(
    name: Annotated[str, typer.Argument(help="Name of a bundle that comes with this package.")],
    to: Annotated[Path, typer.Option(help="The folder to make; it must not be there yet.")],
) -> None:
    """Copy a bundle out of the package, to run it and to change it."""
    source = bundle_path(name)
    if to.exists():
        raise FileExistsError(f"{to} is there already: give another folder with --to, or remove it")
    shutil.copytree(source, to, ignore=shutil.ignore_patterns("models", "eval", "__pycache__"))
    typer.echo(f"{to}: copied; run it with python -m monai.bundle run --config_file {to / 'configs' / 'train.json'} --bundle_root {to}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="The folder to make; it must not be there yet.")] = Path("llmboost-demo"),
    epochs: Annotated[int, typer.Option(help="Epochs of each training run.")] = 8,
) -> None:
    """Train two arms on phantoms made by code, evaluate them, predict NIfTI files, print the tables."""
    from monai_llmboost.demo import run_demo

    run_demo(output, epochs)


def main() -> None:
    """Run the command line; an error that a user can mend is one sentence, and exit status 1."""
    try:
        app()
    except (ValueError, OSError, TypeError) as error:
        typer.echo(f"monai-llmboost: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
