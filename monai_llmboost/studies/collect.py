# SPDX-License-Identifier: Apache-2.0
"""The files of a study's runs -> one dictionary with everything that was found."""

from __future__ import annotations

import csv
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from sklearn.metrics import roc_curve

from monai_llmboost.artifacts.files import plain_cell
from monai_llmboost.bundle import bundle_path
from monai_llmboost.engines.curves import read_curves
from monai_llmboost.studies.cost.measure import device_name
from monai_llmboost.studies.datasets import parser_of
from monai_llmboost.studies.one_run import DIVERGED, JUDGED, TRAINED, told
from monai_llmboost.studies.plan import Plan, Run
from monai_llmboost.studies.statistics.compare import arm_summary, compare_arms

SOFTWARE = ("monai-llmboost", "monai", "torch", "numpy", "scikit-learn", "scipy")
CHOSEN_BY = {"best": "epoch of the best validation AUC", "last": "last epoch"}
# Where the ROC curves are told.
RATES = np.linspace(0, 1, 101)


def collect(
    plan: Plan,
    folder: Path,
    chosen: Mapping[str, Mapping[str, float | None]],
    failed: Mapping[str, str],
    costs: Mapping[str, Any],
) -> dict[str, Any]:
    """All results of a study, as ``results.json`` holds them.

    Args:
        plan: the study.
        folder: of its runs.
        chosen: for each data set the learning rate of each arm; an arm that is missing has failed.
        failed: name of a run -> why it failed.
        costs: what :func:`monai_llmboost.studies.cost_of_arms` measured.
    """
    parser = parser_of(plan, plan.datasets[0])
    return {
        "study": {**plan.as_dict(), "chosen_by": CHOSEN_BY[plan.weights]},
        "software": {name: version(name) for name in SOFTWARE},
        "device": device_name(torch.device(parser.get_parsed_content("device"))),
        "command": shlex.join(["monai-llmboost", *sys.argv[1:]]),
        "model_card": ConfigParser.load_config_file(bundle_path(plan.bundle) / "configs" / "metadata.json").get(
            "intended_use", ""
        ),
        "datasets": {name: _of_dataset(plan, folder, name, chosen[name], failed, costs) for name in plan.datasets},
    }


def chosen_rates(plan: Plan, folder: Path, dataset: str) -> dict[str, dict[str, Any]]:
    """For each arm the learning rate of the largest mean validation AUC, and all means; nothing for arms without runs.

    The means are of the weights that the study reads. A rate by which a run diverged is never chosen; one by which more
    runs failed than by others is left out.
    """
    rates: dict[str, dict[str, Any]] = {}
    if len(plan.lr_grid) < 2:
        only = plan.lr_grid[0] if plan.lr_grid else None
        return {arm: {"chosen": only, "validation_auc": {}, "diverged": [], "at_edge": False} for arm in plan.arms}
    for arm in plan.arms:
        means, counts, diverged = {}, {}, []
        for rate in plan.lr_grid:
            runs = [run for run in plan.searched(dataset) if (run.arm, run.learning_rate) == (arm, rate)]
            if any(told(folder / run.name, DIVERGED) for run in runs):
                diverged.append(rate)
                continue
            ends = [told(folder / run.name, TRAINED) for run in runs]
            values = [end[plan.weights]["validation_auc"] for end in ends if end]
            if values:
                means[rate], counts[rate] = statistics.fmean(values), len(values)
        # A rate by which some runs failed is not judged by those that did not.
        means = {rate: mean for rate, mean in means.items() if counts[rate] == max(counts.values())}
        if means:
            best = max(means, key=means.__getitem__)
            at_edge = best in (min(plan.lr_grid), max(plan.lr_grid)) and len(plan.lr_grid) > 1
            values_of = {f"{rate:g}": mean for rate, mean in means.items()}
            rates[arm] = {"chosen": best, "validation_auc": values_of, "diverged": diverged, "at_edge": at_edge}
    return rates


