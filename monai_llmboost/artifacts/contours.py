# SPDX-License-Identifier: Apache-2.0
"""Pictures of the structures of a label map: their contours over three planes of a scan, and their colours."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from monai_llmboost.artifacts.planes import Plane, grey_window, planes

# Light colours of Okabe and Ito, which colour-blind people distinguish, in an order in which neighbours differ most.
COLOURS = ("#e69f00", "#56b4e9", "#f0e442", "#009e73", "#cc79a7", "#d55e00", "#ffffff")
# Size limits of a picture in pixels: three planes side by side, and the highest of them.
WIDTH_PX, HEIGHT_PX, GAP_PX = 660, 220, 4
DOTS_PER_INCH = 100
# A picture shows the box around all structures and, on each side, its size again, at least so many mm.
MARGIN, LEAST_MARGIN_MM = 1.0, 15.0
LINE, REFERENCE_LINE, HALO = 1.2, (0, (2.5, 1.8)), 2.2
WEBP = {"quality": 82, "method": 4, "use_sharp_yuv": True}


def colours_of(structures: Mapping[int, str]) -> dict[int, str]:
    """Return the colour of each structure, by its value; after seven structures the colours repeat.

    Example:
        >>> colours_of({1: "anterior", 2: "posterior"})
        {1: '#e69f00', 2: '#56b4e9'}
    """
    return {value: COLOURS[number % len(COLOURS)] for number, value in enumerate(structures)}


def legend(structures: Mapping[int, str], colours: Mapping[int, str] | None = None) -> Markup:
    """Return the names of structures with their colours as HTML, a list of the class ``legend``."""
    colours = colours or colours_of(structures)
    swatch = Markup('<svg viewBox="0 0 10 10" width="10" height="10" aria-hidden="true">{}</svg>')
    square = Markup('<path d="M0 0H10V10H0Z" style="fill:{};stroke:#555"/>')
    items = Markup("").join(
        Markup("<li>{} <bdi>{}</bdi></li>").format(swatch.format(square.format(colours[value])), name)
        for value, name in structures.items()
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def volume_text(mm3: float) -> str:
    """Return a volume with its unit and about three digits: in mm³ below one millilitre, else in ml.

    Example:
        >>> volume_text(1234.5), volume_text(87.31), volume_text(1_234_567), volume_text(0)
        ('1.23 ml', '87.3 mm³', '1,235 ml', '0 mm³')
    """
    value, unit = (mm3 / 1000, "ml") if mm3 >= 999.5 else (mm3, "mm³")
    return f"{value:,.0f} {unit}" if value >= 99.95 or not value else f"{value:#.3g} {unit}"


def largest_planes(label_map: np.ndarray) -> tuple[int, int, int]:
    """Return the voxel (i, j, k) through which the planes with the largest area of all structures run.

    The middle one if several planes have the largest area, and the centre of a label map without structures.

    Args:
        label_map: (i, j, k), 0 is background.
    """
    tops = [np.flatnonzero(area == area.max()) if area.any() else np.arange(len(area)) for area in _areas(label_map)]
    i, j, k = (int(top[len(top) // 2]) for top in tops)
    return i, j, k


def _areas(label_map: np.ndarray) -> list[np.ndarray]:
    """Return the number of voxels of structures in each plane across i, j and k."""
    across_k = np.stack([np.count_nonzero(plane, axis=0) for plane in label_map])  # (i, k), without a large copy
    along_j = sum(np.count_nonzero(plane[None], axis=(0, 2)) for plane in label_map)
    return [across_k.sum(axis=1), np.asarray(along_j), across_k.sum(axis=0)]


def contour_picture(
    volume: np.ndarray,
    affine: np.ndarray,
    label_map: np.ndarray,
    structures: Mapping[int, str],
    colours: Mapping[int, str] | None = None,
    reference: np.ndarray | None = None,
    at: Sequence[int] | None = None,
) -> bytes:
    """Return a WebP of the axial, coronal and sagittal plane with the contours of the structures.

    The planes are in the radiological convention and in their true proportions, all with the same scale. They are cut
    around the structures, with a margin of the size of their box. See :func:`monai_llmboost.artifacts.planes.planes`.

    Args:
        volume: (i, j, k), the scan.
        affine: (4, 4), voxels to RAS+ mm.
        label_map: (i, j, k) on the scan's grid; contours are lines.
        structures: value in the label map to name; 0 is background.
        colours: colour of each value; None takes those of :func:`colours_of`.
        reference: another label map on the same grid, such as manual labels; its contours are dashed.
        at: voxel (i, j, k) through which the planes run; None takes the largest planes of both label maps together.

    Raises:
        ValueError: a label map on another grid.

    Example:
        >>> volume, label_map = np.random.rand(20, 30, 10), np.zeros((20, 30, 10), np.uint8)
        >>> label_map[5:15, 10:20, 3:7] = 1
        >>> picture = contour_picture(volume, np.diag([1, 1, 3, 1.0]), label_map, {1: "cube"})
        >>> Image.open(io.BytesIO(picture)).format
        'WEBP'
    """
    maps = [label_map] if reference is None else [label_map, reference]
    for other in maps:
        if other.shape != volume.shape or volume.ndim != 3:
            raise ValueError(
                f"a label map of shape {other.shape} is not on the grid of a volume of shape {volume.shape}: give both "
                "as (i, j, k) on one grid"
            )
    affine = np.asarray(affine, dtype=np.float64)
    colours = colours or colours_of(structures)
    together = label_map if reference is None else np.maximum(label_map, reference)
    at = largest_planes(together) if at is None else at
    window = grey_window(volume)
    cut = _view(together, affine)
    at = [place - part.start for place, part in zip(at, cut)]
    shown = planes(volume[cut], affine, at)
    over = [planes(each[cut], affine, at) for each in maps]
    return _draw(shown, over, window, colours)


def _view(label_map: np.ndarray, affine: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the box around all structures with its margins, or the whole grid if there are none."""
    cut = []
    mm = np.linalg.norm(affine[:3, :3], axis=0)
    boxes = [np.flatnonzero(area) for area in _areas(label_map)]
    largest_mm = max(((box[-1] - box[0] + 1) * each for box, each in zip(boxes, mm) if len(box)), default=0.0)
    for size, box, each in zip(label_map.shape, boxes, mm):
        if not len(box):
            cut.append(slice(0, size))
            continue
        margin = int(np.ceil(max(MARGIN * largest_mm, LEAST_MARGIN_MM) / each))
        cut.append(slice(max(0, int(box[0]) - margin), min(size, int(box[-1]) + 1 + margin)))
    i, j, k = cut
    return i, j, k


