# SPDX-License-Identifier: Apache-2.0
"""Run a bundle's `inference.json` on scans: look first, then predict, then tell."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai_llmboost.bundle import check_job_effect, monai_arguments, root_cause
from monai_llmboost.inference.console import (
    SHOWN,
    a_console,
    show_inventory,
    show_refused,
    show_result,
    show_without_viewer,
)
from monai_llmboost.inference.status import AcceptedRefusals, Refusal, status_of

OVERLAY = "multi_gpu_inference.json"


class StoppedEarly(RuntimeError):
    """A run that came to an end before its last scan; what it had predicted by then is kept."""


def run_predict(
    bundle: str | Path,
    output: Path,
    arm: str | None,
    accepted: AcceptedRefusals | None = None,
    **options: Any,
) -> int:
    """Predict scans by a bundle and write tables, facts and page into ``output``; the exit code.

    Under ``torchrun`` each process takes its share, and the first writes the result for all.

    Args:
        bundle: a bundle's folder, or the name of one of this package.
        output: the folder to write into; a run that was interrupted there is continued.
        arm: the arm that was trained.
        accepted: refusals that do not count in the exit code.
        options: keys of ``inference.json``, such as ``dataset_dir`` and ``batch_size``.

    Returns:
        0 if every scan was predicted or its refusal is accepted, 1 if some were refused, 2 if none was predicted.

    Raises:
        ValueError, OSError: nothing was found, the weights do not fit, or the like; nothing was predicted.
        StoppedEarly: the like, when some were predicted already.
    """
    accepted = accepted or AcceptedRefusals()
    _check_together(options)
    _check_places(output, options)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    first = int(os.environ.get("RANK", "0")) == 0
    overlays = [OVERLAY] if several else []
    options = {**options, "output_dir": str(output)}
    arguments = monai_arguments(bundle, "inference", arm, False, overlays, **options)
    check_job_effect(bundle, "inference", [arm], options, overlays)
    _check_weights(arguments, options)
    accepted.check()
    try:
        with _without_others_words():
            counts, refusals, sentences = _run(arguments, first)
    except RuntimeError as error:
        raise root_cause(error) from error
    if first:
        show_result(output, counts, len(accepted.split(refusals)[0]), sentences)
    return status_of(counts["predicted"], refusals, accepted)


def _check_together(options: dict[str, Any]) -> None:
    """Refuse options that contradict each other, before anything that takes time."""
    if options.get("salt") is not None and options.get("dicom"):
        raise ValueError(
            "expected --salt or --dicom, got both: DICOM objects belong to a patient and name their source series"
        )
    if options.get("salt") is not None and options.get("columns"):
        raise ValueError("expected --salt or --columns, got both: these columns identify a patient")
    if options.get("columns"):
        from monai_llmboost.inference.identifiers import checked_columns

        checked_columns(options["columns"])
    if options.get("view") and options.get("report") is False:
        raise ValueError("expected --view or --no-report, got both: the viewer is a part of the report")


def _check_places(output: Path, options: dict[str, Any]) -> None:
    """What can be reported before anything that takes time."""
    at_fault = next((path for path in (output, *output.parents) if path.exists()), output)
    if at_fault.exists() and not at_fault.is_dir():
        raise ValueError(f"expected --output to be a folder, got {at_fault}, a file: give another")
    given = options.get("dataset_dir", [])
    for word in [given] if isinstance(given, str) else given:
        path = Path(word).expanduser()
        if not path.exists() and not any(character in str(word) for character in "*?["):
            raise FileNotFoundError(f"expected scans at {word}, found nothing there: correct the path")


def _check_weights(arguments: dict[str, Any], options: dict[str, Any]) -> None:
    """That there is a checkpoint, where the bundle looks for it as ours do: before the folders are searched."""
    config = json.loads(Path(arguments["config_file"][0]).read_text())
    if config.get("ckpt_dir") != "$@bundle_root + '/models'":
        return
    root = Path(arguments["config_file"][0]).parents[1] if "bundle_root" in arguments else Path()
    from monai_llmboost.engines.best_weights import WEIGHTS

    folder = Path(options.get("ckpt_dir") or Path(options.get("bundle_root", root)) / "models")
    file = folder / WEIGHTS.get(options.get("weights") or config.get("weights", "best"), WEIGHTS["best"])
    if not file.is_file():
        raise FileNotFoundError(f"expected trained weights at {file}, found none: train first, or give --ckpt_dir")


def _run(arguments: dict[str, Any], first: bool) -> tuple[dict[str, int], list[Refusal], list[str]]:
    workflow, found = _looked(arguments, first)
    if found is not None:
        show_inventory([*found.scans, *found.refused], found.skipped, SHOWN)
    predictions = workflow.parser.get_parsed_content("predictions")
    known = set() if found is None else {scan.name for scan in found.refused}
    import torch

    from monai_llmboost.inference.figures import sentences

    try:
        workflow.run()
    except (OSError, RuntimeError, MemoryError) as error:
        cause = root_cause(error)
        passing = isinstance(cause, (OSError, MemoryError, torch.OutOfMemoryError))
        if passing and predictions.journal.is_open and (kept := len(predictions.journal.rows())):
            message = str(cause) or "there is not enough memory"
            how = "run the same command again" + (" without --overwrite" if predictions.journal.overwrite else "")
            raise StoppedEarly(f"{message}; {kept} cases are kept: {how} to go on") from error
        raise
    finally:
        predictions.journal.close()
    workflow.finalize()
    if first:
        show_refused(predictions.refused, known)
        show_without_viewer([case for case in predictions.view or () if case in predictions.refused])
    kinds = getattr(predictions, "refused_kinds", {})
    refusals = [Refusal(case, reason, kinds.get(case, "")) for case, reason in predictions.refused.items()]
    used = f"weights: {predictions.facts['weights']['file']}"
    return predictions.counts, refusals, [used, *sentences(predictions.facts.get("figures") or {})]


def _looked(arguments: dict[str, Any], search: bool = True) -> tuple[Any, Any]:
    """Return the bundle's workflow and, where this process is to search, the cases it finds."""
    with a_console().status("looking at the files"):
        from monai.bundle import create_workflow

        workflow: Any = create_workflow(**arguments)
        return workflow, workflow.parser.get_parsed_content("cases") if search else None


