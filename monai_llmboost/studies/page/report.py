# SPDX-License-Identifier: Apache-2.0
"""The report of a study as one self-contained HTML page: first the findings, then the evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from monai_llmboost.artifacts.drawing import Look, house_style, keys_of, look_of, svg
from monai_llmboost.artifacts.files import atomic_text
from monai_llmboost.artifacts.page import style_of, template_folders
from monai_llmboost.studies.cost.arms import cost_rows
from monai_llmboost.studies.diagnostics import MEASURES
from monai_llmboost.studies.label_fractions import WHOLE, set_name
from monai_llmboost.studies.page import figures, words
from monai_llmboost.studies.statistics.verdict import without_caveats

HERE = Path(__file__).parent
# For results of earlier versions, which do not name their metrics.
METRICS = {"auc": {"label": "AUC"}, "acc": {"label": "ACC"}}
COSTS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "trained weights, millions": lambda cost: cost["trained"] / 1e6,
    "GFLOP per volume, forward": lambda cost: cost["forward_flops"] / 1e9,
}


@dataclass(frozen=True)
class Picture:
    """A figure, its caption, and its text alternative for screen readers."""

    figure: Figure
    caption: str
    label: str


@dataclass(frozen=True)
class Shown:
    """The data of the pictures.

    Args:
        datasets: results by data set, as in ``results.json``.
        looks: looks of the arms.
        metrics: by name, with label and whether larger is better; validation chooses by the first one.
        fractions: by data set, the results with each fraction of the labels.
    """

    datasets: Mapping[str, Any]
    looks: Mapping[str, Look]
    metrics: Mapping[str, Mapping[str, Any]]
    fractions: Mapping[str, Mapping[float, Any]]

    @property
    def key(self) -> str:
        """Name of the metric that validation chooses by."""
        return next(iter(self.metrics))

    @property
    def label(self) -> str:
        """Label of the metric that validation chooses by."""
        return self.labels[self.key]

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the metrics by name."""
        return {name: metric["label"] for name, metric in self.metrics.items()}

    def by_arm(self, data: Mapping[str, Any], part: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield a part of a data set's results, such as "roc", for each arm that has it."""
        given = data.get(part) or {}
        return ((arm, given[arm]) for arm in self.looks if given.get(arm))

    def mean(self, data: Mapping[str, Any], arm: str) -> str:
        """Return an arm's mean of the metric :attr:`key` as text."""
        return words.number(words.value((data["arms"].get(arm) or {}).get(self.key), "mean"))


def write_study_report(results: Mapping[str, Any], path: Path) -> None:
    """Write a study as one HTML file without scripts, which needs no server.

    Strings in the results are shown as plain text, never as HTML. Equal results give equal bytes. An earlier file is
    replaced.

    Args:
        results: content of ``results.json``: ``study`` (``bundle``, ``arms``, ``seeds``, ``lr_grid`` ...), ``metrics``
            (missing before version 0.2), ``software``, ``device``, ``command``, ``model_card`` and ``datasets``, by
            name each with ``cases``, ``class_names``, ``learning_rates``, ``arms``, ``comparisons``, ``curves``,
            ``roc``, ``cost``, ``diagnostics`` and ``floors`` (missing before there were any). Numbers, runs and arms
            may be ``None`` if a run failed or the value is unknown.
        path: file to write.

    Raises:
        ValueError: a comparison or a curve of an arm that is not in the study.
    """
    results = words.visible(results)
    arms, floors = list(results["study"]["arms"]), list(results["study"].get("floors") or ())
    _check_arms(results["datasets"], [*arms, *floors])
    looks = {arm: look_of(number) for number, arm in enumerate([*arms, *floors])}
    shown = Shown(results["datasets"], looks, results.get("metrics") or METRICS, _by_fraction(results))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_folders(HERE)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        **{name: getattr(words, name) for name in ("finite", "interval", "number", "plain", "probability", "signed")},
        "mean": lambda statistic: words.value(statistic, "mean"),
        "sd": lambda statistic: words.value(statistic, "sd"),
        "without": lambda verdict, caveats: without_caveats(verdict, caveats or []),
    }
    with house_style():
        text = environment.get_template("report.html").render(
            {name: part for name, part in results.items() if name != "metrics"},
            arms=arms,
            floors=[floor for floor in floors if any(data["arms"].get(floor) for data in shown.datasets.values())],
            key=keys_of(looks),
            pictures={group: list(_finished(group, draw(shown))) for group, draw in PICTURES.items()},
            metrics=shown.labels,
            main=shown.key,
            cost_rows=cost_rows,
            measures=MEASURES,
            style=style_of(HERE),
        )
    with atomic_text(path, aside=False) as file:
        file.write(text)


