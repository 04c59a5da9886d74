# SPDX-License-Identifier: Apache-2.0
"""Performance of trained weights on labelled cases, from files that provably belong to the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_llmboost.artifacts.digests import file_digest
from monai_llmboost.artifacts.weights import load_weights
from monai_llmboost.engines.checkpoint_files import BEST, LAST, WEIGHTS
from monai_llmboost.engines.curves import CURVES, read_curves
from monai_llmboost.engines.progress import DIGEST
from monai_llmboost.engines.results import METRICS_FILE

# Largest difference of a number that two files contain with different numbers of digits.
SAME = 1e-6
# Metrics of classifications and segmentations, with their labels; validation chooses by AUC or Dice.
LABELS = {"auc": "AUC", "acc": "ACC", "dice": "Dice"}
CHOSEN_BY = ("val_auc", "val_dice")
NONE = (
    "No figures on how well these weights perform were found: a probability alone does not say how often it is right."
)


def weights_digest(ckpt_dir: str | Path, weights: str = "best") -> str:
    """Return the sha256 of the weights for an evaluation; empty if there are none."""
    path = Path(ckpt_dir) / WEIGHTS.get(weights, weights)
    return file_digest(path) if path.is_file() else ""


def figures_of(weights: str | Path, folders: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """Return the figures of a weight file from ``"evaluation"`` and ``"validation"``.

    An evaluation is used if its ``metrics.json`` has the digest of these weights. Validation is used if
    ``learning_curves.csv`` agrees with the ``last.pt`` next to the weights and ``last.pt`` has their digest (in earlier
    versions: was written after them).

    Args:
        weights: the file.
        folders: possible output folders of training and evaluation.
    """
    path = Path(weights)
    if not path.is_file():
        return {}
    digest, figures = file_digest(path), {}
    for folder in dict.fromkeys([path.parent, *map(Path, folders)]):
        metrics = _metrics(folder / METRICS_FILE)
        if "evaluation" not in figures and metrics.get("weights_sha256") == digest:
            numbers = [key for name in LABELS for key in (name, f"{name}_interval_95")]
            keys = ("dataset", "split", "folds", "fold", "cases", *numbers)
            figures["evaluation"] = {key: metrics[key] for key in keys if metrics.get(key) is not None}
        if "validation" not in figures and (row := _validation(path, folder / CURVES)):
            figures["validation"] = row
    return figures


def sentences(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the figures as sentences, or a sentence that there are none."""
    sentences = []
    if evaluation := figures.get("evaluation"):
        split, folds = evaluation.get("split", "test"), evaluation.get("folds")
        fold = f"fold {evaluation.get('fold')} of {folds}" if folds and split != "test" else None
        source = ", ".join(filter(None, (evaluation.get("dataset"), f"{split} split", fold)))
        numbers = [_number(evaluation, name) for name in LABELS if name in evaluation]
        sentences.append(
            f"Evaluated on {evaluation.get('cases', '?')} labelled cases ({source}): {', '.join(numbers)}."
        )
    if validation := figures.get("validation"):
        numbers = [_number(validation, name) for name in LABELS if name in validation]
        sentences.append(f"In training, validation gave {', '.join(numbers)} (best epoch, {validation['epoch']}).")
    return sentences or [NONE]


def _number(figures: Mapping[str, Any], name: str) -> str:
    interval = figures.get(f"{name}_interval_95")
    return f"{LABELS[name]} {figures[name]:.3f}" + (" [{:.3f}, {:.3f}]".format(*interval) if interval else "")


def _metrics(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _validation(weights: Path, curves: Path) -> dict[str, Any]:
    """Return the row of the best epoch, if both files belong to the training of the weights."""
    last = weights.with_name(LAST)
    try:
        state = load_weights(last)
        best, digest = state["best"], state.get(DIGEST)
        # Earlier versions kept no digest; the times of the files are compared instead.
        earlier = weights.name == BEST and weights.stat().st_mtime_ns <= last.stat().st_mtime_ns
        if not (earlier if digest is None else file_digest(weights) == digest):
            return {}
        rows = [row for row in read_curves(curves) if row["epoch"] == best["epoch"]]
        values = [row[key] for row in rows for key in CHOSEN_BY if key in row]
        if not values or abs(values[0] - best["value"]) > SAME:
            return {}
    except (OSError, ValueError, LookupError, TypeError):  # files are missing or are of another kind
        return {}
    found = rows[0]
    return {"epoch": found["epoch"], **{name: found[f"val_{name}"] for name in LABELS if f"val_{name}" in found}}
