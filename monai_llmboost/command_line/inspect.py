# SPDX-License-Identifier: Apache-2.0
"""The command inspect."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monai_llmboost.command_line.errors import INTERRUPTED, USER_ERRORS, report_error

if TYPE_CHECKING:
    from rich.console import Console

    from monai_llmboost.inspection import Inspection

# Exit statuses: mistakes in the data (with --strict also warnings), and a wrong command or list.
WRONG_DATA, WRONG_COMMAND = 1, 2
# Refused scans that are listed on the terminal; the page has all.
SHOWN = 10


def inspect(
    data: Annotated[
        Path,
        typer.Option(
            help="The labelled scans: a CSV file, a JSON datalist, a folder with one for each class, or one with "
            "imagesTr and labelsTr."
        ),
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="The folder to train in; it becomes a copy of the bundle scans_classification, or for label maps of "
            "scans_segmentation, with a plan."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write into; default: inspection.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Column of the paths, or several with commas, one for each channel.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the classes, or of the paths of label maps.")
    ] = None,
    split_column: Annotated[str | None, typer.Option(help="Column of the splits: train, val, test.")] = None,
    fold_column: Annotated[str | None, typer.Option(help="Column of the folds.")] = None,
    group_column: Annotated[
        str | None, typer.Option(help="Column of what must stay together, such as the patient.")
    ] = None,
    mask_column: Annotated[str | None, typer.Option(help="Column of masks to crop around.")] = None,
    case_column: Annotated[str | None, typer.Option(help="Column of the names of cases.")] = None,
    structures: Annotated[
        str | None,
        typer.Option(help='Values of label maps with names, such as \'{"1": "liver"}\'; default: the list\'s.'),
    ] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Number of folds to divide the training cases into.")] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="The fold that validates.")] = None,
    test_fraction: Annotated[
        float | None, typer.Option(min=0, max=0.5, help="Fraction of the cases to set aside as test.")
    ] = None,
    missing_channels: Annotated[
        str | None, typer.Option(help="What to do with a case that lacks a channel: refuse it, or fill in zeros.")
    ] = None,
    volume: Annotated[int | None, typer.Option(min=0, help="Which volume of 4-D files, from 0.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read scans; 0 reads them in the main process.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 for warnings too.")] = False,
) -> None:
    """Inspect labelled scans: what is there, what is wrong, and a plan of the training.

    Reads every scan once; an interrupted inspection is resumed. Writes
    inspection.html and survey.json and, if there are no errors, plan.json.

    Exit status: 0 if nothing is wrong; 1 if there are errors in the data; 2 if
    the command or the list is wrong; 130 if interrupted.
    """
    try:
        from monai_llmboost.arguments import check_choice
        from monai_llmboost.bundle import parsed
        from monai_llmboost.data.labelled import Columns
        from monai_llmboost.data.labelled.case import MISSING
        from monai_llmboost.data.labelled.lists.read import check_list

        chosen: dict[str, Any] = {
            "image_column": image_column, "label_column": label_column, "split_column": split_column,
            "fold_column": fold_column, "group_column": group_column, "mask_column": mask_column,
            "case_column": case_column, "folds": folds, "fold": fold, "test_fraction": test_fraction,
            "missing_channels": missing_channels, "volume": volume,
            "structures": None if structures is None else parsed(structures),
        }  # fmt: skip
        given = {key: value for key, value in chosen.items() if value is not None}
        if missing_channels is not None:
            check_choice("missing_channels", missing_channels, MISSING)
        check_list(data, Columns.of(given))
        from monai_llmboost.inspection import inspect_list  # takes seconds; a wrong list is reported without it

        found = inspect_list(data, output, bundle, given, workers)
    except USER_ERRORS as error:
        report_error(error)
        sys.exit(WRONG_COMMAND)
    except KeyboardInterrupt:
        typer.echo("monai-llmboost: interrupted; what was read is kept, and the same command resumes", err=True)
        sys.exit(INTERRUPTED)
    show(found)
    wrong = found.findings.errors or (strict and found.findings.warnings)
    sys.exit(WRONG_DATA if wrong else 0)


def show(found: Inspection) -> None:
    """Print tables of cases and scans, what was found, and the plan."""
    from rich.table import Table

    from monai_llmboost.command_line.tables import make_console, plain_text

    console = make_console()
    _show_cases(found, console)
    for record in found.refused[:SHOWN]:
        console.print(
            f"[red]cannot be used:[/] {plain_text(record.name)}: {plain_text(record.refused)}", highlight=False
        )
    if len(found.refused) > SHOWN:
        console.print(f"  ... and {len(found.refused) - SHOWN} more")
    for text in found.findings.notes:
        console.print(f"note: {plain_text(text)}", highlight=False)
    for text in found.findings.warnings:
        console.print(f"[yellow]warning:[/] {plain_text(text)}", highlight=False)
    if found.plan is not None:
        table = Table("option", "value", "why", title="Plan")
        for key, text, why in found.plan.to_lines():
            table.add_row(key, plain_text(text), plain_text(why))
        console.print(table)
        console.print(
            f"training takes up to {found.plan.description['peak_mb']} MB of memory, of which the prepared scans are "
            f"{found.plan.description['memory_mb']} MB",
            highlight=False,
        )
    for text in found.findings.errors:
        console.print(f"[red]error:[/] {plain_text(text)}", highlight=False)
    if found.findings.errors:
        console.print("no plan is written while there are errors", highlight=False)
    for what, path in {"plan": found.plan_file, "page": found.page}.items():
        if path is not None:
            console.print(f"{what}: {path}", highlight=False, markup=False)


def _show_cases(found: Inspection, console: Console) -> None:
    """Print tables of cases, structures and scans."""
    from rich.table import Table

    from monai_llmboost.command_line.tables import plain_text
    from monai_llmboost.inspection.page.report import count_cases, describe_scans, describe_structures, group_names

    names = group_names(found)
    more = ["all"] if found.cases.is_segmentation else []  # a case may have several structures
    table = Table("cases", *map(plain_text, names), *more, title=plain_text(found.cases.path.name))
    for name, numbers, total in count_cases(found):
        table.add_row(name, *map(str, [*numbers, total][: len(names) + len(more)]))
    console.print(table)
    if found.structures:
        table = Table("structure", "value", "cases", "volume in mm3", "voxels")
        for row in describe_structures(found):
            table.add_row(*map(plain_text, row))
        console.print(table)
    for channel, number, lines in describe_scans(found):
        table = Table(title=plain_text(f"{channel}: {number}" if len(found.cases.channels) > 1 else number))
        table.show_header = False
        for what, text in lines:
            table.add_row(what, plain_text(text))
        console.print(table)
