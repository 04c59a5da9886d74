# SPDX-License-Identifier: Apache-2.0
"""Shortcuts: sizes, spacings and fields of headers that alone predict the class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer

from monai_llmboost.data.labelled import LabelledCase
from monai_llmboost.inspection.survey import CaseSurvey

# A number that orders this part of the pairs of cases correctly is reported.
SHORTCUT_AUC = 0.70
# It must also be above chance by this many standard errors. That of an AUC without any relation is known exactly
# (Mann and Whitney 1947): sqrt((m + n + 1) / (12 m n)) for m and n cases. Three of them leave a chance of about 1 in
# 700 for each number, hence of a few percent for the two dozen numbers that are tried.
ERRORS = 3.0
FOLDS = 5
AXES = ("x", "y", "z")
# Fields that are also tried with all three axes together.
TOGETHER = ("voxels", "spacing")
Field = float | str


@dataclass(frozen=True)
class Shortcut:
    """A field that alone predicts the class.

    Args:
        name: what it is, such as ``"voxels along x"``.
        auc: area under the ROC curve of held-out cases; of the class that is predicted best.
        needed: the AUC from which a field is reported.
        class_name: that class; empty if there are two.
    """

    name: str
    auc: float
    needed: float
    class_name: str = ""


def header_numbers(records: Sequence[CaseSurvey], channels: Sequence[str]) -> dict[str, list[Field]]:
    """Return fields of the headers of cases by name, each a number or text for every case."""
    found: dict[str, list[Field]] = {}
    for place, channel in enumerate(channels):
        ending = f" of {channel}" if len(channels) > 1 else ""
        rows = [_fields(record, place) for record in records]
        for name in dict.fromkeys(name for row in rows for name in row):
            column = [row.get(name, "") for row in rows]
            is_text = any(isinstance(value, str) and value for value in column)
            missing = "" if is_text else math.nan
            found[name + ending] = [missing if value == "" else str(value) if is_text else value for value in column]
    return found


def _fields(record: CaseSurvey, place: int) -> dict[str, Field]:
    one = record.channels[place]
    if one is None:
        return {"presence": "missing"}
    fields: dict[str, Field] = {f"voxels along {axis}": float(n) for axis, n in zip(AXES, one.shape)}
    fields["number of voxels"] = float(math.prod(one.shape))
    fields |= {f"spacing along {axis}": round(step, 4) for axis, step in zip(AXES, one.spacing_mm)}
    fields |= {f"size along {axis} in mm": round(size, 2) for axis, size in zip(AXES, one.size_mm)}
    fields["volume in mm³"] = round(math.prod(one.size_mm), 1)
    fields |= {"orientation": one.orientation, "modality": one.modality, "format": one.format, "presence": "there"}
    return {**fields, **one.header}


def find_shortcuts(
    cases: Sequence[LabelledCase], fields: Mapping[str, Sequence[Field]], seed: int = 0
) -> list[Shortcut]:
    """Find fields that alone predict the class of held-out cases, the best first.

    Each field is tried alone in grouped stratified cross-validation: a logistic regression on its rank, or on its
    categories if it is text. Fields with the same order of cases are reported once.

    Args:
        cases: cases with labels.
        fields: by name, a value for each case.
        seed: seed of the folds.

    Example:
        >>> cases = [LabelledCase(str(n), (str(n),), "ab"[n % 2]) for n in range(60)]
        >>> makers = ["X" if n % 2 else "Y" for n in range(60)]
        >>> [found.name for found in find_shortcuts(cases, {"Manufacturer": makers})]
        ['Manufacturer']
    """
    labels = np.array([case.label for case in cases])
    names, numbers = np.unique(labels, return_inverse=True)
    groups = np.unique(
        [f"group {case.group}" if case.group else f"case {case.name}" for case in cases], return_inverse=True
    )[1]
    units = [len(np.unique(groups[numbers == number])) for number in range(len(names))]
    folds = min([FOLDS, *units])
    if folds < 2 or len(names) < 2:
        return []
    splits = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, numbers, groups))
    if any(len(np.unique(numbers[train])) < len(names) for train, _ in splits):
        return []
    found: list[Shortcut] = []
    tried: set[bytes] = set()
    for name, (codes, is_text) in _encode(fields).items():
        if len(np.unique(codes, axis=0)) < 2 or codes.tobytes() in tried:
            continue
        tried.add(codes.tobytes())
        best = _best(_held_out(codes, numbers, splits, is_text), numbers, names, units)
        if best[0] >= best[1]:
            found.append(Shortcut(name, *best))
    return sorted(found, key=lambda shortcut: -shortcut.auc)


def _encode(fields: Mapping[str, Sequence[Field]]) -> dict[str, tuple[np.ndarray, bool]]:
    """Return fields as codes (cases, 1 or 3), and whether they are categories; some axes also together."""
    encoded = {name: (_codes(column)[:, None], any(isinstance(one, str) for one in column))
               for name, column in fields.items()}  # fmt: skip
    for name in [name for name in fields if f" along {AXES[0]}" in name and name.startswith(TOGETHER)]:
        axes = [name.replace(f" along {AXES[0]}", f" along {axis}") for axis in AXES]
        varied = [encoded[axis][0] for axis in axes if axis in encoded and np.ptp(encoded[axis][0]) > 0]
        if len(varied) > 1:
            together = name.replace(f" along {AXES[0]}", " along all axes together")
            encoded[together] = (np.concatenate(varied, axis=1), False)
    return encoded


def _codes(column: Sequence[Field]) -> np.ndarray:
    """Return the rank of each value among the different ones, which is all that is used of it."""
    if any(isinstance(value, str) for value in column):
        return np.unique([str(value) for value in column], return_inverse=True)[1].astype(float)
    numbers = np.array(column, dtype=float)
    return np.unique(np.where(np.isnan(numbers), -np.inf, numbers), return_inverse=True)[1].astype(float)


def _held_out(codes: np.ndarray, numbers: np.ndarray, splits: Sequence[tuple], is_text: bool) -> np.ndarray:
    probabilities = np.zeros((len(codes), numbers.max() + 1))
    for train, test in splits:
        first = (
            OneHotEncoder(handle_unknown="ignore") if is_text else QuantileTransformer(n_quantiles=min(100, len(train)))
        )
        model = make_pipeline(first, LogisticRegression(max_iter=1000, C=10.0)).fit(codes[train], numbers[train])
        probabilities[test] = model.predict_proba(codes[test])
    return probabilities


def _best(
    probabilities: np.ndarray, numbers: np.ndarray, names: np.ndarray, units: Sequence[int]
) -> tuple[float, float, str]:
    """Return AUC, needed AUC and name of the class that is furthest above what it needs."""
    found = []
    for number in range(len(names)) if len(names) > 2 else [1]:
        auc = float(roc_auc_score(numbers == number, probabilities[:, number]))
        one, rest = units[number], sum(units) - units[number]
        chance = math.sqrt((one + rest + 1) / (12 * one * rest))
        found.append((auc, max(SHORTCUT_AUC, 0.5 + ERRORS * chance), str(names[number]) if len(names) > 2 else ""))
    return max(found, key=lambda one: one[0] - one[1])
