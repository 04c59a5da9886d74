# SPDX-License-Identifier: Apache-2.0
"""A study as one page: first what was found, then what it rests on, in a file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure

from monai_llmboost.artifacts.files import written_whole
from monai_llmboost.artifacts.page import style_of
from monai_llmboost.studies.cost.arms import ROWS
from monai_llmboost.studies.diagnostics import MEASURES
from monai_llmboost.studies.page import figures, words
from monai_llmboost.studies.page.drawing import Look, house_style, keys_of, look_of, svg

HERE = Path(__file__).parent
METRICS = {"auc": "AUC", "acc": "ACC"}
COSTS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "trained weights, millions": lambda cost: cost["trained"] / 1e6,
    "GFLOP per volume, forwards": lambda cost: cost["forward_flops"] / 1e9,
}
CURVES = {"train_loss": "Training loss", "validation_auc": "Validation AUC"}


class Picture(NamedTuple):
    """A figure, what stands under it, and its text for those who do not see it."""

    figure: Figure
    caption: str
    label: str


def write_study_report(results: Mapping[str, Any], path: Path) -> None:
    """Write a study as one HTML file, which asks nothing of any server and runs no script.

    Whatever stands in the results is shown as text. The same results give the same bytes. An earlier file is replaced.

    Args:
        results: what a study found, as its ``results.json`` holds it: ``study`` (``bundle``, ``arms``, ``seeds``,
            ``lr_grid`` ...), ``software``, ``device``, ``command``, ``model_card`` and ``datasets``, by name each with
            ``cases``, ``class_names``, ``learning_rates``, ``arms``, ``comparisons``, ``curves``, ``roc``, ``cost`` and
            ``diagnostics``. Numbers, runs and arms may be ``None`` where a run failed or there is nothing to tell.
        path: file to be written.

    Raises:
        ValueError: a comparison or a curve of an arm that the study does not name.
    """
    results = words.visible(results)
    arms = list(results["study"]["arms"])
    _check_arms(results["datasets"], arms)
    looks = {arm: look_of(number) for number, arm in enumerate(arms)}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        **{name: getattr(words, name) for name in ("finite", "interval", "number", "plain", "probability", "signed")},
        "mean": lambda statistic: words.value(statistic, "mean"),
        "sd": lambda statistic: words.value(statistic, "sd"),
    }
    with house_style():
        text = environment.get_template("report.html").render(
            results,
            arms=arms,
            key=keys_of(looks),
            pictures={
                group: list(_finished(group, draw(results["datasets"], looks))) for group, draw in PICTURES.items()
            },
            metrics=METRICS,
            cost_rows=ROWS,
            measures=MEASURES,
            style=style_of(HERE),
        )
    with written_whole(path, aside=False) as file:
        file.write(text)


def _check_arms(datasets: Mapping[str, Any], arms: Sequence[str]) -> None:
    for name, data in datasets.items():
        named = {each[side] for each in data["comparisons"] for side in ("arm", "reference")}
        named |= {arm for part in ("arms", "curves", "roc") for arm in data.get(part) or ()}
        if unknown := sorted(named - set(arms)):
            raise ValueError(
                f"expected results of the study's arms {arms}, got those of {unknown} on {name!r}: "
                "name every arm under study, arms"
            )


def _finished(group: str, pictures: Iterator[Picture]) -> Iterator[dict[str, Any]]:
    for number, picture in enumerate(pictures):
        yield {"caption": picture.caption, "svg": svg(picture.figure, f"{group}{number}", picture.label)}


def _forests(datasets: Mapping[str, Any], looks: Mapping[str, Look]) -> Iterator[Picture]:
    def of(data: Mapping[str, Any], metric: str) -> list[Mapping[str, Any]]:
        return [each for each in data["comparisons"] if each["metric"] == metric]

    furthest = {
        metric: figures.reach([each for data in datasets.values() for each in of(data, metric)]) for metric in METRICS
    }
    for name, data in datasets.items():
        for metric, title in METRICS.items():
            if comparisons := of(data, metric):
                told = (
                    f"{each['arm']} against {each['reference']}: {words.signed(words.value(each, 'difference'))} "
                    f"{words.interval(each['intervals'].get('both'))}"
                    for each in comparisons
                )
                figure = figures.forest(comparisons, looks, furthest[metric])
                caption = f"{name}: difference in {title}"
                yield Picture(figure, caption, f"{caption} with its interval over seeds and cases. {'; '.join(told)}")


def _rocs(datasets: Mapping[str, Any], looks: Mapping[str, Look]) -> Iterator[Picture]:
    for name, data in datasets.items():
        curves = {arm: curve for arm, curve in _by_arm(data, "roc", looks) if any(curve["true_positive_rate"])}
        if curves:
            rates = next(iter(curves.values()))["false_positive_rate"]
            runs = {arm: curve["true_positive_rate"] for arm, curve in curves.items()}
            told = (f"{arm}: AUC {_mean(data, arm)}" for arm in curves)
            yield Picture(figures.roc(rates, runs, looks), name, f"ROC curves on {name}. {'; '.join(told)}")


def _learning(datasets: Mapping[str, Any], looks: Mapping[str, Look]) -> Iterator[Picture]:
    for name, data in datasets.items():
        for key, title in CURVES.items():
            curves = {arm: curve for arm, curve in _by_arm(data, "curves", looks) if any(curve[key] or ())}
            if curves:
                runs = {arm: [run for run in curve[key] if run] for arm, curve in curves.items()}
                figure = figures.learning({arm: curve["epoch"] for arm, curve in curves.items()}, runs, looks)
                told = (
                    f"{arm}: {', '.join(words.number(words.value({'last': run[-1]}, 'last')) for run in each)}"
                    for arm, each in runs.items()
                )
                caption = f"{name}: {title[0].lower() + title[1:] if key == 'train_loss' else 'validation AUC'}"
                yield Picture(figure, caption, f"{title} by epoch on {name}. Last of each run: {'; '.join(told)}")


def _radars(datasets: Mapping[str, Any], looks: Mapping[str, Look]) -> Iterator[Picture]:
    if len(datasets) < 3:
        return
    for metric, title in METRICS.items():
        values = {
            arm: [words.value((data["arms"].get(arm) or {}).get(metric), "mean") for data in datasets.values()]
            for arm in looks
        }
        values = {arm: around for arm, around in values.items() if words.finite(around)}
        if values:
            low, high = figures.radar_range(values)
            told = (f"{arm}: {', '.join(map(words.number, around))}" for arm, around in values.items())
            caption = f"Mean {title} on each data set; the middle is {low:.2f}, the rim {high:.2f}"
            label = f"{caption}. Of {', '.join(datasets)}: {'; '.join(told)}"
            yield Picture(figures.radar(list(datasets), values, looks), caption, label)


def _costs(datasets: Mapping[str, Any], looks: Mapping[str, Look]) -> Iterator[Picture]:
    for name, data in datasets.items():
        measured = (data.get("cost") or {}).get("arms") or {}
        for title, cost in COSTS.items():
            scores = {arm: (data["arms"].get(arm) or {}).get("auc") or {} for arm in looks if measured.get(arm)}
            scores = {arm: score for arm, score in scores.items() if words.value(score, "mean") is not None}
            spent = {arm: cost(measured[arm]) for arm in scores}
            spent = {arm: x for arm, x in spent.items() if x > 0 and math.isfinite(x)}
            if spent:
                figure = figures.cost(spent, scores, looks)
                figure.axes[0].set_xlabel(title)
                told = (f"{arm}: {words.plain(x)}, AUC {_mean(data, arm)}" for arm, x in spent.items())
                yield Picture(figure, f"{name}: AUC", f"AUC against {title} on {name}. {'; '.join(told)}")


def _by_arm(data: Mapping[str, Any], part: str, looks: Mapping[str, Look]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    given = data.get(part) or {}
    return ((arm, given[arm]) for arm in looks if given.get(arm))


def _mean(data: Mapping[str, Any], arm: str) -> str:
    return words.number(words.value((data["arms"].get(arm) or {}).get("auc"), "mean"))


PICTURES = {"forest": _forests, "roc": _rocs, "learning": _learning, "radar": _radars, "cost": _costs}
