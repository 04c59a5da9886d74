# SPDX-License-Identifier: Apache-2.0
"""The commands train and evaluate."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from monai_llmboost.bundle import (
    Option,
    bundle_path,
    check_options,
    job_files,
    merged,
    run_bundle,
    split_network,
)
from monai_llmboost.bundle.contract import EVAL
from monai_llmboost.command_line.bundles import Overlay
from monai_llmboost.command_line.errors import INTERRUPTED
from monai_llmboost.command_line.options import Network, options_of_bundle, split_options
from monai_llmboost.command_line.scan_plan import Data, list_is_planned, plan_scans

Folder = Annotated[str, typer.Option(help="The folder to train in: a copy of a bundle; see --data.")]
Arm = Annotated[
    str | None, typer.Option(help="none, mlp, random or pretrained (or of --overlay); default: that of --block.")
]


def train(
    context: typer.Context,
    bundle: Folder,
    data: Data = None,
    arm: Arm = None,
    network: Network = None,
    overlay: Overlay = None,
) -> None:
    """Train a network, on your own labelled scans with --data.

    The scans are inspected first, unless `inspect` or an earlier training did;
    the plan is in configs/plan.json, and each of its lines is an option here.
    Writes models/ and eval/ in the bundle's folder. An interrupted training is
    resumed with --resume True. Further options are listed below.
    """
    prepare_data(data, bundle, context.args, overlay or ())
    run_job(context, "train", bundle, arm, network, overlay)


def evaluate(
    context: typer.Context,
    bundle: Folder,
    data: Data = None,
    arm: Arm = None,
    network: Network = None,
    overlay: Overlay = None,
) -> None:
    """Evaluate a trained network on its test cases, or on the validation cases if there are none.

    Writes metrics.json, predictions.csv and evaluation.html into eval/ in the
    bundle's folder. Options of the training need not be repeated.
    """
    if data is not None:
        from monai_llmboost.data.labelled.lists.read import check_list

        check_list(data)
    given = {} if data is None else {Option.DATA: data}
    options = run_job(context, "evaluate", bundle, arm, network, overlay, given)
    root = options.get(Option.BUNDLE_ROOT) or (bundle if Path(bundle).is_dir() else ".")
    _show_metrics(Path(options.get(Option.OUTPUT_DIR) or Path(root) / EVAL))


def prepare_data(data: str | None, bundle: str, words: list[str], overlays: Iterable[str] = ()) -> None:
    """Inspect the labelled scans of a training, and plan it, if they are given."""
    if data is not None:
        plan_scans(data, bundle, words, overlays)
    elif not list_is_planned(Path(bundle)):
        typer.echo("monai-llmboost: the list changed since its inspection: give --data to inspect it again", err=True)


def run_job(
    context: typer.Context,
    job: str,
    bundle: str,
    arm: str | None,
    network: str | None,
    overlay: list[str] | None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a job with the options of the command line, and return these."""
    chosen = {} if network is None else {Option.NETWORK: network}
    named, expression = split_network(bundle_path(bundle), chosen)
    typed = split_options(context.args)[0]
    configs = job_files(bundle, job, arm, named, typed, overlay or ()).configs
    options = {**(given or {}), **options_of_bundle(context.args, configs), **expression}
    logging_file = options.pop("logging_file", None)  # an argument of MONAI that check_options does not know
    check_options(configs, options)
    _check_data(bundle, merged(configs), options)
    for engine in ("SupervisedTrainer", "SupervisedEvaluator"):  # Ignite logs a traceback before our sentence
        logging.getLogger(f"ignite.engine.engine.{engine}").addFilter(_is_no_traceback)
    try:
        run_bundle(bundle, job, arm, logging_file, overlay or (), **{**options, **chosen})
    except KeyboardInterrupt:
        again = shlex.join(["monai-llmboost", str(context.info_name), *context.meta["words"]])
        resume = f"; resume it with {again} --resume True" if job == "train" else ""
        typer.echo(f"monai-llmboost: interrupted{resume}", err=True)
        sys.exit(INTERRUPTED)
    return options


def _is_no_traceback(record: logging.LogRecord) -> bool:
    return "is terminating due to exception" not in record.getMessage()


def _check_data(bundle: str, content: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse a bundle for labelled scans that has none yet, with what to do."""
    given = options.get(Option.DATA) or options.get(Option.DATASET_DIR)
    usual = content.get(Option.DATA) == f"@{Option.DATASET_DIR}" and Option.BUNDLE_ROOT not in options
    if given is None and usual and not (Path(bundle) / "data").exists():
        raise ValueError(
            f"{bundle} has no labelled scans, and no plan of any: give --data with your list; inspect writes no plan "
            "while there are errors"
        )


# Title, and digits, of the measures of a structure that are printed.
MEASURES = {"dice": ("Dice", 3), "hd95_mm": ("HD95, mm", 2), "nsd": ("NSD", 3), "volume_mm3": ("volume, mm³", 0)}


def _table_of_structures(structures: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the means of each structure, with intervals and medians, as a table."""
    from rich.table import Table

    from monai_llmboost.command_line.tables import plain_text

    table = Table("structure", "measure", "mean", "95 % interval", "median", "cases")
    for name, found in structures.items():
        for key, (title, digits) in MEASURES.items():
            measured = found[key]
            mean, ends, median = (measured.get(part) for part in ("mean", "mean_interval_95", "median"))
            texts = ["\N{EN DASH}" if part is None else f"{part:.{digits}f}" for part in (mean, median)]
            between = "" if ends is None else " to ".join(f"{end:.{digits}f}" for end in ends)
            undefined = f", {measured['undefined']} undefined" if measured["undefined"] else ""
            table.add_row(plain_text(name), title, texts[0], between, texts[1], f"{measured['cases']}{undefined}")
            name = ""
    return table


def _show_metrics(folder: Path) -> None:
    """Print the numbers of an evaluation."""
    from rich.table import Table

    from monai_llmboost.command_line.tables import make_console

    file = folder / "metrics.json"
    if not file.is_file():  # a bundle that writes others
        return
    numbers = json.loads(file.read_text(encoding="utf-8"))
    console = make_console()
    table = Table("metric", "value", "95 % interval", title=f"{numbers.get('split', '')} cases: {numbers.get('cases')}")
    for name, value in numbers.items():
        interval = numbers.get(f"{name}_interval_95")
        if isinstance(value, float) and isinstance(interval, list):
            table.add_row(name.replace("_", " "), f"{value:.3f}", " to ".join(f"{end:.3f}" for end in interval))
    console.print(table)
    if "structures" in numbers:
        console.print(_table_of_structures(numbers["structures"]))
    if "threshold" in numbers:
        console.print(
            f"positive: {numbers['positive_class']}, from a probability of {numbers['threshold']:.3f}, chosen on "
            "the validation cases; acc, and predict, use the most probable class",
            markup=False,
            highlight=False,
        )
    for caveat in numbers.get("caveats", ()):
        console.print(caveat, markup=False)
    for name in ("metrics.json", "evaluation.html"):
        if (folder / name).is_file():
            console.print(f"{folder / name}", markup=False, highlight=False)
