# SPDX-License-Identifier: Apache-2.0
"""How well trained weights performed on labelled cases, as far as files next to them prove it."""

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

# Largest difference of a number that two files hold with other numbers of digits.
SAME = 1e-6
NONE = (
    "No figures on how well these weights perform were found: a probability alone does not say how often it is right."
)


def weights_digest(ckpt_dir: str | Path, weights: str = "best") -> str:
    """Return the sha256 of the weights that an evaluation reads; empty if there are none."""
    path = Path(ckpt_dir) / WEIGHTS.get(weights, weights)
    return file_digest(path) if path.is_file() else ""


def figures_of(weights: str | Path, folders: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """Return the figures of a file of weights, of ``"evaluation"`` and ``"validation"``.

    An evaluation counts if its ``metrics.json`` has the digest of these weights, validation if the
    ``learning_curves.csv`` agrees with the ``last.pt`` next to the weights, which has their digest (or, of an earlier
    version, was written after them).

    Args:
        weights: the file.
        folders: where training and evaluation may have written.
    """
    path = Path(weights)
    if not path.is_file():
        return {}
    digest, figures = file_digest(path), {}
    for folder in dict.fromkeys([path.parent, *map(Path, folders)]):
        metrics = _metrics(folder / METRICS_FILE)
        if "evaluation" not in figures and metrics.get("weights_sha256") == digest:
            keys = ("dataset", "split", "folds", "fold", "cases", "auc", "auc_interval_95", "acc", "acc_interval_95")
            figures["evaluation"] = {key: metrics[key] for key in keys if key in metrics}
        if "validation" not in figures and (row := _validation(path, folder / CURVES)):
            figures["validation"] = row
    return figures


def sentences(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the figures as sentences, or that there are none."""
    sentences = []
    if evaluation := figures.get("evaluation"):
        split, folds = evaluation.get("split", "test"), evaluation.get("folds")
        fold = f"fold {evaluation.get('fold')} of {folds}" if folds and split != "test" else None
        source = ", ".join(filter(None, (evaluation.get("dataset"), f"{split} split", fold)))
        numbers = [_number(evaluation, name) for name in ("auc", "acc") if name in evaluation]
        sentences.append(
            f"Evaluated on {evaluation.get('cases', '?')} labelled cases ({source}): {', '.join(numbers)}."
        )
    if validation := figures.get("validation"):
        numbers = [_number(validation, name) for name in ("auc", "acc") if name in validation]
        sentences.append(f"In training, validation gave {', '.join(numbers)} (best epoch, {validation['epoch']}).")
    return sentences or [NONE]


def _number(figures: Mapping[str, Any], name: str) -> str:
    interval = figures.get(f"{name}_interval_95")
    return f"{name.upper()} {figures[name]:.3f}" + (" [{:.3f}, {:.3f}]".format(*interval) if interval else "")


def _metrics(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _validation(weights: Path, curves: Path) -> dict[str, Any]:
    """Return the row of the best epoch, if both files are of the training that the weights come from."""
    last = weights.with_name(LAST)
    try:
        state = load_weights(last)
        best, digest = state["best"], state.get(DIGEST)
        # Earlier versions kept no digest: then these are the weights before the last epoch's.
        earlier = weights.name == BEST and weights.stat().st_mtime_ns <= last.stat().st_mtime_ns
        if not (earlier if digest is None else file_digest(weights) == digest):
            return {}
        rows = [row for row in read_curves(curves) if row["epoch"] == best["epoch"] and "val_auc" in row]
        if not rows or abs(rows[0]["val_auc"] - best["value"]) > SAME:
            return {}
    except (OSError, ValueError, LookupError, TypeError):  # missing, or files of something else, which prove nothing
        return {}
    keys = {"auc": "val_auc", "acc": "val_acc"}
    return {"epoch": rows[0]["epoch"], **{name: rows[0][key] for name, key in keys.items() if key in rows[0]}}
