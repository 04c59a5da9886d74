# SPDX-License-Identifier: Apache-2.0
"""Pictures of a volume and its maps: three planes through one point, in the radiological convention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patheffects import withStroke

from monai_llmboost.artifacts.planes import Plane, grey_window, peak_of, planes

DISCLAIMER = "for research only; not for diagnosis"
# A map is invisible below the first value and has its largest opacity from the second value on.
FADE_IN = 0.2, 0.7
OPAQUE = 0.65
MAP_COLOURS = "inferno"
BACKGROUND, TEXT, QUIET, ACCENT = "black", "white", "#b0b0b0", "#4fc3f7"
# The picture's sizes, in pixels.
WIDTH, TALLEST_ROW, GAP, TITLE, CAPTION, NOTE, LEGEND = 1160, 380, 10, 44, 24, 50, 70
DOTS_PER_INCH = 100
WEBP = {"quality": 80, "method": 4}
LONGEST_TITLE = 90
CAPTIONS = {
    "network": "network: what the logit of the class rests on",
    "before_booster": "before the booster: tokens in the direction of the class",
    "after_booster": "after the booster: tokens in the direction of the class",
}


class _Canvas:
    """A black picture; its height and all positions are in pixels from the top left."""

    def __init__(self, height: float) -> None:
        self.height = height
        size = WIDTH / DOTS_PER_INCH, height / DOTS_PER_INCH
        self.figure = Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor=BACKGROUND)
        FigureCanvasAgg(self.figure)

    def write(self, x: float, y: float, text: str, **style: Any) -> None:
        style = {"color": QUIET, "fontsize": 9, "va": "center", **style}
        self.figure.text(x / WIDTH, 1 - y / self.height, drawable(text), parse_math=False, usetex=False, **style)

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        box = x / WIDTH, 1 - (y + height) / self.height, width / WIDTH, height / self.height
        axes = self.figure.add_axes(box)
        axes.set_axis_off()
        return axes

    def save(self, path: Path) -> None:
        kind = "webp" if path.suffix == ".webp" else "png"
        own: dict[str, Any] = {"pil_kwargs": WEBP} if kind == "webp" else {"metadata": {"Software": None}}
        self.figure.savefig(path, format=kind, facecolor=BACKGROUND, **own)


def save_preview(
    path: str | Path,
    volume: np.ndarray,
    affine: np.ndarray,
    maps: Mapping[str, np.ndarray],
    title: str,
    note: str,
) -> None:
    """Write a picture of three planes through the peak of the first map: a row for the volume and for each map.

    See :func:`planes` for the orientation.

    Args:
        path: the file to write; a WebP, an eighth as large, with the suffix ``.webp``, else a PNG.
        volume: (i, j, k).
        affine: (4, 4), voxels to RAS+ mm.
        maps: maps (i, j, k) by name, 0 to 1; may be empty.
        title: text above the picture, shortened if long.
        note: text below the picture, before the position of the planes.
    """
    affine = np.asarray(affine, dtype=np.float64)
    at = peak_of(next(iter(maps.values()))) if maps else tuple(n // 2 for n in volume.shape)
    shown = planes(volume, affine, at)
    heights, widths = zip(*((n * mm for n, mm in zip(plane.pixels.shape, plane.pixel_mm)) for plane in shown))
    room = WIDTH - 4 * GAP - (LEGEND if maps else 0)
    scale = min(room / sum(widths), TALLEST_ROW / max(heights))  # pixels per mm
    left, tallest = GAP + max(0.0, (room - sum(widths) * scale) / 2), max(heights) * scale
    row_height = tallest + CAPTION + GAP
    canvas = _Canvas(TITLE + (1 + len(maps)) * row_height + NOTE)
    canvas.write(GAP, TITLE / 2, shortened(title), fontsize=12, color=TEXT)
    window = grey_window(volume)
    layers = [None, *(planes(values, affine, at) for values in maps.values())]
    captions = ["", *(CAPTIONS.get(name, name) for name in maps)]
    for row, (caption, over) in enumerate(zip(captions, layers)):
        top, x = TITLE + row * row_height, left
        canvas.write(left, top + CAPTION / 2, caption)
        for column, plane in enumerate(shown):
            width, height = widths[column] * scale, heights[column] * scale
            axes = canvas.axes(x, top + CAPTION + (tallest - height) / 2, width, height)
            _draw(axes, plane, window, None if over is None else over[column].pixels)
            if over is None:
                canvas.write(x, top + CAPTION / 2, plane.name)
            x += width + GAP
    if maps:
        _draw_legend(canvas, left + sum(widths) * scale + 4 * GAP, TITLE + row_height + CAPTION, tallest)
    right, front, up = affine[:3, :3] @ at + affine[:3, 3]
    place = f"planes through voxel ({', '.join(map(str, at))}), at R {right:.1f}, A {front:.1f}, S {up:.1f} mm"
    canvas.write(GAP, canvas.height - NOTE * 0.7, "; ".join(filter(None, (note, place))))
    canvas.write(GAP, canvas.height - NOTE * 0.3, f"radiological convention (R on the left); {DISCLAIMER}")
    canvas.save(Path(path))


def _draw_legend(canvas: _Canvas, x: float, y: float, height: float) -> None:
    """Draw the colours of a map from 0 to 1 over black."""
    ramp = np.linspace(1, 0, 256)[:, None]
    axes = canvas.axes(x, y, GAP, height)
    axes.imshow(ramp, cmap=MAP_COLOURS, vmin=0, vmax=1, alpha=_opacity(ramp) / OPAQUE, aspect="auto")
    for value in (0, 0.5, 1):
        canvas.write(x + 1.5 * GAP, y + (1 - value) * (height - GAP) + GAP / 2, f"{value:g}")


def _draw(axes: Any, plane: Plane, window: tuple[float, float], over: np.ndarray | None) -> None:
    """Draw a plane, a map over it, a crosshair with a gap at the point, and the names of the edges."""
    rows, columns = plane.pixels.shape
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    style = {"extent": extent, "aspect": "auto", "interpolation": "bilinear"}
    axes.imshow(plane.pixels, cmap="gray", vmin=window[0], vmax=window[1], **style)
    if over is not None:
        axes.imshow(over, cmap=MAP_COLOURS, vmin=0, vmax=1, alpha=_opacity(over), **style)
    row, column = plane.cross
    high, wide = 0.06 * rows, 0.06 * columns
    line = {"color": ACCENT, "linewidth": 0.7, "alpha": 0.8}
    axes.plot([column, column], [-0.5, row - high], [column, column], [row + high, rows - 0.5], **line)
    axes.plot([-0.5, column - wide], [row, row], [column + wide, columns - 0.5], [row, row], **line)
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    places = ((0.01, 0.5, "left", "center"), (0.99, 0.5, "right", "center"), (0.5, 0.99, "center", "top"),
              (0.5, 0.01, "center", "bottom"))  # fmt: skip
    for letters, (x, y, ha, va) in zip(plane.edges, places):
        text = axes.text(x, y, letters, transform=axes.transAxes, color=TEXT, fontsize=9, ha=ha, va=va)
        text.set_path_effects([withStroke(linewidth=2, foreground=BACKGROUND)])


def _opacity(values: np.ndarray) -> np.ndarray:
    return np.clip((values - FADE_IN[0]) / (FADE_IN[1] - FADE_IN[0]), 0, 1) * OPAQUE


def shortened(title: str) -> str:
    """Return the end of a long title, which is where names of cases differ."""
    return title if len(title) <= LONGEST_TITLE else f"...{title[3 - LONGEST_TITLE :]}"


def drawable(text: str) -> str:
    """Return the text with "?" for each character that the font does not have."""
    font = get_font(findfont(FontProperties()))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "?" for c in text)
