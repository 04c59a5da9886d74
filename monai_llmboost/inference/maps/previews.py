# SPDX-License-Identifier: Apache-2.0
"""Pictures of a volume and of maps over it: three planes through one point, in the radiological convention."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patheffects import withStroke
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

DISCLAIMER = "for research only; not for diagnosis"
# The RAS axes across and down a picture, which runs to the left or the back and to the back or the feet: radiological,
# as if seen from the feet, from the front and from the patient's left.
PLANES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
# A direction this far (as a cosine) along a second anatomical axis is named by both.
OBLIQUE = 0.34
# Voxels that the grey window is taken from, about.
WINDOW_SAMPLES = 200_000
# A map is invisible below the first value and as opaque as it gets from the second on.
FADE_IN = 0.2, 0.7
OPAQUE = 0.65
MAP_COLOURS = "inferno"
BACKGROUND, TEXT, QUIET, ACCENT = "black", "white", "#b0b0b0", "#4fc3f7"
# The picture's sizes, in pixels.
WIDTH, TALLEST_ROW, GAP, TITLE, CAPTION, NOTE, LEGEND = 1160, 380, 10, 44, 24, 50, 70
DOTS_PER_INCH = 100
WEBP = {"quality": 80, "method": 4}
LONGEST_TITLE = 90
THUMBNAIL_PX = 84
CAPTIONS = {
    "network": "network: what the logit of the class rests on",
    "before_booster": "before the booster: tokens in the direction of the class",
    "after_booster": "after the booster: tokens in the direction of the class",
}


@dataclass(frozen=True)
class Plane:
    """One picture of a volume.

    Args:
        name: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        pixels: (rows, columns), from the top left.
        pixel_mm: height and width of a pixel.
        edges: anatomical directions of the left, right, upper and lower edge, such as ``("R", "L", "A", "P")``.
        cross: row and column of the point that all planes run through.
    """

    name: str
    pixels: np.ndarray
    pixel_mm: tuple[float, float]
    edges: tuple[str, str, str, str]
    cross: tuple[int, int]


def planes(volume: np.ndarray, affine: np.ndarray, at: Sequence[int]) -> list[Plane]:
    """The axial, coronal and sagittal plane of a volume (i, j, k) through voxel ``at``, along the volume's own axes.

    In the radiological convention: the patient's right, and in sagittal planes the front, is on the left of a picture.
    A volume that lies askew is not resampled; its planes are those nearest to the anatomical ones, and their edges are
    named by what they really are.

    Args:
        volume: (i, j, k).
        affine: (4, 4), its voxels to RAS+ mm.
        at: a voxel (i, j, k).
    """
    nearest = nibabel.io_orientation(affine)  # for each voxel axis: the RAS axis, and whether they run alike
    axis_of = {int(ras): axis for axis, (ras, _) in enumerate(nearest)}
    mm = np.linalg.norm(affine[:3, :3], axis=0)
    found = []
    for name, (across, down) in PLANES.items():
        rows, columns = axis_of[down], axis_of[across]
        (fixed,) = {0, 1, 2} - {rows, columns}
        pixels = np.moveaxis(volume, fixed, 0)[at[fixed]]  # a view: the volume may be large
        pixels = pixels if rows < columns else pixels.T  # (rows, columns)
        cross, ways = [at[rows], at[columns]], []
        for place, axis in enumerate((rows, columns)):
            grows = nearest[axis, 1] > 0  # to the right, the front or the head, against the picture's direction
            if grows:
                pixels = np.flip(pixels, axis=place)
                cross[place] = volume.shape[axis] - 1 - cross[place]
            ways.append(affine[:3, axis] * (-1 if grows else 1))
        downwards, rightwards = ways
        edges = (_letters(-rightwards), _letters(rightwards), _letters(-downwards), _letters(downwards))
        found.append(Plane(name, pixels, (mm[rows], mm[columns]), edges, (int(cross[0]), int(cross[1]))))
    return found


def _letters(direction: np.ndarray) -> str:
    """The anatomical name of a direction (x, y, z) in RAS, its largest part first."""
    cosines = direction / np.linalg.norm(direction)
    order = np.argsort(-np.abs(cosines), kind="stable")
    return "".join("RAS"[axis] if cosines[axis] > 0 else "LPI"[axis] for axis in order if abs(cosines[axis]) > OBLIQUE)


def peak_of(values: np.ndarray) -> tuple[int, int, int]:
    """A voxel where a map (i, j, k) is largest: the middle of all such voxels if it is one of them, as edges are level.

    A map that is zero everywhere has its peak in its middle.
    """
    transposed = values.T  # (k, j, i), as maps are ordered in memory
    top = transposed == values.max()
    middle = []
    for axis in range(3):
        counts = np.count_nonzero(top, axis=tuple({0, 1, 2} - {axis}))
        middle.append(round(float(np.average(np.arange(len(counts)), weights=counts))))
    k, j, i = middle if top[tuple(middle)] else np.unravel_index(int(top.argmax()), top.shape)
    return int(i), int(j), int(k)


def grey_window(volume: np.ndarray) -> tuple[float, float]:
    """The 1st and 99th percentile of a volume's finite values, of a part of them where there are many."""
    step = max(1, round((volume.size / WINDOW_SAMPLES) ** (1 / 3)))
    some = np.asarray(volume[::step, ::step, ::step], dtype=np.float32)
    some = some[np.isfinite(some)]
    low, high = np.percentile(some, (1, 99)) if some.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1


