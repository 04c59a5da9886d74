# SPDX-License-Identifier: Apache-2.0
"""One run of a study, trained and judged by its bundle, each in a process of its own; files say what was done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_llmboost.artifacts.files import written_whole
from monai_llmboost.artifacts.weights import load_weights
from monai_llmboost.bundle import root_cause
from monai_llmboost.engines.curves import read_curves
from monai_llmboost.studies.diagnostics import diagnose
from monai_llmboost.studies.plan import Plan, Run

TRAINED, DIVERGED, JUDGED = "trained.json", "diverged.json", "judged.json"
# Of the words by which validation tells that the network's output is no number any more.
DIVERGENCE = "training has diverged"


def train(plan: Plan, run: Run, folder: Path) -> None:
    """Train a run, or go on where it was interrupted; ``trained.json`` is written last and says that it is done.

    If training diverges, ``diverged.json`` says so: done again it would end like that again.
    """
    from monai.bundle import run as monai_run

    try:
        monai_run(**plan.arguments(run, "train", folder, resume=(folder / "last.pt").is_file()))
    except RuntimeError as error:
        reason = str(root_cause(error))
        if DIVERGENCE in reason:
            _write(folder / DIVERGED, {"reason": reason})
        raise
    state = load_weights(folder / "last.pt")
    curves = read_curves(folder / "learning_curves.csv")
    best = {"epoch": int(state["best"]["epoch"]), "validation_auc": float(state["best"]["value"])}
    epoch = state["progress"]["epoch"]
    # Of the last epoch itself: it is not validated where val_interval does not divide it.
    last = {"epoch": epoch, "validation_auc": {row["epoch"]: row.get("val_auc") for row in curves}.get(epoch)}
    _write(folder / TRAINED, {"best": best, "last": last})


def judge(plan: Plan, run: Run, folder: Path) -> None:
    """Predict the test split of a trained run; ``judged.json`` is written last and says that it is done.

    The predictions by the weights that the plan reads lie in ``test``, those by the others in ``beside``.
    """
    from monai.bundle import create_workflow

    diagnostics: Mapping[str, float] | None = None
    for place, weights in (("test", plan.weights), ("beside", plan.beside)):
        where = {"output_dir": str(folder / place), "weights": weights, "split": "test"}
        workflow: Any = create_workflow(**plan.arguments(run, "evaluate", folder, **where))
        workflow.run()
        if place == "test":
            batches = workflow.parser.get_parsed_content("validate#dataloader")
            diagnostics = diagnose(workflow.parser.get_parsed_content("network"), (batch["image"] for batch in batches))
        workflow.finalize()
    _write(folder / JUDGED, {"diagnostics": diagnostics})


def told(folder: Path, file: str) -> dict[str, Any] | None:
    """What a run wrote at the end of its training or judging, or ``None`` if it is not done or the file is damaged."""
    try:
        return json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # done again, the run itself says what is in its way
        return None


def _write(path: Path, value: Mapping[str, Any]) -> None:
    with written_whole(path, aside=False) as file:
        json.dump(value, file, indent=1)
        file.write("\n")