def _by_fraction(results: Mapping[str, Any]) -> dict[str, dict[float, Any]]:
    """Return for each data set its results with each fraction of the labels."""
    fractions, data = results["study"].get("label_fractions") or WHOLE, results["datasets"]
    return {
        dataset: {fraction: data[name] for fraction in fractions if (name := set_name(dataset, fraction)) in data}
        for dataset in results["study"].get("datasets") or data
    }


def _check_arms(datasets: Mapping[str, Any], arms: Sequence[str]) -> None:
    for name, data in datasets.items():
        comparisons = [*data["comparisons"], *((data.get("floors") or {}).get("comparisons") or ())]
        named = {each[side] for each in comparisons for side in ("arm", "reference")}
        named |= {arm for part in ("arms", "curves", "roc") for arm in data.get(part) or ()}
        if unknown := sorted(named - set(arms)):
            raise ValueError(
                f"the results on {name!r} have the arms {unknown}, the study has {arms}: "
                "name every arm under study, arms"
            )


def _finished(group: str, pictures: Iterator[Picture]) -> Iterator[dict[str, Any]]:
    for number, picture in enumerate(pictures):
        yield {"caption": picture.caption, "svg": svg(picture.figure, f"{group}{number}", picture.label)}


def _forests(shown: Shown) -> Iterator[Picture]:
    return _differences(shown, lambda data: data["comparisons"], shown.metrics)


def _floor_forests(shown: Shown) -> Iterator[Picture]:
    return _differences(shown, lambda data: (data.get("floors") or {}).get("comparisons") or (), [shown.key])


def _differences(
    shown: Shown, comparisons_of: Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]], metrics: Iterable[str]
) -> Iterator[Picture]:
    """Draw some comparisons of each data set by some metrics; all pictures of a metric have one scale."""

    def compared(data: Mapping[str, Any], metric: str) -> list[Mapping[str, Any]]:
        return [each for each in comparisons_of(data) if each["metric"] == metric]

    datasets = shown.datasets
    furthest = {
        metric: figures.reach([each for data in datasets.values() for each in compared(data, metric)])
        for metric in metrics
    }
    for name, data in datasets.items():
        for metric in metrics:
            if comparisons := compared(data, metric):
                parts = (
                    f"{each['arm']} against {each['reference']}: {words.signed(words.value(each, 'difference'))} "
                    f"{words.interval(each['intervals'].get('both'))}"
                    for each in comparisons
                )
                larger = shown.metrics[metric].get("larger_is_better", True)
                figure = figures.forest(comparisons, shown.looks, furthest[metric], larger)
                caption = f"{name}: difference in {shown.labels[metric]}"
                yield Picture(figure, caption, f"{caption} with its interval over seeds and cases. {'; '.join(parts)}")


def _rocs(shown: Shown) -> Iterator[Picture]:
    for name, data in shown.datasets.items():
        curves = {arm: curve for arm, curve in shown.by_arm(data, "roc") if any(curve["true_positive_rate"])}
        if curves:
            rates = next(iter(curves.values()))["false_positive_rate"]
            runs = {arm: curve["true_positive_rate"] for arm, curve in curves.items()}
            parts = (f"{arm}: {shown.label} {shown.mean(data, arm)}" for arm in curves)
            yield Picture(figures.roc(rates, runs, shown.looks), name, f"ROC curves on {name}. {'; '.join(parts)}")


