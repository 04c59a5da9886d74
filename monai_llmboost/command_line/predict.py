# SPDX-License-Identifier: Apache-2.0
"""The command predict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monai_llmboost.bundle import Option, bundle_path, check_options, job_files, merged, split_network, typed_values
from monai_llmboost.bundle.job import PREDICT_KEYS, check_keys
from monai_llmboost.command_line.errors import INTERRUPTED, USER_ERRORS, report_error
from monai_llmboost.command_line.options import DEFAULT_BUNDLE, Bundle, Network, split_options

if TYPE_CHECKING:
    from monai_llmboost.inference.run import PredictJob

# Names of the command's options for keys of the bundle; other names differ only in their hyphens.
NAMES = {Option.DATASET_DIR: "input", Option.NUM_WORKERS: "workers"}


def predict(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="Folder, file, quoted pattern or list file of scans; may be repeated."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A list as in training, with or without labels: a CSV file or JSON datalist, instead of --input."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to write into; an interrupted run is resumed there."),
    ] = None,
    bundle: Bundle = DEFAULT_BUNDLE,
    arm: Annotated[str | None, typer.Option(help="none, mlp, random, pretrained ..., as in training.")] = None,
    network: Network = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the scans that were found, and why some are refused, and stop.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Scans in a batch; for a segmentation, windows of a scan in a batch. Default: the bundle's."
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="Processes that find and read scans (on Ray: that read them for each actor); 0: the main process.",
        ),
    ] = 0,
    saliency: Annotated[bool, typer.Option("--saliency", help="Write saliency maps and preview images.")] = False,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    view: Annotated[
        list[str] | None, typer.Option(help="Case to show in the report's three-plane viewer; may be repeated.")
    ] = None,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="For DICOM scans, also write predictions and maps as DICOM objects.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Predict only these cases: a case's name, or a pattern such as 'site-1/*'; may be repeated."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="More columns of the tables, for DICOM scans: study_uid, accession_number, or both with a comma "
            "between. They "
            "identify a patient's examination, and are not allowed with --salt."
        ),
    ] = None,
    accept_refused: Annotated[
        list[str] | None,
        typer.Option(
            help="Kind of refusal, as in the column refused_kind, that does not count as a failure; may be repeated."
        ),
    ] = None,
    known_refused: Annotated[
        Path | None,
        typer.Option(
            help="Earlier predictions.csv: a case refused there does not count as a failure if the reason is the same."
        ),
    ] = None,
    salt: Annotated[
        str | None, typer.Option(help="Secret word: replace case names by salted hashes, and omit paths and UIDs.")
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow links to folders, and links to files outside the input.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again, and replace what an earlier run wrote into --output.")
    ] = False,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of the Ray cluster: auto, ray://HOST:10001 ...; default: start one on this machine."
        ),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(help="Maximum number of actors (processes with a network) on Ray; default: all that fit."),
    ] = None,
    cpus_per_actor: Annotated[
        int | None, typer.Option(help="CPUs of an actor on Ray; default: one, and one for each of --workers.")
    ] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(help="GPUs of an actor on Ray; default: one if the cluster has GPUs.")
    ] = None,
) -> None:
    """Predict NIfTI and DICOM scans; a scan that cannot be read correctly is refused with the reason.

    Writes predictions.csv, predictions.json, run.json and report.html. Further
    options are the bundle's own; they are listed below.

    Exit status: 0 if all scans were predicted or their refusals accepted; 1 if
    some were refused or the run stopped early; 2 if none was predicted or the
    command is wrong; 130 if interrupted.

    Several GPUs: torchrun --nproc_per_node=2 -m monai_llmboost predict ...
    Several machines: --engine ray --address auto
    """
    from monai_llmboost.inference.distributed.cluster import ray_options
    from monai_llmboost.inference.options import parse_device
    from monai_llmboost.inference.run import PredictJob, StoppedEarly
    from monai_llmboost.inference.status import NOTHING_DONE, SOME_FAILED, AcceptedRefusals

    try:
        ray = ray_options(engine, address, actors, cpus_per_actor, gpus_per_actor)
        typed, more_inputs = split_options(context.args)
        chosen = {} if network is None else {Option.NETWORK: network}
        named, expression = split_network(bundle_path(bundle), chosen)
        configs = job_files(bundle, "inference", arm, named, typed).configs
        options = typed_values(merged(configs), typed) | expression
        check_options(configs, options)  # before they are passed as keyword arguments of PredictJob
        if output is None and not dry_run:
            raise ValueError("there is no folder to write into: give --output DIR, or --dry-run to list the scans")
        given = [*(inputs or ()), *more_inputs]
        if data is not None:
            if given:
                raise ValueError(f"--data and --input exclude one another, got {data!r} and {given[0]!r}: give one")
            given = [data]
        if not given:
            raise ValueError("there are no scans to predict: give --input FOLDER, or --data LIST")
        own: dict[str, Any] = {
            Option.DATASET_DIR: [_literal(word) for word in given],
            Option.NUM_WORKERS: workers,
            Option.REPORT: report,
            Option.VIEW: view or None,
            Option.SALT: salt,
            Option.FOLLOW_LINKS: follow_links,
            Option.OVERWRITE: overwrite,
        }
        # Copies of earlier bundles, or bundles of other tasks, do not have these keys.
        more = {
            Option.ONLY: only,
            Option.COLUMNS: columns,
            Option.SALIENCY: saliency,
            Option.DICOM: dicom,
            Option.BATCH_SIZE: batch_size,
        }
        own |= {key: value for key, value in more.items() if value}
        check_keys(merged(configs), (*own, Option.OUTPUT_DIR, *PREDICT_KEYS), "predict", bundle)
        for key in (own.keys() | more.keys()) & options.keys():
            raise ValueError(f"--{key} is called --{NAMES.get(key, key.replace('_', '-'))} here: use that name")
        if device != "auto":
            options[Option.DEVICE] = parse_device(device)
        accepted = AcceptedRefusals(tuple(accept_refused or ()), known_refused)
        job = PredictJob(bundle, output, arm, accepted, dry_run, ray, **{**own, **options, **chosen})
        sys.exit(_run(job, dry_run))
    except USER_ERRORS as error:
        report_error(error)
        sys.exit(SOME_FAILED if isinstance(error, StoppedEarly) else NOTHING_DONE)
    except KeyboardInterrupt:
        how = "the same command without --overwrite" if overwrite else "the same command"
        typer.echo(f"monai-llmboost: interrupted; what was predicted is kept, and {how} resumes the run", err=True)
        sys.exit(INTERRUPTED)


def _run(job: PredictJob, dry_run: bool) -> int:
    """Find and predict the scans, show the tables in the first of several processes, and return the exit status."""
    from monai_llmboost.command_line.tables import make_console, show_inventory, show_result

    found = None
    if job.is_first:
        if (console := make_console()).is_terminal:  # a bar follows if this takes long
            console.print("searching for scans")
        found = job.find()
        show_inventory(found, *([None] if dry_run else []))
        if dry_run:
            return found.status
    result = job.run()
    if found is not None:
        show_result(result, found)
    return result.status


def _literal(word: str) -> str:
    """Return the absolute path of an input that starts with ~ and exists under that name, else the input."""
    return str(Path(word).absolute()) if word.startswith("~") and Path(word).exists() else word
