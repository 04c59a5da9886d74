# SPDX-License-Identifier: Apache-2.0
"""The command study."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from monai_llmboost.bundle import Option, bundle_path, check_options, job_configs, merged, split_network
from monai_llmboost.bundle.job import STUDY_KEYS, check_keys
from monai_llmboost.bundle.study_settings import StudySettings
from monai_llmboost.bundle.words import is_computed, plain_text
from monai_llmboost.command_line.bundles import Overlay
from monai_llmboost.command_line.errors import INTERRUPTED, USER_ERRORS, report_error
from monai_llmboost.command_line.options import DEFAULT_BUNDLE, Bundle, Network, options_of_bundle
from monai_llmboost.command_line.scan_plan import Data, plan_scans

# Name of the data set in the results if the bundle has no key for it.
NO_NAME = "data"
# What --floors says to leave them out.
NO_FLOORS = "none"


def study(
    context: typer.Context,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The study's folder; an interrupted study is resumed there.")
    ] = None,
    arms: Annotated[
        str,
        typer.Option(
            help="Arms to compare, with commas: none, mlp, random, pretrained, pretrained-trained, lora; ARM@BLOCK is "
            "an arm with its own --block. Those of --overlay take their place: scratch, logit, feature and rd with "
            "distil."
        ),
    ] = "none,mlp,random,pretrained",
    dataset: Annotated[str | None, typer.Option(help="Data sets, with commas; default: the bundle's own.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds for each arm; use at least 5 to draw conclusions.")] = 5,
    lr_grid: Annotated[
        str,
        typer.Option(help="Learning rates, with commas: validation chooses one for each arm. Empty: the bundle's own."),
    ] = "",
    lr_seeds: Annotated[int, typer.Option(help="Number of seeds used to choose the learning rate.")] = 1,
    lr_halving: Annotated[
        bool,
        typer.Option(
            "--lr-halving",
            help="Drop the worse half of the learning rates of each arm early, by validation, until one is left at "
            "half of the epochs.",
        ),
    ] = False,
    label_fraction: Annotated[
        str,
        typer.Option(help="Fractions of the training labels, with commas, such as 0.1,0.25,1; each is analysed alone."),
    ] = "1",
    folds: Annotated[
        int, typer.Option(help="Number of folds of the training and validation cases; 0: the splits of the data set.")
    ] = 0,
    preset: Annotated[
        str | None, typer.Option(help="A preset that the bundle declares, such as rllm (as published) or strong.")
    ] = None,
    network: Network = None,
    overlay: Overlay = None,
    references: Annotated[str, typer.Option(help="Arms that the others are compared with.")] = "none,mlp,random",
    floors: Annotated[
        str | None,
        typer.Option(
            help="Simple predictors that an arm should beat, with commas; none: leave them out; default: all that fit "
            "the bundle."
        ),
    ] = None,
    bundle: Bundle = DEFAULT_BUNDLE,
    data: Data = None,
    jobs: Annotated[int, typer.Option(help="Number of parallel runs; with several GPUs, one GPU for each run.")] = 1,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster; default: start one on this machine.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Only draw report.html of the finished study in this folder again.")
    ] = None,
) -> None:
    """Test whether the block helps on a data set: train every arm with every seed, compare them on the test split.

    Runs with the same seed differ only in the arm. Learning rates and epochs are
    chosen on validation; the test split is predicted once, at the end. Writes
    results.json and report.html. Further options are the bundle's own; they are
    listed below.

    Exit status: 0 every run was finished, 1 some failed, 2 nothing can be compared.
    """
    try:
        if data is not None:
            plan_scans(data, bundle, context.args, overlay or ())
        datasets = _datasets(bundle, dataset) if report is None else ()
    except USER_ERRORS as error:
        report_error(error)
        sys.exit(2)
    from monai_llmboost import studies
    from monai_llmboost.studies.arms import split_arms
    from monai_llmboost.studies.plan_checks import check_start

    try:
        given = [name for name in context.params if _was_given(context, name)]
        if report is not None and (given != ["report"] or context.args):
            raise ValueError("--report takes no other option: it only draws the page of a finished study again")
        if engine == "local" and address is not None:
            raise ValueError("--address is for --engine ray, not for --engine local: leave out --address")
        if report is not None:
            typer.echo(f"drawn again: {studies.redraw(report)}")
            return
        if output is None:
            raise ValueError("a study needs a folder: give --output DIR, or --report DIR to draw a page again")
        named, expression = split_network(bundle_path(bundle), {} if network is None else {Option.NETWORK: network})
        configs = job_configs(bundle_path(bundle), "evaluate", network=named, overlays=overlay or ())
        names, blocks = split_arms(_listed(arms))
        plan = studies.Plan(
            bundle,
            arms=names,
            blocks=blocks,
            datasets=datasets,
            seeds=seeds,
            folds=folds,
            lr_grid=_numbers(lr_grid, "learning rates", "3e-4,1e-3"),
            lr_seeds=lr_seeds,
            lr_halving=lr_halving,
            preset=preset,
            network=named,
            overlays=tuple(overlay or ()),
            floors=_floors(bundle, floors),
            label_fractions=_numbers(label_fraction, "label fractions", "0.1,0.25,1"),
            references=tuple(word if word in names else split_arms([word])[0][0] for word in _listed(references)),
            options={**options_of_bundle(context.args, configs), **expression},
        )
        check_start(plan, engine, jobs)  # `run_study` does so too, after imports that take seconds
        status = studies.run_study(plan, output, engine, jobs, address)
    except USER_ERRORS as error:
        report_error(error)
        sys.exit(studies.NOTHING_DONE)
    except KeyboardInterrupt:
        typer.echo(f"monai-llmboost: interrupted; the same command resumes in {output}", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(status)


def _datasets(bundle: str, given: str | None) -> tuple[str, ...]:
    """Return the given data sets after checking them, or by default the data set of the bundle."""
    configs = job_configs(bundle_path(bundle), "train")
    content = merged(configs)
    check_keys(content, STUDY_KEYS, "study", bundle)
    own = content.get(Option.DATASET)
    if given is None and Option.DATA in content:  # a user's list, by its name
        path = Path(plain_text(str(content[Option.DATA])))
        return (NO_NAME if is_computed(str(path)) else re.sub(r"[^\w.-]+", "_", path.stem) or NO_NAME,)
    if given is None:
        return (own if isinstance(own, str) else NO_NAME,)
    names = _listed(given)
    for name in names:
        check_options(configs, {Option.DATASET: name})
    return names


def _floors(bundle: str, given: str | None) -> tuple[str, ...]:
    """Return the given floors, or by default those of the bundle."""
    if given is None:
        return StudySettings.of(bundle_path(bundle)).floors
    return () if given.strip() == NO_FLOORS else _listed(given)


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"  # by name, because Typer bundles its own copy of click


def _listed(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


def _numbers(words: str, what: str, example: str) -> tuple[float, ...]:
    def number(word: str) -> float:
        try:
            return float(word)
        except ValueError as error:
            raise ValueError(f"{what} are numbers with commas, such as {example}, not {word!r}") from error

    return tuple(map(number, _listed(words)))