def _of_dataset(
    plan: Plan,
    folder: Path,
    dataset: str,
    chosen: Mapping[str, float | None],
    failed: Mapping[str, str],
    costs: Mapping[str, Any],
) -> dict[str, Any]:
    parser = parser_of(plan, dataset)
    names = parser.get_parsed_content("class_names")
    rates = chosen_rates(plan, folder, dataset)
    of_arm: dict[str, list[Run]] = {
        arm: [run for run in plan.runs(dataset, {**dict.fromkeys(plan.arms), **chosen}) if run.arm == arm]
        for arm in chosen
    }
    done = {arm: [run for run in runs if told(folder / run.name, JUDGED)] for arm, runs in of_arm.items()}
    # Pairs are runs of one seed: where one arm has failed, the others' runs of that seed have nothing beside them.
    folds = plan.folds or 1
    counts = [Counter(run.seed for run in runs) for runs in done.values() if runs]
    paired = {seed for seed in range(plan.seeds) if all(count[seed] == folds for count in counts)}
    whole = {arm: [run for run in runs if run.seed in paired] for arm, runs in done.items() if runs and paired}
    predictions, labels = _predictions(folder, whole, "test", names)
    beside, _ = _predictions(folder, whole, "beside", names)
    references = [arm for arm in plan.references if arm in predictions]
    arms: dict[str, dict[str, Any]] = {}
    curves, roc, diagnostics = {}, {}, {}
    for arm in plan.arms:
        reasons = [{"run": name, "reason": text} for name, text in failed.items() if _is_of(name, dataset, arm)]
        arms[arm] = {"auc": None, "acc": None, "validation_auc": None, "epochs": [], "beside": None, "failed": reasons}
        if not whole.get(arm):
            continue
        ends = [told(folder / run.name, TRAINED) or {} for run in whole[arm]]
        arms[arm] |= {
            "auc": arm_summary("auc", predictions[arm], labels, folds),
            "acc": arm_summary("acc", predictions[arm], labels, folds),
            "validation_auc": _over_runs([end[plan.weights]["validation_auc"] for end in ends]),
            "epochs": [end[plan.weights]["epoch"] for end in ends],
            "beside": {"what": CHOSEN_BY[plan.beside], "auc": arm_summary("auc", beside[arm], labels, folds)},
        }
        curves[arm] = _curves([read_curves(folder / run.name / "learning_curves.csv") for run in whole[arm]])
        roc[arm] = _roc(predictions[arm], labels)
        diagnostics[arm] = _diagnostics([(told(folder / run.name, JUDGED) or {})["diagnostics"] for run in whole[arm]])
    return {
        "cases": {split: len(parser.get_parsed_content(key)) for split, key in SPLITS.items()} | {"test": len(labels)},
        "class_names": names,
        "learning_rates": rates,
        "arms": arms,
        "comparisons": compare_arms(predictions, labels, references, folds)
        if references and len(predictions) > 1
        else [],
        "curves": curves,
        "roc": roc,
        "cost": costs,
        "diagnostics": diagnostics,
    }


SPLITS = {"train": "train#dataset", "val": "validate#dataset"}


def _is_of(name: str, dataset: str, arm: str) -> bool:
    return name.split("/")[:2] == [dataset, arm]


def _predictions(
    folder: Path, runs: Mapping[str, Sequence[Run]], place: str, names: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Of each arm (runs, cases, classes), and the labels (cases,); every run must have the same cases.

    Raises:
        ValueError: they have not.
    """
    tables: dict[str, list[np.ndarray]] = {arm: [] for arm in runs}
    cases: list[tuple[str, str]] | None = None
    for arm, several in runs.items():
        for run in several:
            with (folder / run.name / place / "predictions.csv").open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            own = [(plain_cell(row["case"]), plain_cell(row["label"])) for row in rows]
            if cases is not None and own != cases:
                raise ValueError(f"expected the same test cases of every run, {run.name} has others: remove its folder")
            cases = own
            tables[arm].append(np.array([[float(row[f"p_{name}"]) for name in names] for row in rows]))
    labels = np.array([names.index(label) for _, label in cases or []])
    return {arm: np.stack(several) for arm, several in tables.items()}, labels


def _over_runs(values: Sequence[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": spread, "runs": list(values)}


def _curves(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    columns = {"train_loss": "train_loss", "validation_auc": "val_auc"}
    told_of = {ours: [[row.get(column) for row in run] for run in runs] for ours, column in columns.items()}
    return {"epoch": [row["epoch"] for row in max(runs, key=len)], **told_of}


def _roc(predictions: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """True positive rates where :data:`RATES` are the false ones: of the last of two classes, or the mean over all."""
    classes = range(predictions.shape[2]) if predictions.shape[2] > 2 else [1]
    curves = []
    for run in predictions:
        of_class = [np.interp(RATES, *roc_curve(labels == index, run[:, index])[:2]) for index in classes]
        curves.append(np.mean(of_class, axis=0).round(5).tolist())
    return {"false_positive_rate": RATES.round(5).tolist(), "true_positive_rate": curves}


def _diagnostics(runs: Sequence[Mapping[str, float] | None]) -> dict[str, Any] | None:
    measured = [run for run in runs if run is not None]
    if not measured:
        return None
    return {name: _over_runs([run[name] for run in measured]) for name in measured[0]}
