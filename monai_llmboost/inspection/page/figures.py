# SPDX-License-Identifier: Apache-2.0
"""The pictures of an inspection; draw them inside :func:`artifacts.drawing.house_style`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from monai_llmboost.artifacts.drawing import QUIET, Look, panel
from monai_llmboost.artifacts.page import shortened
from monai_llmboost.inspection.measure import ChannelMeasures

# At most so many scans in a picture, evenly chosen: each is a dot in the page.
DRAWN = 300
AXES = ("x", "y", "z")
# Half of the height of a row that dots are scattered over.
SCATTER = 0.3
# Values whose largest is further above the median than this are drawn on a logarithmic axis.
WIDE_RANGE = 50
# Longest name of a structure at its row.
LONGEST_NAME = 16
# Values that differ by a smaller part are drawn from zero.
ALIKE = 0.05


@dataclass(frozen=True)
class Picture:
    """A figure, its caption, and its text alternative for screen readers."""

    figure: Figure
    caption: str
    label: str


def draw_distributions(scans: Mapping[str, Sequence[ChannelMeasures]], looks: Mapping[str, Look]) -> Iterator[Picture]:
    """Draw the spacing, size and intensities of scans by class.

    Args:
        scans: measures of scans by class.
        looks: looks of the classes.
    """
    some = {
        name: _choose(own, len(own) * DRAWN // max(1, sum(map(len, scans.values())))) for name, own in scans.items()
    }
    for caption, unit, take in SHOWN:
        values = {name: np.array([take(one) for one in own]) for name, own in some.items() if own}
        everything = np.concatenate(list(values.values()))
        label = "; ".join(
            f"along {axis} from {low:.4g} to {high:.4g}, median {middle:.4g}"
            for axis, low, high, middle in zip(
                AXES, everything.min(0), everything.max(0), np.median(everything, axis=0)
            )
        )
        yield Picture(_rows(values, looks, unit), caption, f"{caption} in {unit}: {label}")
    yield Picture(
        _ranges(some, looks),
        "Intensities of each scan",
        "From the 0.5th to the 99.5th percentile of each scan, by class",
    )


def draw_volumes(volumes: Mapping[str, Sequence[float]], looks: Mapping[str, Look]) -> Picture:
    """Draw the volume of each structure in each case, on a logarithmic axis.

    Args:
        volumes: volumes in mm3 by structure.
        looks: looks of the structures.
    """
    figure, axes = panel(min(6.0, max(1.2, 0.5 + 0.28 * len(volumes))), left=1.2)
    for row, (name, own) in enumerate(volumes.items()):
        chosen = sorted(own)[:: max(1, len(own) * len(volumes) // DRAWN)]
        spread = (np.arange(len(chosen)) * 0.618 % 1 - 0.5) * 1.6 * SCATTER
        axes.plot(
            chosen, row + spread, looks[name].marker, color=looks[name].colour, markersize=3.2, markeredgewidth=0,
            alpha=0.55,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.4g}"))
    axes.set_ylim(len(volumes) - 0.5, -0.5)
    axes.yaxis.set_major_locator(FixedLocator(range(len(volumes))))
    axes.yaxis.set_major_formatter(FixedFormatter([shortened(name, LONGEST_NAME) for name in volumes]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("mm3, logarithmic")
    label = "; ".join(f"{name} median {np.median(own):.4g}" for name, own in volumes.items() if len(own))
    return Picture(figure, "Volumes of the structures", f"Volumes in mm3: {label}")


def _choose(own: Sequence[ChannelMeasures], most: int) -> list[ChannelMeasures]:
    count = min(len(own), max(1, most))
    return [own[number * len(own) // count] for number in range(count)]


def _rows(values: Mapping[str, np.ndarray], looks: Mapping[str, Look], unit: str) -> Figure:
    """Draw dots in a row for each axis of the patient."""
    figure, axes = panel(2.3)
    count = len(values)
    for number, (name, points) in enumerate(values.items()):
        # A class has its own part of each row; its dots are scattered evenly over it.
        middle = SCATTER * (2 * (number + 0.5) / count - 1)
        spread = (np.arange(len(points)) * 0.618 % 1 - 0.5) * 1.6 * SCATTER / count
        for row in range(3):
            axes.plot(
                points[:, row], row + middle + spread, looks[name].marker, color=looks[name].colour,
                markersize=3.2, markeredgewidth=0, alpha=0.55,
            )  # fmt: skip
    axes.set_ylim(2.5, -0.5)
    axes.yaxis.set_major_locator(FixedLocator(range(3)))
    axes.yaxis.set_major_formatter(FixedFormatter(AXES))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    axes.margins(x=0.06)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(unit)
    every = np.concatenate(list(values.values()))
    if np.ptp(every) <= ALIKE * every.max():  # a scale of hundredths would look like a difference
        axes.set_xlim(0, 2 * every.max())
    return figure


def _ranges(scans: Mapping[str, Sequence[ChannelMeasures]], looks: Mapping[str, Look]) -> Figure:
    """Draw a line from the 0.5th to the 99.5th percentile of each scan, with a dot at its median."""
    figure, axes = panel(2.3, left=0.62)
    place = 0
    for name, own in scans.items():
        ordered = sorted(own, key=lambda one: one.percentiles[2])
        x = np.arange(place, place + len(ordered))
        ends = np.array([one.percentiles for one in ordered]).reshape(-1, 3)
        axes.vlines(x, ends[:, 0], ends[:, 2], color=looks[name].colour, linewidth=max(0.6, 120 / DRAWN), alpha=0.7)
        axes.plot(x, ends[:, 1], looks[name].marker, color=looks[name].colour, markersize=2.4, markeredgewidth=0)
        place += len(ordered) + 2
    highs = [one.percentiles[2] for own in scans.values() for one in own]
    if max(highs) > WIDE_RANGE * abs(float(np.median(highs))) > 0:
        axes.set_yscale("symlog", linthresh=max(1.0, abs(float(np.median(highs))) / 10))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}" if abs(y) < 1e5 else f"{y:.0e}"))
    axes.xaxis.set_major_locator(NullLocator())
    axes.margins(x=0.02)
    axes.set_xlabel(f"scans{' by class' if len(scans) > 1 else ''}, in rising order", color=QUIET)
    return figure


SHOWN: tuple[tuple[str, str, Callable[[ChannelMeasures], Sequence[float]]], ...] = (
    ("Spacing", "mm", lambda one: one.spacing_mm),
    ("Size in voxels", "voxels", lambda one: one.shape),
    ("Size in mm", "mm", lambda one: one.size_mm),
)
