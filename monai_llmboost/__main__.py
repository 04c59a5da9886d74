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
# What is told in one sentence; anything else is a mistake of ours, and a traceback.
MISTAKES = (ValueError, OSError, TypeError, RuntimeError, ImportError)
# What shells give for ctrl-C.
INTERRUPTED = 130
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
        str | None,
        typer.Option(help="none, mlp, random, pretrained, pretrained-trained; not given: as --block says."),
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
def predict(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Option("--input", "-i", help="Folder, file, quoted pattern or list file of scans; may be repeated."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write into; an interrupted run goes on there.")
    ] = None,
    bundle: Annotated[
        str, typer.Option(help="A bundle's folder, or the name of one in this package.")
    ] = DEFAULT_BUNDLE,
    arm: Annotated[str | None, typer.Option(help="none, mlp, random or pretrained, as it was trained.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what was found, and what is refused and why, and stop.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    amp: Annotated[bool | None, typer.Option(help="Mixed precision; on a GPU by default, never on a CPU.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Scans that go through the network at once.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0 reads in this one.")] = 0,
    saliency: Annotated[
        bool, typer.Option("--saliency", help="For each scan, maps of what the network looked at, and pictures.")
    ] = False,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    view: Annotated[
        list[str] | None, typer.Option(help="Case to put into the report's three-plane viewer; may be repeated.")
    ] = None,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="For DICOM scans, also write predictions and maps as DICOM objects.")
    ] = False,
    salt: Annotated[
        str | None, typer.Option(help="A secret word: name cases by salted hashes, and keep no path and no UID.")
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow links to folders, and links out of the input.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, and replace what an earlier run wrote into --output.")
    ] = False,
) -> None:
    """Predict folders of NIfTI and DICOM scans; a scan that cannot be read rightly is refused, with the reason.

    Writes predictions.csv, predictions.json, run.json and report.html. Further
    options are the bundle's own: --ckpt_dir DIR, --block FILE,
    --intensity_range '[-160,240]', --clip_intensities True, --volume K ...

    Exit status: 0 every scan was predicted, 1 some were refused, 2 none was
    predicted. Several GPUs: torchrun --nproc_per_node=2 -m monai_llmboost predict ...
    """
    from monai_llmboost import predict as predicting

    options, more_inputs = _parted(context.args)
    inputs += more_inputs
    try:
        if dry_run:
            sys.exit(predicting.dry_run(inputs, output, follow_links, options.get("volume")))
        if output is None:
            raise ValueError("expected a folder to write into: give --output DIR, or --dry-run to see what is there")
        if device != "auto":
            options["device"] = predicting.device_named(device)
        if amp is not None:
            options["amp"] = amp
        status = predicting.run_predict(
            bundle,
            output,
            arm,
            dataset_dir=inputs,
            batch_size=batch_size,
            num_workers=workers,
            saliency=saliency,
            report=report,
            view=view or None,
            dicom=dicom,
            salt=salt,
            follow_links=follow_links,
            overwrite=overwrite,
            **options,
        )
    except MISTAKES as error:
        _tell(error)
        sys.exit(predicting.SOME_FAILED if isinstance(error, predicting.StoppedEarly) else predicting.NOTHING_DONE)
    except KeyboardInterrupt:
        typer.echo("monai-llmboost: interrupted; what was predicted is kept, the same command goes on", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(status)


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


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def study(
    context: typer.Context,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The study's folder; an interrupted study goes on there.")
    ] = None,
    arms: Annotated[
        str, typer.Option(help="What is compared, with commas: none, mlp, random, pretrained, pretrained-trained.")
    ] = "none,mlp,random,pretrained",
    dataset: Annotated[str, typer.Option(help="Data sets, with commas.")] = "phantom",
    seeds: Annotated[int, typer.Option(help="Runs of each arm; at least 5 for a claim.")] = 5,
    lr_grid: Annotated[
        str, typer.Option(help="Learning rates, with commas: validation chooses one for each arm. Empty: the bundle's.")
    ] = "",
    lr_seeds: Annotated[int, typer.Option(help="Seeds by which the learning rate is chosen.")] = 1,
    folds: Annotated[
        int, typer.Option(help="Deal training and validation cases anew into so many parts for each seed; 0: as given.")
    ] = 0,
    preset: Annotated[
        str | None, typer.Option(help="rllm (as published) or strong; not given: the bundle as it is.")
    ] = None,
    references: Annotated[str, typer.Option(help="Arms that the others are compared with.")] = "none,mlp,random",
    bundle: Annotated[
        str, typer.Option(help="A bundle's folder, or the name of one in this package.")
    ] = DEFAULT_BUNDLE,
    jobs: Annotated[int, typer.Option(help="Runs at once on one machine; on several GPUs each has one.")] = 1,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; not given: one is started here.")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Only draw the page of a finished study in this folder anew.")
    ] = None,
) -> None:
    """Does the block help on your data? Train every arm with every seed, and compare them on the test split.

    Runs of one seed differ in their arm alone. Learning rates and epochs are
    chosen on validation; the test split is read once, at the end. Writes
    results.json and report.html. Further options are the bundle's own:
    --dataset_dir DIR, --block FILE, --epochs N, --size N ...

    Exit status: 0 every run was finished, 1 some failed, 2 nothing can be compared.
    """
    from monai_llmboost import studies

    try:
        if report is not None:
            typer.echo(f"drawn anew: {studies.redraw(report)}")
            return
        if output is None:
            raise ValueError("expected a folder to write into: give --output DIR, or --report DIR to draw a page anew")
        plan = studies.Plan(
            bundle,
            arms=_listed(arms),
            datasets=_listed(dataset),
            seeds=seeds,
            folds=folds,
            lr_grid=tuple(map(_rate, _listed(lr_grid))),
            lr_seeds=lr_seeds,
            preset=preset,
            references=_listed(references),
            options=_options_of_bundle(context.args),
        )
        status = studies.run_study(plan, output, engine, jobs, address)
    except MISTAKES as error:
        _tell(error)
        sys.exit(studies.NOTHING_DONE)
    except KeyboardInterrupt:
        typer.echo(f"monai-llmboost: interrupted; the same command goes on in {output}", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(status)


def _listed(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


def _rate(word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise ValueError(f"expected learning rates with commas, such as 3e-4,1e-3, got {word!r}") from error


def _options_of_bundle(words: list[str]) -> dict[str, Any]:
    """`--key value` and `--key=value` pairs, and nothing else."""
    options, others = _parted(words)
    if others:
        raise ValueError(f"expected options of the bundle as --key value, got {others[0]!r}")
    return options


def _parted(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`--key value` and `--key=value` pairs, and the words that are neither a key nor its value.

    Values are Python literals where they are some, as MONAI reads them.
    """
    options, others, rest = {}, [], list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not key.startswith("--"):
            others.append(word)
            continue
        if not equals and not rest:
            raise ValueError(f"expected options of the bundle as --key value, got {key!r}")
        value = value if equals else rest.pop(0)
        options[key.removeprefix("--")] = WORDS[value] if value in WORDS else DefaultParseValue(value)
    return options, others


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
    except MISTAKES as error:
        _tell(error)
        sys.exit(1)


def _tell(error: BaseException) -> None:
    if os.environ.get("MONAI_LLMBOOST_DEBUG"):
        raise error
    typer.echo(f"monai-llmboost: {error}", err=True)


if __name__ == "__main__":
    main()
