# SPDX-License-Identifier: Apache-2.0
"""The command line `monai-llmboost`: one thin call per verb."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from fire.parser import DefaultParseValue

from monai_llmboost import __version__
from monai_llmboost.bundle import copy_bundle, run_bundle

# As JSON spells them; MONAI's own command would take them for text.
WORDS = {"true": True, "false": False, "null": None}
DEFAULT_BUNDLE = "medmnist3d_rllm_classification"

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
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
    layer: Annotated[
        str, typer.Option(help="Which layers: -1 (the last), 3,5 (two), 4:8 (four), -2: (the last two).")
    ] = "-1",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the file if it is there.")] = False,
) -> None:
    """Cut layers out of a language model and write them as a block file (for --block of a bundle).

    Of a model on the hub only the bytes of these layers are fetched.
    If the file is there already and holds them, nothing is done.
    `monai-llmboost donors` lists models to start with.
    """
    from monai_llmboost.llm import extract_block, read_header

    written = extract_block(model, out, layer, revision, overwrite)
    header = read_header(out)
    layers = json.loads(header["layers"])
    typer.echo(
        f"{out}: {'layer' if len(layers) == 1 else 'layers'} {', '.join(map(str, layers))} of {header['num_layers']} "
        f"of {header['donor']} (counted from 0), width {header['width']}, {int(header['num_weights']):,} weights, "
        f"{out.stat().st_size / 1e6:.1f} MB, fingerprint {header['fingerprint'][:12]}"
        + ("" if written else " (was there already; --overwrite extracts it anew)")
    )


@app.command()
def info(
    file: Annotated[str, typer.Argument(help="A block file, or the word embedded for the one in this package.")],
) -> None:
    """What a block file holds, where it came from, and whether it passes its self-test (exit status 1 if not)."""
    from rich.console import Console

    from monai_llmboost.llm.info import block_table

    Console().print(block_table(file))


@app.command()
def donors() -> None:
    """Language models to take a layer from: open ones of several sizes, and the classics behind a gate."""
    from rich.console import Console

    from monai_llmboost.llm.info import donors_table

    Console().print(donors_table())


@app.command()
def bundle(
    to: Annotated[Path, typer.Option(help="The folder to make; it must not be there yet.")],
    name: Annotated[str, typer.Option(help="Name of a bundle that comes with this package.")] = DEFAULT_BUNDLE,
) -> None:
    """Copy a bundle out of the package, to run it and to change it."""
    copy_bundle(name, to)
    typer.echo(
        f"{to}: copied; run it with python -m monai.bundle run --config_file {to}/configs/train.json --bundle_root {to}"
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="train, evaluate or inference.")],
    arm: Annotated[
        str | None, typer.Option(help="none, mlp, random or pretrained; not given: as --block says.")
    ] = None,
    bundle: Annotated[
        str, typer.Option(help="A bundle's folder, or the name of one in this package.")
    ] = DEFAULT_BUNDLE,
) -> None:
    """Run a job of a bundle: `python -m monai.bundle run` with its configs, and a clear sentence when it fails.

    All further options are the bundle's own: --dataset NAME, --dataset_dir DIR,
    --block FILE, --epochs N, --ckpt_dir DIR, --output_dir DIR, --resume True ...
    (its docs/README.md lists them). Unless these say otherwise it writes into the
    folders models and eval, of the bundle's folder or, for a bundle of this
    package, of the working directory.
    """
    run_bundle(bundle, job, arm, **_options_of_bundle(context.args))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def cost(
    context: typer.Context,
    bundle: Annotated[
        str, typer.Option(help="A bundle's folder, or the name of one in this package.")
    ] = DEFAULT_BUNDLE,
    donor: Annotated[
        Path | None,
        typer.Option(help="config.json of a natively run model, or its folder: a random block of its size."),
    ] = None,
    overlay: Annotated[
        list[str] | None, typer.Option(help="A config of the bundle to put on top, such as published/network.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of timing; medians are shown.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers into this file.")] = None,
) -> None:
    """What each arm costs here: weights, operations, memory and time per volume, before you train.

    All further options are the bundle's own: --block FILE, --size N,
    --batch_size N, --hidden_size N ... Nothing is trained and no data are read.
    """
    from monai_llmboost.bundle import bundle_path, check_options, job_configs, root_cause
    from monai_llmboost.llm import read_geometry

    options = _options_of_bundle(context.args)
    if donor is not None and "block" in options:
        raise ValueError("expected --block or --donor, got both: a donor's config stands in for its block")
    last_arm = "random" if donor is not None or options.get("block") == "random" else "pretrained"
    folder = bundle_path(bundle)
    extra = [folder / "configs" / f"{name.removesuffix('.json')}.json" for name in overlay or []]
    for file in extra:
        if not file.is_file():
            raise FileNotFoundError(f"expected an overlay of the bundle, found nothing at {file}")
    arms = {arm: [*job_configs(folder, "train", arm), *extra] for arm in ("none", "mlp", last_arm)}
    check_options(arms[last_arm], options)
    if donor is not None:
        options["block"] = read_geometry(donor)

    from rich.console import Console

    from monai_llmboost.studies import cost_of_arms, cost_table  # takes seconds to import; a mistake should not

    try:
        result = cost_of_arms(arms, options, rounds)
    except RuntimeError as error:
        raise root_cause(error) from error
    Console().print(cost_table(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")


def _options_of_bundle(words: list[str]) -> dict[str, Any]:
    """`--key value` and `--key=value` pairs; values are Python literals where they are some, as MONAI reads them."""
    options, rest = {}, list(words)
    while rest:
        key, equals, value = rest.pop(0).partition("=")
        if not key.startswith("--") or (not equals and not rest):
            raise ValueError(f"expected options of the bundle as --key value, got {key!r}")
        word = value if equals else rest.pop(0)
        options[key.removeprefix("--")] = WORDS[word] if word in WORDS else DefaultParseValue(word)
    return options


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="The folder to make; it must not be there yet.")] = Path("llmboost-demo"),
    epochs: Annotated[int, typer.Option(help="Epochs of each training run.")] = 6,
) -> None:
    """Train two arms on phantoms made by code, evaluate them, predict NIfTI files, print the tables."""
    from monai_llmboost.demo import run_demo

    run_demo(output, epochs)


def main() -> None:
    """Run the command line; an error is one sentence and exit status 1, with MONAI_LLMBOOST_DEBUG=1 a traceback."""
    try:
        app()
    except (ValueError, OSError, TypeError, RuntimeError, ImportError) as error:
        if os.environ.get("MONAI_LLMBOOST_DEBUG"):
            raise
        typer.echo(f"monai-llmboost: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