def save_preview(
    path: str | Path,
    volume: np.ndarray,
    affine: np.ndarray,
    maps: Mapping[str, np.ndarray],
    title: str,
    note: str,
) -> None:
    """Write a picture of three planes through the peak of the first map: the volume, and below it each map over it.

    See :func:`planes` for how a patient lies in it.

    Args:
        path: the file to write; a WebP, an eighth as large, if its suffix says so, and else a PNG.
        volume: (i, j, k).
        affine: (4, 4), its voxels to RAS+ mm.
        maps: name -> map (i, j, k), 0 to 1; may be empty.
        title: stands above, shortened.
        note: stands below, with the place of the planes.
    """
    affine = np.asarray(affine, dtype=np.float64)
    at = peak_of(next(iter(maps.values()))) if maps else tuple(n // 2 for n in volume.shape)
    shown = planes(volume, affine, at)
    heights, widths = zip(*((n * mm for n, mm in zip(plane.pixels.shape, plane.pixel_mm)) for plane in shown))
    room = WIDTH - 4 * GAP - (LEGEND if maps else 0)
    scale = min(room / sum(widths), TALLEST_ROW / max(heights))  # pixels per mm
    row_height = max(heights) * scale + CAPTION + GAP
    height = TITLE + (1 + len(maps)) * row_height + NOTE
    figure = Figure(figsize=(WIDTH / DOTS_PER_INCH, height / DOTS_PER_INCH), dpi=DOTS_PER_INCH, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        style = {"color": TEXT, "fontsize": 9, "va": "center", **style}
        figure.text(x / WIDTH, 1 - y / height, drawable(text), parse_math=False, usetex=False, **style)

    write(GAP, TITLE / 2, shortened(title), fontsize=12)
    window = grey_window(volume)
    left = GAP + max(0.0, (room - sum(widths) * scale) / 2)
    rows: list[tuple[str, list[Plane] | None]] = [("", None)]
    rows += [(CAPTIONS.get(name, name), planes(values, affine, at)) for name, values in maps.items()]
    for row, (caption, over) in enumerate(rows):
        top, x = TITLE + row * row_height, left
        write(left, top + CAPTION / 2, caption, color=QUIET)
        for column, plane in enumerate(shown):
            wide, high = widths[column] * scale, heights[column] * scale
            y = top + CAPTION + (max(heights) * scale - high) / 2
            axes = figure.add_axes((x / WIDTH, 1 - (y + high) / height, wide / WIDTH, high / height))
            _draw(axes, plane, window, None if over is None else over[column].pixels)
            if over is None:
                write(x, top + CAPTION / 2, plane.name, color=QUIET)
            x += wide + GAP
    if maps:
        x, y, high = left + sum(widths) * scale + 4 * GAP, TITLE + row_height + CAPTION, max(heights) * scale
        axes = figure.add_axes((x / WIDTH, 1 - (y + high) / height, GAP / WIDTH, high / height))
        ramp = np.linspace(1, 0, 256)[:, None]
        axes.imshow(ramp, cmap=MAP_COLOURS, vmin=0, vmax=1, alpha=_opacity(ramp) / OPAQUE, aspect="auto")
        axes.set_axis_off()
        for part in (0, 0.5, 1):
            write(x + 1.5 * GAP, y + (1 - part) * (high - GAP) + GAP / 2, f"{part:g}", color=QUIET)
    place = affine[:3, :3] @ at + affine[:3, 3]
    where = (
        f"planes through voxel ({', '.join(map(str, at))}), at R {place[0]:.1f}, A {place[1]:.1f}, S {place[2]:.1f} mm"
    )
    write(GAP, height - NOTE * 0.7, "; ".join(filter(None, (note, where))), color=QUIET)
    write(GAP, height - NOTE * 0.3, f"radiological convention (R on the left); {DISCLAIMER}", color=QUIET)
    kind = "webp" if Path(path).suffix == ".webp" else "png"
    own: dict[str, Any] = {"pil_kwargs": WEBP} if kind == "webp" else {"metadata": {"Software": None}}
    figure.savefig(path, format=kind, facecolor=BACKGROUND, **own)


def _draw(axes: Any, plane: Plane, window: tuple[float, float], over: np.ndarray | None) -> None:
    """A plane, a map over it, the crosshair with a gap at the point itself, and the names of the edges."""
    axes.set_axis_off()
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
    """The end of a long title, which tells cases apart."""
    return title if len(title) <= LONGEST_TITLE else f"...{title[3 - LONGEST_TITLE :]}"


def drawable(text: str) -> str:
    """The text with "?" for what the font has no picture of."""
    font = get_font(findfont(FontProperties()))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "?" for c in text)


def thumbnail(image: Tensor, relevance: Tensor | np.ndarray | None = None) -> bytes:
    """A small PNG of three planes of an image that a network takes, 84 pixels high, side by side.

    The image lies in RAS, as :func:`planes` draws it: its first channel, its voxels taken as cubes.

    Args:
        image: (channels, S0, S1, S2).
        relevance: (G0, G1, G2), a map over its patches: the planes run through the patch where it is largest, which is
            framed; without it they run through the middle.

    Returns:
        The file's bytes.
    """
    volume = image[0].detach().cpu().float().numpy()
    at: tuple[int, ...] = tuple(n // 2 for n in volume.shape)
    frames: list[Plane] | None = None
    if relevance is not None:
        values = np.asarray(relevance.detach().cpu() if isinstance(relevance, Tensor) else relevance)
        patch = np.asarray(volume.shape) // values.shape
        first = peak_of(values) * patch
        at = tuple(int(n) for n in first + patch // 2)
        inside = np.zeros(volume.shape, dtype=bool)
        inside[tuple(slice(a, a + n) for a, n in zip(first, patch))] = True
        frames = planes(inside, np.eye(4), at)
    low, high = grey_window(volume)
    shown = planes(volume, np.eye(4), at)
    parts = []
    for number, plane in enumerate(shown):
        rows, columns = plane.pixels.shape
        size = max(1, round(THUMBNAIL_PX * columns / rows)), THUMBNAIL_PX
        grey = np.clip((plane.pixels - low) / (high - low), 0, 1) * 254
        whole = size[0] % columns == 0 and size[1] % rows == 0  # voxels as squares, which also packs best
        way = Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR
        part = Image.fromarray(grey.astype(np.uint8)).resize(size, way)
        if frames is not None:
            y, x = np.nonzero(frames[number].pixels)
            box = x.min() * size[0] / columns, y.min() * size[1] / rows
            far = (x.max() + 1) * size[0] / columns - 1, (y.max() + 1) * size[1] / rows - 1
            ImageDraw.Draw(part).rectangle((*box, *far), outline=255)
        parts.append(part)
    picture = Image.new("P", (sum(part.width for part in parts) + 2 * (len(parts) - 1), THUMBNAIL_PX))
    picture.putpalette([level for grey in range(255) for level in [grey] * 3] + list(ImageColor.getrgb(ACCENT)))
    left = 0
    for part in parts:
        picture.paste(Image.frombytes("P", part.size, part.tobytes()), (left, 0))
        left += part.width + 2
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
