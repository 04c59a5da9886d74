# SPDX-License-Identifier: Apache-2.0
"""Conversion of matplotlib figures to SVG with the page's colours and fonts; equal figures give equal bytes."""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 4.0  # of a picture, inches: small, to be legible on a phone; a wide page shows several next to each other
NUM_COLOURS = 8

# The page has a light and a dark theme, so figures use placeholder colours, which the page's variables replace.
INK, QUIET, LINE, PAPER = "#010000", "#020000", "#030000", "#040000"
VARIABLES = {INK: "var(--ink)", QUIET: "var(--quiet)", LINE: "var(--line)", PAPER: "var(--paper)"} | {
    f"#0500{number:02x}": f"var(--arm-{number})" for number in range(NUM_COLOURS)
}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "monai-llmboost",
    "text.parse_math": False,  # a name with two dollar signs is not a formula
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
}
MARKERS = "osD^vPX"
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1, 1, 1, 1, 1)))


class Look(NamedTuple):
    """The look of an arm in all pictures; marker and dashes identify the arm even without colour."""

    colour: str
    marker: str
    dash: Any


def look_of(number: int) -> Look:
    """Return the look of an arm by its number in the study."""
    return Look(f"#0500{number % NUM_COLOURS:02x}", MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)])


@contextmanager
def house_style() -> Iterator[None]:
    """Create and save figures in this context in the page's style, independent of other matplotlib settings."""
    with warnings.catch_warnings(), matplotlib.rc_context():
        # The browser has glyphs that matplotlib's font, used here only to measure text, lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def panel(height: float, left: float = 0.5, bottom: float = 0.45, **options: Any) -> tuple[Figure, Axes]:
    """Return a figure of one plot with margins in inches, which do not depend on the length of labels."""
    figure = Figure(figsize=(WIDTH, height))
    width, tall = WIDTH - left - 0.12, height - bottom - 0.12
    return figure, figure.add_axes((left / WIDTH, bottom / height, width / WIDTH, tall / height), **options)


def keys_of(looks: Mapping[str, Look]) -> Callable[[str], Markup]:
    """Return a function that draws the line and marker of an arm for legends; each call has unique ids."""
    drawn = {arm: _key(look) for arm, look in looks.items()}
    numbers = itertools.count()
    return lambda arm: Markup(drawn[arm].replace("key-", f"key{next(numbers)}-"))


def _key(look: Look) -> str:
    figure = Figure(figsize=(0.42, 0.16))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.plot([0, 1, 2], [0, 0, 0], color=look.colour, linestyle=look.dash)
    axes.plot([1], [0], color=look.colour, marker=look.marker, markersize=6.5, markeredgecolor=PAPER)
    axes.set_xlim(0, 2)
    return str(svg(figure, "key", None))


def svg(figure: Figure, name: str, label: str | None) -> Markup:
    """Return a figure as an SVG element.

    Args:
        figure: figure in the placeholder colours above.
        name: letters and digits; prefix of every id, so it must be unique in the page.
        label: text alternative for screen readers; ``None`` for a decoration.
    """
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())
    for element in root.iter():
        # Remove metadata, and a style that would apply to the whole page.
        for child in [child for child in element if _bare(child.tag) in ("metadata", "style")]:
            element.remove(child)
    wanted = {found for element in root.iter() for text in element.attrib.values() for found in _referred(text)}
    for element in root.iter():
        element.tag = _bare(element.tag)  # a page's SVG needs no namespaces
        attributes = {_bare(key): text for key, text in element.attrib.items()}
        element.attrib.clear()
        for key, text in attributes.items():
            if key != "id":
                element.set(key, _in_page(text, name))
            elif text in wanted:
                element.set(key, f"{name}-{text}")
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"aria-hidden": "true"} if label is None else {"role": "img", "aria-label": label})
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _bare(name: str) -> str:
    return name.rpartition("}")[2]


def _referred(text: str) -> list[str]:
    return [text[1:]] if text.startswith("#") else re.findall(r"url\(#([^)]+)\)", text)


def _in_page(text: str, name: str) -> str:
    """Return an attribute with the page's colours and fonts, and with ids prefixed by the picture's name."""
    if text.startswith("#"):
        return f"#{name}-{text[1:]}"
    text = text.replace("url(#", f"url(#{name}-").replace("'DejaVu Sans'", "system-ui, sans-serif")
    return re.sub(r"#0[1-5]00[0-9a-f]{2}", lambda found: VARIABLES.get(found[0], found[0]), text)
