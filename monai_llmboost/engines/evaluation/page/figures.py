# SPDX-License-Identifier: Apache-2.0
"""The pictures of an evaluation; draw them inside :func:`artifacts.drawing.house_style`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator, NullLocator
from scipy.stats import binomtest

from monai_llmboost.artifacts.drawing import DASHES, INK, PAPER, QUIET, Look, look_of, panel
from monai_llmboost.artifacts.page import shortened
from monai_llmboost.tasks import Reliability

# Looks of the classes 0, 1, ...: first those that differ most.
COLOURS = (3, 1, 2, 4, 5, 6, 7, 0)
LOOKS = [look_of(colour)._replace(dash=DASHES[number % len(DASHES)]) for number, colour in enumerate(COLOURS)]
OTHERS = Look(QUIET, "o", "solid")
NUM_BINS = 20
DASHED = (0, (4, 2.5))


class Curve(NamedTuple):
    """An ROC curve.

    Args:
        look: look of its class.
        false_positive: rates (points,).
        true_positive: rates (points,).
    """

    look: Look
    false_positive: np.ndarray
    true_positive: np.ndarray


class Split(NamedTuple):
    """The probabilities of a class, of its own cases and of those of the other classes.

    Args:
        looks: looks of the class and of the others.
        names: their names.
        own: probabilities of its cases.
        others: probabilities of the other cases.
    """

    looks: tuple[Look, Look]
    names: tuple[str, str]
    own: np.ndarray
    others: np.ndarray


def look_of_class(number: int) -> Look:
    """Return the look of a class by its number."""
    return LOOKS[number % len(LOOKS)]


def roc(curves: Sequence[Curve], chosen: tuple[float, float] | None) -> Figure:
    """Draw ROC curves, and a dot at the chosen threshold.

    Args:
        curves: the curves.
        chosen: false and true positive rate at the threshold; ``None`` without one.
    """
    figure, axes = panel(3.85)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=(0, (2, 2)))
    for curve in curves:
        axes.plot(curve.false_positive, curve.true_positive, color=curve.look.colour, linestyle=curve.look.dash)
    if chosen is not None:
        axes.plot(*chosen, "o", color=INK, markersize=8, markeredgecolor=PAPER, markeredgewidth=1.2, zorder=4)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set(xlabel="false positive rate = 1 - specificity", ylabel="true positive rate = sensitivity")
    return figure


def reliability(found: Reliability, num_classes: int) -> Figure:
    """Draw accuracy against confidence: a dot per bin, larger for more cases, with its 95 % interval (Wilson)."""
    figure, axes = panel(3.85)
    low = 1 / num_classes  # the most probable class has at least this probability
    colour = LOOKS[0].colour
    axes.plot([low, 1], [low, 1], color=QUIET, linewidth=0.8, linestyle=(0, (2, 2)))
    for x, y, cases in zip(found.confidence, found.accuracy, found.cases):
        interval = binomtest(round(y * cases), int(cases)).proportion_ci(method="wilson")
        axes.plot([x, x], [interval.low, interval.high], color=colour, linewidth=1.2, solid_capstyle="butt", alpha=0.6)
    sizes = 14 + 180 * found.cases / found.cases.sum()
    axes.scatter(found.confidence, found.accuracy, s=sizes, color=colour, edgecolors=PAPER, linewidths=0.8, zorder=3)
    axes.set(xlim=(low - 0.02, 1.01), ylim=(-0.02, 1.02))
    axes.set(xlabel="probability of the most probable class", ylabel="fraction that is right")
    return figure


def histograms(rows: Sequence[Split], threshold: float | None) -> Figure:
    """Draw for each class the probabilities of its own cases upwards, and those of all other cases downwards."""
    each = 2.4 if len(rows) == 1 else 1.15
    figure, axes = panel(each * len(rows) + 0.57, left=0.12)
    edges = np.linspace(0, 1, NUM_BINS + 1)
    style: dict[str, Any] = {
        "fontsize": 8.5,
        "ha": "center",
        "bbox": {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},
    }
    for number, row in enumerate(rows):
        zero = -2.4 * number
        shares = [np.histogram(values, edges)[0] / max(len(values), 1) for values in (row.own, row.others)]
        largest = max(map(np.max, shares)) or 1
        for share, look, sign in zip(shares, row.looks, (1, -1)):
            bars: dict[str, Any] = {"color": look.colour, "alpha": 0.85, "edgecolor": PAPER, "linewidth": 0.6}
            axes.bar(edges[:-1], sign * 0.85 * share / largest, 1 / NUM_BINS, bottom=zero, align="edge", **bars)
        axes.axhline(zero, color=QUIET, linewidth=0.8)
        if threshold is not None:
            axes.plot([threshold] * 2, [zero - 0.9, zero + 0.9], color=INK, linewidth=1, linestyle=DASHED)
        for name, values, y, align in zip(row.names, (row.own, row.others), (1.1, -1.1), ("top", "bottom")):
            text = f"{shortened(name, 40)}, {len(values)} {'case' if len(values) == 1 else 'cases'}"
            axes.text(0.5, zero + y, text, va=align, **style)
    axes.set(xlim=(-0.01, 1.01), ylim=(-2.4 * (len(rows) - 1) - 1.15, 1.15))
    axes.set_xlabel("probability")
    axes.yaxis.set_major_locator(NullLocator())
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.1f}"))
    axes.spines["left"].set_visible(False)
    return figure


def strips(dice: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw the Dice of each case as a dot, and a box plot, for each structure.

    Args:
        dice: (cases, structures), NaN for a structure without one.
        names: names of the structures.
    """
    row, bottom = 0.46, 0.45
    figure, axes = panel(row * len(names) + bottom + 0.2, left=0.12, bottom=bottom)
    random = np.random.default_rng(0)  # only spreads the dots
    for number, name in enumerate(names):
        y = -float(number)
        values = dice[np.isfinite(dice[:, number]), number]
        axes.text(0, y + 0.36, shortened(name, 48), transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)
        if not len(values):
            continue
        spread = y + random.uniform(-0.13, 0.13, len(values))
        axes.plot(values, spread, "o", color=look_of(3).colour, markersize=3, markeredgewidth=0, alpha=0.55)
        lines = {"color": INK, "linewidth": 0.9}
        looks: dict[str, Any] = {part: lines for part in ("boxprops", "whiskerprops", "capprops")}
        looks |= {"medianprops": {**lines, "linewidth": 2}, "showfliers": False, "manage_ticks": False}
        axes.boxplot(values, positions=[y], orientation="horizontal", widths=0.36, **looks)
    low = float(np.nanmin(dice)) if np.isfinite(dice).any() else 0.0
    axes.set_xlim(max(min(low - 0.02, 0.95), -0.02), 1.01)
    axes.set_ylim(0.55 - len(names), 0.55)
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("Dice")
    return figure