def _draw(
    shown: Sequence[Plane],
    over: Sequence[Sequence[Plane]],
    window: tuple[float, float],
    colours: Mapping[int, str],
) -> bytes:
    heights, widths = zip(*((n * mm for n, mm in zip(plane.pixels.shape, plane.pixel_mm)) for plane in shown))
    scale = min((WIDTH_PX - 2 * GAP_PX) / sum(widths), HEIGHT_PX / max(heights))  # pixels per mm
    sizes = [(max(1, round(width * scale)), max(1, round(height * scale))) for width, height in zip(widths, heights)]
    total, tallest = sum(width for width, _ in sizes) + 2 * GAP_PX, max(height for _, height in sizes)
    figure = Figure(figsize=(total / DOTS_PER_INCH, tallest / DOTS_PER_INCH), dpi=DOTS_PER_INCH, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    left = 0
    for number, (plane, (width, height)) in enumerate(zip(shown, sizes)):
        bottom = (tallest - height) / 2
        axes = figure.add_axes((left / total, bottom / tallest, width / total, height / tallest))
        _draw_plane(axes, plane, window)
        for pictures, style in zip(over, ("solid", REFERENCE_LINE)):
            _draw_contours(axes, pictures[number].pixels, colours, style)
        left += width + GAP_PX
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    file = io.BytesIO()
    picture.save(file, "WEBP", **WEBP)
    return file.getvalue()


def _draw_plane(axes: Any, plane: Plane, window: tuple[float, float]) -> None:
    rows, columns = plane.pixels.shape
    axes.set_axis_off()
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axes.imshow(plane.pixels, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, aspect="auto",
                interpolation="bilinear")  # fmt: skip
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    for letters, (x, y, ha, va) in zip(
        plane.edges[::2], ((0.015, 0.5, "left", "center"), (0.5, 0.985, "center", "top"))
    ):
        text = axes.text(x, y, letters, transform=axes.transAxes, color="white", fontsize=7, ha=ha, va=va)
        text.set_path_effects([withStroke(linewidth=1.5, foreground="black")])


def _draw_contours(axes: Any, labels: np.ndarray, colours: Mapping[int, str], style: Any) -> None:
    """Draw the outline of each structure of a plane; a dark halo keeps it visible over white."""
    halo = [withStroke(linewidth=HALO, foreground="black", alpha=0.55)]
    rows, columns = (np.arange(-1, size + 1) for size in labels.shape)
    for value, colour in colours.items():
        inside = np.pad(labels == value, 1)  # closes the outline of a structure at the edge
        if not inside.any():
            continue
        lines = axes.contour(columns, rows, inside.astype(np.float32), levels=[0.5], colors=[colour],
                             linewidths=LINE, linestyles=[style])  # fmt: skip
        lines.set_path_effects(halo)