@contextmanager
def _without_others_words() -> Iterator[None]:
    """MONAI and Ignite tell of themselves on every run; what a user must know stands in the tables."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(disabled)


def dry_run(
    bundle: str | Path,
    output: Path | None,
    arm: str | None,
    accepted: AcceptedRefusals | None = None,
    **options: Any,
) -> int:
    """Show what a run would predict, and what not and why, as far as headers tell; return the exit code of a run.

    Takes what :func:`run_predict` takes. No weights are read and nothing is written.
    """
    accepted = accepted or AcceptedRefusals()
    _check_together(options)
    _check_places(output or Path(), options)
    places: dict[str, Any] = {"cases#leave_out": []} if output is None else {"output_dir": str(output)}
    options |= places
    arguments = monai_arguments(bundle, "inference", arm, False, **options)
    check_job_effect(bundle, "inference", [arm], options)
    accepted.check()
    try:
        with _without_others_words():
            _, found = _looked(arguments)
    except RuntimeError as error:
        raise root_cause(error) from error
    view = options.get("view") or ()
    _check_view([view] if isinstance(view, str) else view, {scan.name for scan in found.scans})
    show_inventory([*found.scans, *found.refused], found.skipped, None)
    refusals = [Refusal(scan.name, scan.refused, scan.refused_kind) for scan in found.refused]
    return status_of(len(found.scans), refusals, accepted)


def _check_view(wanted: Sequence[str], found: set[str]) -> None:
    for case in wanted:
        if case not in found:
            raise ValueError(f"expected a case to view among those found, got {case!r}: see the column case")


def device_named(name: str) -> Any:
    """The torch device of a word such as ``"cpu"`` or ``"cuda:1"``.

    Raises:
        ValueError: no such word, or no such device here.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"expected --device to be auto, cpu, cuda or cuda:1 ..., got {name!r}") from error
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"expected --device to be auto, cpu, cuda or cuda:1 ..., got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"expected --device to be one that is here, got {name!r}: there are {count} GPUs; try auto")
    return device