def _learning(shown: Shown) -> Iterator[Picture]:
    titles = {"train_loss": "training loss", f"validation_{shown.key}": f"validation {shown.label}"}
    for name, data in shown.datasets.items():
        for key, title in titles.items():
            curves = {arm: curve for arm, curve in shown.by_arm(data, "curves") if any(curve[key] or ())}
            if curves:
                runs = {arm: [run for run in curve[key] if run] for arm, curve in curves.items()}
                figure = figures.learning({arm: curve["epoch"] for arm, curve in curves.items()}, runs, shown.looks)
                parts = (
                    f"{arm}: {', '.join(words.number(words.value({'last': run[-1]}, 'last')) for run in each)}"
                    for arm, each in runs.items()
                )
                label = f"{title[0].upper()}{title[1:]} by epoch on {name}. Last of each run: {'; '.join(parts)}"
                yield Picture(figure, f"{name}: {title}", label)


def _label_curves(shown: Shown) -> Iterator[Picture]:
    for name, by_fraction in shown.fractions.items():
        scores: dict[str, dict[float, Mapping[str, Any]]] = {}
        for arm in shown.looks:
            found: dict[float, Any] = {
                fraction: (data["arms"].get(arm) or {}).get(shown.key) for fraction, data in by_fraction.items()
            }
            found = {fraction: score for fraction, score in found.items() if words.value(score, "mean") is not None}
            if len(found) > 1:
                scores[arm] = found
        if scores:
            parts = (
                f"{arm}: {', '.join(_fraction_texts(shown, by_fraction, arm, found))}" for arm, found in scores.items()
            )
            caption = f"{name}: {shown.label}"
            label = f"{shown.label} against the fraction of training labels on {name}. {'; '.join(parts)}"
            yield Picture(figures.label_curves(scores, shown.looks), caption, label)


def _fraction_texts(
    shown: Shown, by_fraction: Mapping[float, Any], arm: str, fractions: Iterable[float]
) -> Iterator[str]:
    return (f"{100 * each:g} %: {shown.mean(by_fraction[each], arm)}" for each in sorted(fractions))


def _radars(shown: Shown) -> Iterator[Picture]:
    if len(shown.fractions) < 3 or any(1 not in by_fraction for by_fraction in shown.fractions.values()):
        return
    whole = {name: by_fraction[1] for name, by_fraction in shown.fractions.items()}
    for metric, title in shown.labels.items():
        values = {
            arm: [words.value((data["arms"].get(arm) or {}).get(metric), "mean") for data in whole.values()]
            for arm in shown.looks
        }
        values = {arm: around for arm, around in values.items() if words.finite(around)}
        if values:
            low, high = figures.radar_range(values)
            parts = (f"{arm}: {', '.join(map(words.number, around))}" for arm, around in values.items())
            caption = f"Mean {title} on each data set; the middle is {low:.2f}, the rim {high:.2f}"
            label = f"{caption}. {', '.join(whole)}: {'; '.join(parts)}"
            yield Picture(figures.radar(list(whole), values, shown.looks), caption, label)


def _costs(shown: Shown) -> Iterator[Picture]:
    for name, data in shown.datasets.items():
        measured = (data.get("cost") or {}).get("arms") or {}
        scores = _measured_scores(shown, data, measured)
        for title, cost in COSTS.items():
            spent = {arm: cost(measured[arm]) for arm in scores}
            spent = {arm: x for arm, x in spent.items() if x > 0 and math.isfinite(x)}
            if spent:
                figure = figures.cost(spent, scores, shown.looks)
                figure.axes[0].set_xlabel(title)
                parts = (f"{arm}: {words.plain(x)}, {shown.label} {shown.mean(data, arm)}" for arm, x in spent.items())
                label = f"{shown.label} against {title} on {name}. {'; '.join(parts)}"
                yield Picture(figure, f"{name}: {shown.label}", label)


def _measured_scores(
    shown: Shown, data: Mapping[str, Any], measured: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """Return the scores of the arms with a measured cost; arms without a mean are left out."""
    scores = {arm: (data["arms"].get(arm) or {}).get(shown.key) or {} for arm in shown.looks if measured.get(arm)}
    return {arm: score for arm, score in scores.items() if words.value(score, "mean") is not None}


PICTURES: dict[str, Callable[[Shown], Iterator[Picture]]] = {
    "forest": _forests, "floors": _floor_forests, "labels": _label_curves, "roc": _rocs, "learning": _learning,
    "radar": _radars, "cost": _costs,
}  # fmt: skip
