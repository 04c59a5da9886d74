# SPDX-License-Identifier: Apache-2.0
"""The page of an evaluation: one self-contained HTML file with numbers, pictures and the most wrong cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from monai_llmboost.artifacts.drawing import house_style, keys_of, svg
from monai_llmboost.artifacts.files import atomic_text
from monai_llmboost.artifacts.page import style_of, template_folders, visible
from monai_llmboost.engines.evaluation.cases import EvaluatedCases
from monai_llmboost.engines.evaluation.page import figures
from monai_llmboost.tasks import predicted_classes, reliability

HERE = Path(__file__).parent
NUM_WRONG = 12
SINGLE = {
    "auc": ("AUC", "0.5 is chance, 1 is perfect"),
    "balanced_accuracy": ("Balanced accuracy", "mean of the classes' recalls"),
    "sensitivity": ("Sensitivity", "fraction of the positive cases that are found"),
    "specificity": ("Specificity", "fraction of the other cases that are left alone"),
    "acc": ("ACC", "fraction of cases whose most probable class is right"),
    "calibration_error": ("Calibration error", "mean distance of probability and accuracy; 0 is perfect"),
}


@dataclass(frozen=True)
class Wrong:
    """A case with a wrong prediction.

    Args:
        case: its name.
        label: name of its class.
        predicted: name of the predicted class.
        probability: probability of its class.
    """

    case: str
    label: str
    predicted: str
    probability: float


def write_evaluation_page(
    path: Path, cases: EvaluatedCases, about: Mapping[str, Any], numbers: Mapping[str, Any]
) -> None:
    """Write an evaluation as one HTML file without scripts, which sends no request to any server.

    Names of classes and cases are shown as text, never as HTML; characters that are not seen are escaped.

    Args:
        path: the file; an earlier one is renamed.
        cases: evaluated cases.
        about: provenance, shown completely.
        numbers: numbers as in ``metrics.json``, with the ``confusion_matrix`` and its class names.
    """
    class_names = [visible(name) for name in numbers["confusion_matrix"]["class_names"]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_folders(HERE)),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "interval": _interval}
    with house_style():
        key = keys_of({str(number): figures.look_of_class(number) for number in range(len(class_names))})
        text = environment.get_template("report.html").render(
            about=about,
            numbers=numbers,
            class_names=class_names,
            count=cases.count(),
            counts=np.array(numbers["confusion_matrix"]["counts"]),
            single={name: words for name, words in SINGLE.items() if name in numbers},
            pictures=_pictures(cases, class_names, numbers),
            key=lambda number: key(str(number)),
            wrong=most_wrong(cases, class_names, numbers.get("threshold")),
            num_wrong=_count_wrong(cases, numbers.get("threshold")),
            style=style_of(HERE),
        )
    with atomic_text(path) as file:
        file.write(text)


def most_wrong(cases: EvaluatedCases, class_names: Sequence[str], threshold: float | None) -> list[Wrong]:
    """Return the wrongly predicted cases whose own class has the smallest probability, at most 12.

    Args:
        cases: evaluated cases.
        class_names: names of the classes.
        threshold: threshold of two classes; ``None``: the most probable class is predicted.
    """
    predicted = predicted_classes(cases.scores, threshold)
    own = cases.scores[np.arange(len(cases.labels)), cases.labels]
    found = [int(i) for i in np.argsort(own, kind="stable") if predicted[i] != cases.labels[i]][:NUM_WRONG]
    names = ["\N{EN DASH}"] * len(own) if cases.names is None else list(map(str, cases.names))
    return [Wrong(names[i], class_names[cases.labels[i]], class_names[predicted[i]], float(own[i])) for i in found]


def _count_wrong(cases: EvaluatedCases, threshold: float | None) -> int:
    return int((predicted_classes(cases.scores, threshold) != cases.labels).sum())


def _pictures(cases: EvaluatedCases, class_names: Sequence[str], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pictures as SVG by name, and the areas under the ROC curves by class."""
    threshold = numbers.get("threshold")
    curves, areas = _curves(cases, len(class_names))
    chosen = None if threshold is None else (1 - numbers["specificity"], numbers["sensitivity"])
    found = reliability(cases.scores, cases.labels)
    parts = "; ".join(f"{class_names[number]}: AUC {area:.3f}" for number, area in areas.items())
    error = f"Calibration error {numbers['calibration_error']:.3f}"
    of_histograms = (
        f"Probabilities of {class_names[1] if threshold is not None else 'each class'}, by class of the case"
    )
    return {
        "areas": areas,
        "roc": svg(figures.roc(curves, chosen), "roc", f"ROC curve. {parts}"),
        "reliability": svg(figures.reliability(found, len(class_names)), "reliability", f"Reliability. {error}"),
        "histograms": svg(
            figures.histograms(list(_splits(cases, class_names)), threshold), "histograms", of_histograms
        ),
    }


def _curves(cases: EvaluatedCases, classes: int) -> tuple[list[figures.Curve], dict[int, float]]:
    """Return the ROC curve and its area for each class against the others; two classes have one curve."""
    from sklearn.metrics import auc, roc_curve

    curves, areas = [], {}
    for number in [1] if classes == 2 else range(classes):
        false_positive, true_positive, _ = roc_curve(cases.labels == number, cases.scores[:, number])
        look = figures.look_of_class(0 if classes == 2 else number)
        curves.append(figures.Curve(look, false_positive, true_positive))
        areas[number] = float(auc(false_positive, true_positive))
    return curves, areas


def _splits(cases: EvaluatedCases, class_names: Sequence[str]) -> Iterator[figures.Split]:
    two = len(class_names) == 2
    for number in [1] if two else range(len(class_names)):
        own = cases.labels == number
        other = figures.look_of_class(0) if two else figures.OTHERS
        names = (class_names[number], class_names[0] if two else "all others")
        values = cases.scores[:, number]
        yield figures.Split((figures.look_of_class(number), other), names, values[own], values[~own])


def _number(value: float) -> str:
    return f"{value:.3f}"


def _interval(ends: Sequence[float]) -> Markup:
    low, high = ends
    return Markup(f"[{low:.3f}, {high:.3f}]")  # digits only
