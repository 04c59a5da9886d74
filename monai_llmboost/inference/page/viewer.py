# SPDX-License-Identifier: Apache-2.0
"""An interactive view of a volume: nilearn's three-plane viewer as one self-contained page."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import nibabel
import numpy as np
from markupsafe import Markup
from matplotlib.colors import ListedColormap
from nibabel.affines import apply_affine, voxel_sizes
from PIL import Image
from scipy.ndimage import affine_transform

from monai_llmboost.artifacts.contours import colours_of, largest_planes, legend

NUM_VOXELS = 128  # along the longest axis of the volume in the page, about a megabyte per volume
WINDOW = (1, 99)  # percentiles of the voxels shown as black and white
FAINTEST = 0.2  # relevance below this part of its maximum is not drawn
OPACITY = 0.5
SPRITE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")

# The viewer's canvas is as wide as its box, so the width of the box also limits the height of the canvas.
STYLE = """<style>
body { margin: 0; background: #000; color: #ddd; font: 14px system-ui, sans-serif; }
[id^=div_viewer] { margin: 0 auto; width: min(100vw, calc((100vh - BARS) / RATIO)); }
[id^=div_viewer] > div { padding-left: 1rem; }
.switch { display: flex; flex-wrap: wrap; gap: 0.3rem 1.5rem; align-items: center; padding: 0.4rem 1rem; }
.switch ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; margin: 0; padding: 0; list-style: none; }
canvas:focus-visible { outline: 2px solid #7dbfe8; outline-offset: -2px; }
</style>"""
SWITCH = Markup(
    '<div class="switch"><label><input type="checkbox" id="structures" autocomplete="off" checked> structures</label>'
    "{}</div>"
)
# nilearn's viewer supports clicks only; this adds keys by the calls of its slider.
KEYS = """<script>
const make = brainsprite;
brainsprite = (params) => {
  const brain = make(params);
  const moves = { ArrowLeft: ["X", -1], ArrowRight: ["X", 1], ArrowDown: ["Z", -1], ArrowUp: ["Z", 1],
    PageDown: ["Y", -1], PageUp: ["Y", 1] };
  const opacity = params.overlay.opacity; // the slider changes it
  document.getElementById("structures")?.addEventListener("change", (event) => {
    const slider = document.querySelector(".slider");
    slider.min = 0; // nilearn's is 1
    slider.value = event.target.checked ? opacity * 100 : 0;
    slider.oninput.call(slider);
  });
  brain.canvas.tabIndex = 0;
  brain.canvas.setAttribute("role", "img");
  brain.canvas.setAttribute("aria-label", "Three planes; arrow keys, page up and page down move them");
  brain.canvas.addEventListener("keydown", (event) => {
    if (!(event.key in moves)) return;
    const [axis, step] = moves[event.key];
    brain.numSlice[axis] = Math.min(Math.max(brain.numSlice[axis] + step, 0), brain.nbSlice[axis] - 1);
    brain.init();
    brain.drawAll();
    event.preventDefault();
  });
  return brain;
};
</script>"""


class Viewer(NamedTuple):
    """The viewer of a case: the case's name, and the page from :func:`viewer_html`."""

    case: str
    html: str


def viewer_html(
    volume: np.ndarray,
    affine: np.ndarray,
    relevance: np.ndarray | None,
    title: str,
    label_map: np.ndarray | None = None,
    structures: Mapping[int, str] | None = None,
) -> str:
    """Return a page that shows a volume in three planes through the voxel of highest relevance.

    Clicks and keys move the planes. The view is in the radiological convention, like the previews: the patient's right
    is on the left of a picture. Volume and relevance are drawn on a grid of cubes along the patient's axes, 128 along
    the longest.

    Args:
        volume: voxels (i, j, k) in any unit.
        affine: (4, 4), voxel to RAS+ mm; may rotate, flip and shear.
        relevance: (i, j, k) on the same grid, from 0; None shows only the volume.
        title: the page's title.
        label_map: (i, j, k) on the same grid, instead of a relevance: its structures are drawn in their colours, and
            the planes run through their largest areas. A box in the page shows and hides them.
        structures: value in the label map to name.

    Returns:
        The page, as text.

    Raises:
        ValueError: the volume is not three-dimensional, or the relevance or label map is on another grid.

    Example:
        >>> page = viewer_html(np.random.rand(8, 8, 8), np.eye(4), None, "scan-001")
        >>> "<title>scan-001</title>" in page
        True
    """
    if volume.ndim != 3 or min(volume.shape) < 1:
        raise ValueError(f"an array of shape {volume.shape} is no volume (i, j, k): give one volume")
    for name, over in (("relevance", relevance), ("label map", label_map)):
        if over is not None and over.shape != volume.shape:
            raise ValueError(f"{name} has the shape {over.shape}, the volume {volume.shape}: resample it first")
    grid, shape = _grid(volume.shape, affine)
    grey = _on_grid(np.nan_to_num(volume, posinf=0, neginf=0), affine, grid, shape, outside=np.nan)
    low, high = np.nanpercentile(grey, WINDOW)
    high = high if high > low else low + 1
    grey = np.clip(np.nan_to_num(grey, nan=low), low, high)
    # nilearn treats voxels of exactly 0 as empty.
    background = 0.001 + (grey - low) / (high - low)
    if label_map is not None and structures:
        numbers = _numbers_on_grid(label_map, list(structures), affine, grid, shape)
        place = np.array(largest_planes(numbers))
        colours = ListedColormap(list(colours_of(structures).values()))
        span = (0.5, len(structures) + 0.5)
        layers = {"image": numbers, "background": background, "cmap": colours, "threshold": 0.5, "opacity": OPACITY}
        page = _page(grid, apply_affine(grid, place), *span, **layers, colorbar=False)
        return _complete(page, shape, title, opacity=OPACITY, switch=SWITCH.format(legend(structures)))
    if relevance is None or not relevance.max() > 0:
        # The volume replaces the map, so that the colour bar shows its values.
        layers = {"image": grey, "background": None, "cmap": "gray", "threshold": None, "opacity": 1.0}
        place = (np.array(shape) - 1) / 2
        span = (float(low), float(high))
    else:
        heat = np.clip(_on_grid(relevance / relevance.max(), affine, grid, shape, outside=0.0), 0, 1)
        layers = {"image": heat, "background": background, "cmap": "inferno", "threshold": FAINTEST, "opacity": OPACITY}
        place = np.array(np.unravel_index(int(heat.argmax()), shape))
        span = (0.0, 1.0)
    page = _page(grid, apply_affine(grid, place), *span, **layers)
    return _complete(page, shape, title, opacity=layers["opacity"])


def _grid(shape: tuple[int, ...], affine: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the affine and shape of a grid of cubes along RAS+ that contains a volume."""
    corners = apply_affine(affine, np.array(np.meshgrid(*((-0.5, size - 0.5) for size in shape))).reshape(3, -1).T)
    start, end = corners.min(0), corners.max(0)
    voxel_mm = float((end - start).max()) / NUM_VOXELS
    grid = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    grid[:3, 3] = start + voxel_mm / 2
    size = np.maximum(np.round((end - start) / voxel_mm), 1).astype(int)
    return grid, tuple(size.tolist())


def _on_grid(
    array: np.ndarray, affine: np.ndarray, grid: np.ndarray, shape: tuple[int, ...], outside: float
) -> np.ndarray:
    """Resample an array to another grid, linearly; each value is the mean of the voxels that it covers."""
    to_voxel = np.linalg.inv(affine) @ grid
    # Blocks of voxels are averaged first, so that details finer than the grid do not cause aliasing.
    step = np.maximum(np.floor(voxel_sizes(grid)[0] / voxel_sizes(affine) + 1e-6), 1).astype(int)
    step = np.minimum(step, array.shape)
    size = [count // each for count, each in zip(array.shape, step)]
    cut = array[tuple(slice(count * each) for count, each in zip(size, step))]
    (a, b, c), (p, q, r) = size, step
    blocks = cut.reshape(a, p, b, q, c, r).mean(axis=(1, 3, 5), dtype=np.float32)
    to_block = np.linalg.inv(np.diag([*step, 1.0])) @ to_voxel
    to_block[:3, 3] -= (1 - 1 / step) / 2  # the centre of block b is voxel b * step + (step - 1) / 2
    values = affine_transform(blocks, to_block, output_shape=shape, order=1, mode="nearest")
    inside = affine_transform(np.ones(size, np.uint8), to_block, output_shape=shape, order=0, mode="grid-constant")
    return np.where(inside, values, np.float32(outside))


def _numbers_on_grid(
    label_map: np.ndarray, values: list[int], affine: np.ndarray, grid: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Return the number of the structure, from 1, of the nearest voxel of a label map; 0 for the background."""
    to_voxel = np.linalg.inv(affine) @ grid
    nearest = affine_transform(label_map, to_voxel, output_shape=shape, order=0, mode="grid-constant")
    numbers = np.zeros(shape, np.float32)
    for number, value in enumerate(values, 1):
        numbers[nearest == value] = number
    return numbers


def _page(
    grid: np.ndarray,
    cut_mm: np.ndarray,
    vmin: float,
    vmax: float,
    image: np.ndarray,
    background: np.ndarray | None,
    **options: Any,
) -> str:
    from nilearn.plotting import view_img  # imports scikit-learn and pyplot

    with warnings.catch_warnings():
        # nilearn warns if no voxel is below the threshold; the whole map is then drawn, as intended.
        warnings.filterwarnings("ignore", message="Threshold given was", category=UserWarning)
        return view_img(
            nibabel.Nifti1Image(image.astype(np.float32), grid),
            bg_img=None if background is None else nibabel.Nifti1Image(background.astype(np.float32), grid),
            cut_coords=tuple(cut_mm.tolist()),
            black_bg=True,
            dim=0,
            radiological=True,
            symmetric_cmap=False,  # neither voxels nor relevance are centred at zero
            vmin=vmin,
            vmax=vmax,
            resampling_interpolation="nearest",  # the image is already on this grid
            **options,
        ).html


def _complete(page: str, shape: tuple[int, ...], title: str, opacity: float, switch: str = "") -> str:
    """Return nilearn's page with our title, style and keys, and without its icon, which would cause a request."""
    # Width of the canvas: planes of j, i and i voxels side by side; height: the highest plane and the coordinates.
    ratio = 1.1 * max(shape[1:]) / (shape[1] + 2 * shape[0])
    style = STYLE.replace("RATIO", f"{ratio:.4f}").replace("BARS", "7.5rem" if switch else "4.5rem")
    head = f"<title>{html.escape(title)}</title>{style}"
    page = re.sub(r"<link[^>]*>", "", page)
    page = re.sub(r"<title>.*?</title>", lambda _: head, page, count=1, flags=re.DOTALL)
    page = re.sub(r"brainsprite\((\{.*?\})\);", _mirror, page, count=1, flags=re.DOTALL)
    page = SPRITE.sub(_compress, page)
    page = page.replace('value="100"', f'value="{opacity:.0%}"'.replace("%", ""), 1)  # start of its slider
    page = re.sub(r"<body[^>]*>", lambda body: body[0] + str(switch), page, count=1)
    before, start, last_script = page.rpartition("<script>")
    return before + KEYS + start + last_script


def _compress(sprite: re.Match[str]) -> str:
    """Return a sprite as a lossless WebP, with one channel if it is grey, or unchanged if its PNG is smaller."""
    content = base64.b64decode(sprite[1])
    picture: Any = Image.open(io.BytesIO(content)).convert("RGBA")
    *colours, opacity = picture.split()
    if opacity.getextrema() == (255, 255):
        picture = colours[0] if colours[0] == colours[1] == colours[2] else picture.convert("RGB")
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=True, quality=50, exact=True)
    if len(file.getvalue()) >= len(content):
        return sprite[0]
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _mirror(call: re.Match[str]) -> str:
    """Mirror the point and the coordinates, because nilearn mirrors only the planes."""
    params = json.loads(call[1])
    last = params["nbSlice"]["X"] - 1
    params["numSlice"]["X"] = last - params["numSlice"]["X"]
    # Coordinates are affine @ (slice + 1): slice i now shows slice last - i.
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[0, 3] = last + 2
    params["affine"] = (np.array(params["affine"]) @ mirror).tolist()
    return f"brainsprite({json.dumps(params)});"
