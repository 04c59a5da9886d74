# SPDX-License-Identifier: Apache-2.0
"""The verb predict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

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

    options, more_inputs = parted(context.args)
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
        own = {
            "dataset_dir": inputs,
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
        for key in own.keys() & options.keys():
            raise ValueError(f"expected --{NAMES.get(key, key.replace('_', '-'))}, got --{key}: so it is named here")
        status = predicting.run_predict(bundle, output, arm, **own, **options)
    except MISTAKES as error:
        tell(error)
        sys.exit(predicting.SOME_FAILED if isinstance(error, predicting.StoppedEarly) else predicting.NOTHING_DONE)
    except KeyboardInterrupt:
        typer.echo("monai-llmboost: interrupted; what was predicted is kept, the same command goes on", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(status)
