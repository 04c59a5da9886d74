# SPDX-License-Identifier: Apache-2.0
"""`monai-llmboost predict`: a folder of scans through a bundle's `inference.json`, inventory first, exit code last."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from monai_llmboost.bundle import monai_arguments, root_cause

ALL_GOOD, SOME_FAILED, NOTHING_DONE = 0, 1, 2
# Rows of a table on a terminal; the files hold all of them.
SHOWN = 20


class StoppedEarly(RuntimeError):
    """A run that came to an end before its last scan; what it had predicted by then is kept."""


def run_predict(bundle: str | Path, output: Path, arm: str | None, **options: Any) -> int:
    """Predict scans by a bundle and write tables, facts and page into ``output``; the exit code.

    Under ``torchrun`` each process takes its share, and the first writes the result for all.

    Args:
        bundle: a bundle's folder, or the name of one of this package.
        output: the folder to write into; a run that was interrupted there is gone on with.
        arm: the arm that was trained.
        options: keys of ``inference.json``, such as ``dataset_dir`` and ``batch_size``.

    Returns:
        0 if every scan was predicted, 1 if some were refused, 2 if none was predicted.

    Raises:
        ValueError, OSError: nothing was found, the weights do not fit, or the like; nothing was predicted.
        StoppedEarly: the like, when some were predicted already.
    """
    if options.get("salt") is not None and options.get("dicom"):
        raise ValueError(
            "expected --salt or --dicom, got both: DICOM objects belong to a patient and name their source series"
        )
    if options.get("amp") and str(options.get("device", "")).startswith("cpu"):
        raise ValueError("expected mixed precision on a GPU, got --amp with the device cpu: leave out --amp")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    _check_places(output, options)
    first = int(os.environ.get("RANK", "0")) == 0
    arguments = monai_arguments(
        bundle,
        "inference",
        arm,
        logging_file=False,
        overlays=["multi_gpu_inference.json"] if several else [],
        output_dir=str(output),
        **options,
    )
    _check_weights(arguments)
    try:
        with _without_others_words():
            counts = _run(arguments, first)
    except RuntimeError as error:
        raise root_cause(error) from error
    if first:
        show_result(output, counts)
    if not counts["predicted"]:
        return NOTHING_DONE
    return SOME_FAILED if counts["refused"] else ALL_GOOD


def _check_places(output: Path, options: dict[str, Any]) -> None:
    """What can be told before anything that takes time."""
    at_fault = next((path for path in (output, *output.parents) if path.exists()), output)
    if at_fault.exists() and not at_fault.is_dir():
        raise ValueError(f"expected --output to be a folder, got {at_fault}, a file: give another")
    given = options.get("dataset_dir", [])
    for word in [given] if isinstance(given, str) else given:
        path = Path(word).expanduser()
        if not path.exists() and not any(character in str(word) for character in "*?["):
            raise FileNotFoundError(f"expected scans at {word}, found nothing there: correct the path")


def _check_weights(arguments: dict[str, Any]) -> None:
    """That there is a checkpoint, where the bundle looks for it as ours do: before the folders are searched."""
    config = json.loads(Path(arguments["config_file"][0]).read_text())
    if config.get("ckpt_dir") != "$@bundle_root + '/models'":
        return
    folder = Path(arguments.get("ckpt_dir") or Path(arguments.get("bundle_root", ".")) / "models")
    if not (folder / "model.pt").is_file():
        raise FileNotFoundError(
            f"expected trained weights at {folder / 'model.pt'}, found none: train first, or give --ckpt_dir"
        )


def _run(arguments: dict[str, Any], first: bool) -> dict[str, int]:
    with _console().status("looking at the files"):
        from monai.bundle import create_workflow

        workflow: Any = create_workflow(**arguments)
        found = workflow.parser.get_parsed_content("cases") if first else None
    if found is not None:
        show_inventory([*found.scans, *found.refused], found.skipped, SHOWN)
    predictions = workflow.parser.get_parsed_content("predictions")
    known = set() if found is None else {scan.name for scan in found.refused}
    try:
        workflow.run()
    except (OSError, RuntimeError) as error:
        cause = root_cause(error)
        if isinstance(cause, OSError) and predictions.journal.is_open and (kept := len(predictions.journal.rows())):
            raise StoppedEarly(f"{cause}; {kept} cases are kept: run the same command again to go on") from error
        raise
    finally:
        predictions.journal.close()
    workflow.finalize()
    if first:
        _show_refused(predictions.refused, known)
    return predictions.counts


def _show_refused(refused: dict[str, str], known: set[str]) -> None:
    """Why cases were refused that looked well in the inventory, by reason."""
    reasons: dict[str, list[str]] = {}
    for case, reason in refused.items():
        if case not in known:
            reasons.setdefault(reason, []).append(case)
    console = _console()
    for reason, cases in sorted(reasons.items(), key=lambda item: -len(item[1]))[:SHOWN]:
        console.print(
            f"  {len(cases)} [red]refused:[/] {_plain(reason)} ({_plain(cases[0])}{' ...' if len(cases) > 1 else ''})"
        )
    if len(reasons) > SHOWN:
        console.print(f"  ... and {len(reasons) - SHOWN} more reasons")


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


def dry_run(inputs: Sequence[str], output: Path | None, follow_links: bool, volume: int | None = None) -> int:
    """Show what would be predicted, and what not and why, as far as headers tell. The exit code, as of a run."""
    with _console().status("looking at the files"):
        from monai_llmboost.data import find_scans

        found, skipped = find_scans(inputs, follow_links, [] if output is None else [output])
    scans = [_one_volume(scan, volume) for scan in found]
    show_inventory(scans, skipped, None)
    refused = sum(bool(scan.refused) for scan in scans)
    if refused == len(scans):
        return NOTHING_DONE
    return SOME_FAILED if refused else ALL_GOOD


def _one_volume(scan: Any, volume: int | None) -> Any:
    """A scan, refused if it holds several volumes of which none was chosen."""
    if scan.refused or volume is not None or len(scan.shape) < 4 or scan.shape[3] == 1:
        return scan
    return replace(scan, refused=f"expected one volume, got {scan.shape[3]}: choose one with --volume K")


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


def show_inventory(scans: Sequence[Any], skipped: Sequence[Any], shown: int | None) -> None:
    """A table of scans (all, or the first ``shown``), and how many other files there are, by reason."""
    console = _console()
    table = Table("case", "kind", "voxels", "spacing in mm", "axes", "to note", title="Found")
    for scan in sorted(scans, key=lambda scan: scan.name)[:shown]:
        note = f"[red]refused:[/] {_plain(scan.refused)}" if scan.refused else _plain("; ".join(scan.warnings))
        table.add_row(
            _plain(scan.name),
            f"{scan.format} {scan.modality}".strip(),
            " x ".join(map(str, scan.shape)),
            " x ".join(f"{distance:.3g}" for distance in scan.spacing_mm),
            scan.orientation,
            note,
        )
    console.print(table)
    if shown is not None and len(scans) > shown:
        console.print(f"... and {len(scans) - shown} more")
    refused = sum(bool(scan.refused) for scan in scans)
    console.print(f"{len(scans) - refused} to predict, {refused} refused, {len(skipped)} files that are no scans")
    reasons: dict[str, list[str]] = {}
    for file in skipped:
        reasons.setdefault(file.reason, []).append(str(file.path))
    for reason, files in sorted(reasons.items()):
        console.print(
            f"  {len(files)} skipped: {_plain(reason)} ({_plain(files[0])}{' ...' if len(files) > 1 else ''})"
        )


def show_result(output: Path, counts: dict[str, int]) -> None:
    """How many were predicted, and where everything lies."""
    console = _console()
    console.print(f"{counts['predicted']} predicted, {counts['refused']} refused")
    for what, name in {
        "predictions": "predictions.csv",
        "the same with more": "predictions.json",
        "what made them": "run.json",
        "to look at": "report.html",
    }.items():
        if (output / name).is_file():
            console.print(f"{what}: {output / name}", highlight=False, markup=False)


def _console() -> Console:
    """A console that breaks lines on a terminal only, so that a log file can be searched by line."""
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = 250
    return console


def _plain(text: str) -> str:
    """A text from outside, as text: no markup, and no control characters for the terminal."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text))
