# SPDX-License-Identifier: Apache-2.0
"""The pictures of a study, one small plot each; draw them inside :func:`artifacts.drawing.house_style`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from monai_llmboost.artifacts.drawing import INK, PAPER, QUIET, WIDTH, Look, panel
from monai_llmboost.artifacts.page import shortened
from monai_llmboost.studies.page.words import finite, interval, plain, signed, span, value

ROW = 0.5  # inches for one comparison
LABEL, WHOLE = 31, 54  # characters of a label next to the numbers, and on a separate line
STEPS = (1, 2, 2.5, 5, 10)  # of ticks
GROUND = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}  # text covers the grid lines
Runs = Sequence[Sequence[float | None] | None]  # a curve for each run; None if the run failed


def reach(comparisons: Sequence[Mapping[str, Any]]) -> float:
    """Return the half-width of the axis of forest plots, so that all comparisons share one scale."""
    shown = [0.0]
    for comparison in comparisons:
        ends = [span(each) or () for each in comparison["intervals"].values()]
        shown += [end for pair in ends for end in pair]
        shown += finite([comparison["difference"], *(comparison["runs"] or ())])
    return 1.08 * max(map(abs, shown)) or 0.01


def forest(
    comparisons: Sequence[Mapping[str, Any]], looks: Mapping[str, Look], furthest: float, larger_is_better: bool = True
) -> Figure:
    """Draw paired differences: thin lines over seeds and cases, thick lines over seeds only, a dot for each seed.

    Args:
        comparisons: comparisons on one data set by one metric.
        looks: looks of the arms.
        furthest: half-width of the axis around zero.
        larger_is_better: whether larger values of the metric are better.
    """
    labels = [f"{each['arm']} against {each['reference']}" for each in comparisons]
    lines = [1 + (len(label) > LABEL) for label in labels]  # a long name is on a line above its numbers
    height = sum(ROW + 0.17 * (line - 1) for line in lines)
    figure, axes = panel(height + 0.74, left=0.12, bottom=0.62)
    y = 0.0
    for comparison, label, line in zip(comparisons, labels, lines):
        y -= 0.12
        numbers = f"{signed(value(comparison, 'difference'))}  {interval(comparison['intervals'].get('both'))}"
        for text, x, align in ((shortened(label, WHOLE), 0, "left"), (numbers, 1, "right")):
            below = 0.17 if line == 2 and x == 1 else 0
            style: dict[str, Any] = {"ha": align, "va": "center", "fontsize": 8.5, "bbox": GROUND}
            axes.text(x, y - below, text, transform=axes.get_yaxis_transform(), **style)
        y -= 0.17 * line
        _difference(axes, comparison, looks[comparison["arm"]], y)
        y -= ROW - 0.12 - 0.17
    axes.axvline(0, color=INK, linewidth=1, zorder=1.5)
    axes.set_xlim(-furthest, furthest)
    axes.set_ylim(-height, 0.02)
    axes.yaxis.set_major_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(5, symmetric=True, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: ("+" if x > 0 else "") + plain(round(x, 9))))
    axes.spines["left"].set_visible(False)
    sides = ("reference", "arm") if larger_is_better else ("arm", "reference")
    for key, x, align, words in zip(sides, (0, 1), ("left", "right"), ("← {} better", "{} better →")):
        names = {comparison[key] for comparison in comparisons}
        side = words.format(shortened(names.pop(), 18) if len(names) == 1 else key)
        axes.annotate(side, (x, 0), (0, -27), "axes fraction", textcoords="offset points", ha=align, color=QUIET)
    return figure


def _difference(axes: Axes, comparison: Mapping[str, Any], look: Look, y: float) -> None:
    both, seeds = (span(comparison["intervals"].get(key)) for key in ("both", "seeds"))
    if both:
        axes.plot(both, (y, y), color=look.colour, linewidth=1.2, solid_capstyle="butt")
    if seeds:
        axes.plot(seeds, (y, y), color=look.colour, linewidth=4.5, solid_capstyle="butt", alpha=0.75)
    if (difference := value(comparison, "difference")) is not None:
        axes.plot(
            difference,
            y,
            look.marker,
            color=look.colour,
            markersize=7.5,
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
            zorder=3,
        )
    runs = finite(comparison["runs"])
    runs = runs if len(runs) > 1 else []  # a single run is the difference itself
    axes.plot(runs, [y - 0.105] * len(runs), "o", color=look.colour, markersize=2.6, markeredgewidth=0, alpha=0.85)


def roc(rates: Sequence[float], curves: Mapping[str, Runs], looks: Mapping[str, Look]) -> Figure:
    """Draw the mean ROC curve over each arm's seeds, with a band from the smallest to the largest value."""
    figure, axes = panel(3.85)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=(0, (2, 2)))
    for arm, runs in curves.items():
        there = _table(runs)
        if len(there) > 1:
            axes.fill_between(rates, there.min(0), there.max(0), color=looks[arm].colour, alpha=0.13, linewidth=0)
        if len(there):
            axes.plot(rates, there.mean(0), color=looks[arm].colour, linestyle=looks[arm].dash)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    return figure


