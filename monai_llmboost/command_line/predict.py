# SPDX-License-Identifier: Apache-2.0
"""The verb predict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from monai_llmboost.bundle import bundle_path, check_options, job_configs, merged, typed_values
from monai_llmboost.command_line.mistakes import INTERRUPTED, MISTAKES, tell
from monai_llmboost.command_line.options import DEFAULT_BUNDLE, Bundle, parted

# What keys of the bundle are called here; others differ in their hyphens only.
NAMES = {"dataset_dir": "input", "num_workers": "workers"}


def predict(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Option("--input", "-i", help="Folder, file, quoted pattern or list file of scans; may be repeated."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write into; an interrupted run goes on there.")
    ] = None,
    bundle: Bundle = DEFAULT_BUNDLE,
    arm: Annotated[str | None, typer.Option(help="none, mlp, random, pretrained ..., as it was trained.")] = None,
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
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Predict these cases alone: a case's name, or a pattern such as 'site-1/*'; may be repeated."
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Further columns of the tables, with commas, of DICOM scans: study_uid, accession_number. Both "
            "identify a patient's examination: never written unless asked for, and not with --salt."
        ),
    ] = None,
    accept_refused: Annotated[
        list[str] | None,
        typer.Option(help="A kind of refusal, as in the column refused_kind, that is no failure; may be repeated."),
    ] = None,
    known_refused: Annotated[
        Path | None,
        typer.Option(help="An earlier predictions.csv: a case refused there is no failure if the reason is the same."),
    ] = None,
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
    options are the bundle's own; they are listed below.

    Exit status: 0 every scan was predicted (or its refusal accepted), 1 some were
    refused, or the run ended early, 2 none was predicted, or a mistake in the
    command, 130 interrupted. Several GPUs: torchrun --nproc_per_node=2 -m monai_llmboost predict ...
    """
    from monai_llmboost.inference import run as predicting
    from monai_llmboost.inference.status import NOTHING_DONE, SOME_FAILED, AcceptedRefusals

    try:
        typed, more_inputs = parted(context.args)
        configs = job_configs(bundle_path(bundle), "inference", arm)
        options = typed_values(merged(configs), typed)
        check_options(configs, options)  # before they stand in for arguments of run_predict
        if output is None and not dry_run:
            raise ValueError("expected a folder to write into: give --output DIR, or --dry-run to see what is there")
        if device != "auto":
            options["device"] = predicting.device_named(device)
        if amp is not None:
            options["amp"] = amp
        own: dict[str, Any] = {
            "dataset_dir": [_literal(word) for word in [*inputs, *more_inputs]],
            "batch_size": batch_size,
            "num_workers": workers,
            "saliency": saliency,
            "report": report,
            "view": view or None,
            "dicom": dicom,
            "salt": salt,
            "follow_links": follow_links,
            "overwrite": overwrite,
        }
        # Bundles that were copied earlier do not have these.
        own |= {key: value for key, value in (("only", only), ("columns", columns)) if value}
        for key in own.keys() & options.keys():
            raise ValueError(f"expected --{NAMES.get(key, key.replace('_', '-'))}, got --{key}: so it is named here")
        accepted = AcceptedRefusals(tuple(accept_refused or ()), known_refused)
        if dry_run:
            sys.exit(predicting.dry_run(bundle, output, arm, accepted, **own, **options))
        status = predicting.run_predict(bundle, output or Path(), arm, accepted, **own, **options)
    except MISTAKES as error:
        tell(error)
        sys.exit(SOME_FAILED if isinstance(error, predicting.StoppedEarly) else NOTHING_DONE)
    except KeyboardInterrupt:
        how = "the same command without --overwrite" if overwrite else "the same command"
        typer.echo(f"monai-llmboost: interrupted; what was predicted is kept, {how} goes on", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(status)


def _literal(word: str) -> str:
    """Return an input as it is on disk: a name that begins with ~ is no home directory if it is there."""
    return str(Path(word).absolute()) if word.startswith("~") and Path(word).exists() else word