def learning(epochs: Mapping[str, Sequence[int]], curves: Mapping[str, Runs], looks: Mapping[str, Look]) -> Figure:
    """Draw curves over the epochs: a thin line per run with a dot at its end, and their mean over common epochs.

    Epochs without a value, such as those that were not validated, are left out.
    """
    figure, axes = panel(2.7)
    for arm, runs in curves.items():
        colour, _, dash = looks[arm]
        there = [np.array(run, dtype=float) for run in runs if run]
        for run in there if len(there) > 1 else ():
            known = np.flatnonzero(np.isfinite(run))
            xs = np.array(epochs[arm])[known]
            axes.plot(xs, run[known], color=colour, linewidth=0.7, alpha=0.4)
            axes.plot(xs[-1:], run[known[-1:]], "o", color=colour, markersize=2.4, markeredgewidth=0, alpha=0.6)
        if len(table := _table(there)):
            known = np.flatnonzero(np.isfinite(table).all(axis=0))
            # A single epoch is drawn as a point.
            mark = "o" if len(known) == 1 else "none"
            means = table[:, known].mean(axis=0)
            axes.plot(np.array(epochs[arm])[known], means, color=colour, linestyle=dash, marker=mark, markersize=4)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: plain(x)))
    axes.margins(x=0.02)
    axes.set_xlabel("epoch")
    return figure


def radar(names: Sequence[str], values: Mapping[str, Sequence[float | None]], looks: Mapping[str, Look]) -> Figure:
    """Draw a radar plot: a spoke per data set, a closed line per arm; the centre is just below the smallest value."""
    figure = Figure(figsize=(WIDTH, 2.95))
    axes: Any = figure.add_axes((0.22, 0.1, 0.56, 0.8), projection="polar")
    angles = 2 * np.pi * np.arange(len(names) + 1) / len(names)
    for arm, around in values.items():
        closed = [np.nan if each is None else each for each in (*around, around[0])]
        look = looks[arm]
        axes.plot(angles, closed, look.marker, color=look.colour, linestyle=look.dash, linewidth=1.5, markersize=4)
    low, high = radar_range(values)
    axes.set_ylim(low, high)
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_xticks(angles[:-1], [])
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))
    axes.set_rlabel_position(np.degrees(angles[1] / 2))
    axes.spines["polar"].set_color(QUIET)
    for angle, name in zip(angles, names):
        side, up = np.sin(angle), np.cos(angle)
        align = "center" if abs(side) < 0.3 else "left" if side > 0 else "right"
        # There is little space next to the plot.
        text = shortened(name, 14) if align != "center" else shortened(name, 40)
        place = (0.5 + 0.54 * side, 0.5 + 0.54 * up)
        axes.text(*place, text, transform=axes.transAxes, ha=align, va="center", fontsize=8)
    return figure


def radar_range(values: Mapping[str, Sequence[float | None]]) -> tuple[float, float]:
    """Return the values at the centre and the rim of a radar plot."""
    there = finite(each for around in values.values() for each in around) or [0.0, 1.0]
    low, high = min(there), max(there)
    margin = 0.25 * (high - low) or 0.05
    return np.floor(100 * (low - margin)) / 100, min(np.ceil(100 * (high + margin / 4)) / 100, 1.0)


def cost(costs: Mapping[str, float], scores: Mapping[str, Mapping[str, Any]], looks: Mapping[str, Look]) -> Figure:
    """Draw each arm's mean score, with standard deviation over seeds, against its cost on a logarithmic scale."""
    figure, axes = panel(2.8)
    for arm, x in costs.items():
        look, score = looks[arm], scores[arm]
        spread = value(score, "sd")
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 8, "markeredgecolor": PAPER}
        axes.errorbar([x], finite([score.get("mean")]), yerr=spread, elinewidth=1.3, linestyle="none", **style)
    low, high = min(costs.values()) / 1.3, max(costs.values()) * 1.3
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(_round_numbers(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.margins(y=0.12)
    return figure


def label_curves(scores: Mapping[str, Mapping[float, Mapping[str, Any]]], looks: Mapping[str, Look]) -> Figure:
    """Draw each arm's mean score, with standard deviation over seeds, against the fraction of labels (logarithmic)."""
    figure, axes = panel(2.8)
    ticks = sorted({fraction for of_arm in scores.values() for fraction in of_arm})
    for number, (arm, of_arm) in enumerate(scores.items()):
        look, fractions = looks[arm], sorted(of_arm)
        shifted = [fraction * 1.015 ** (number - (len(scores) - 1) / 2) for fraction in fractions]  # side by side
        means = [float(of_arm[fraction]["mean"]) for fraction in fractions]
        spreads = [value(of_arm[fraction], "sd") or 0.0 for fraction in fractions]
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linestyle": look.dash}
        axes.errorbar(shifted, means, yerr=spreads, elinewidth=1.3, markersize=6, markeredgecolor=PAPER, **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.margins(x=0.08, y=0.12)
    axes.set_xlabel("training labels")
    return figure


def _table(runs: Runs | Sequence[np.ndarray]) -> np.ndarray:
    """Return the runs that are not missing, cut to the length of the shortest one (runs, points)."""
    there = [np.array(run, dtype=float) for run in runs if run is not None and len(run)]
    if not there:
        return np.empty((0, 0))
    points = min(map(len, there))
    return np.stack([run[:points] for run in there])


def _round_numbers(low: float, high: float) -> list[float]:
    """Return a few round numbers between two limits."""
    if high < 10 * low:
        ticks = [float(x) for x in MaxNLocator(5, steps=STEPS).tick_values(low, high)]
    else:
        decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        ticks = [float(step * decade) for decade in decades for step in ((1, 3) if high < 1000 * low else (1,))]
    return [tick for tick in ticks if low <= tick <= high]
