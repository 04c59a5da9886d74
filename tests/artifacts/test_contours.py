# SPDX-License-Identifier: Apache-2.0
"""Contours lie where the structures are, at true proportions, in colours that differ."""

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from monai_llmboost.artifacts.contours import (
    COLOURS,
    GAP_PX,
    colours_of,
    contour_picture,
    largest_planes,
    legend,
    volume_text,
)

AFFINE = np.diag([-1.0, -1.0, 4.0, 1.0])  # as most CT scans lie: i to the left, j to the back
SHAPE = (60, 50, 12)


def scan():
    return np.full(SHAPE, 100.0) + np.arange(SHAPE[0])[:, None, None]


def picture(label_map, structures, **options):
    file = io.BytesIO(contour_picture(scan(), options.pop("affine", AFFINE), label_map, structures, **options))
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def near(pixels, colour):
    """Rows and columns of pixels that are nearly of a colour; WebP is not exact."""
    return np.argwhere(np.abs(pixels - ImageColor.getrgb(colour)).max(axis=-1) < 60)


def test_the_contour_surrounds_the_structure_in_the_planes_with_its_largest_area():
    label_map = np.zeros(SHAPE, np.uint8)
    label_map[20:30, 10:40, 4] = 7
    label_map[20:30, 10:20, 5] = 7  # a smaller plane
    assert largest_planes(label_map) == (25, 15, 4)
    pixels = picture(label_map, {7: "long"})
    # The structure is 30 mm long: the margin holds all of i and j, and k by 4 mm; three planes side by side.
    scale = pixels.shape[0] / 50
    assert pixels.shape[1] == pytest.approx((60 + 60 + 50) * scale + 2 * GAP_PX, abs=3)
    axial = near(pixels[:, : round(60 * scale)], COLOURS[0]) / scale  # rows: j, columns: i, both in mm
    assert axial.min(axis=0) == pytest.approx([10, 20], abs=0.8)
    assert axial.max(axis=0) == pytest.approx([40, 30], abs=0.8)
    inside = (np.abs(axial - [25, 25]) < [13, 3]).all(axis=1)
    assert not inside.any()  # a line, not an area


def test_planes_are_cut_around_a_small_structure_and_keep_their_proportions():
    label_map = np.zeros(SHAPE, np.uint8)
    label_map[2:4, 25:27, 6] = 1
    pixels = picture(label_map, {1: "nodule"})
    columns, rows = 4 + 15, 15 + 2 + 15  # mm: the edge of the scan cuts the margin at one side
    depth = 9 * 4  # 4 planes of margin at each side
    scale = pixels.shape[0] / depth
    assert pixels.shape[1] == pytest.approx((2 * columns + rows) * scale + 2 * GAP_PX, abs=3)


def test_a_reference_is_drawn_too_and_decides_on_the_planes():
    label_map, reference = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    reference[10:40, 10:40, 9] = 2
    structures = {1: "a", 2: "b"}
    alone = picture(label_map, structures, at=(25, 25, 9))
    both = picture(label_map, structures, reference=reference)
    assert not len(near(alone, COLOURS[1]))
    dashed, solid = (len(near(each, COLOURS[1])) for each in (both, picture(reference, structures)))
    assert 0.2 * solid < dashed < 0.95 * solid


def test_an_empty_label_map_shows_the_middle_of_the_whole_scan():
    empty = np.zeros(SHAPE, np.uint8)
    assert largest_planes(empty) == (30, 25, 6)
    assert picture(empty, {1: "a"}).shape[0] > 150


def test_a_label_map_on_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 3, 3\) is not on the grid of a volume of shape \(60, 50, 12\)"):
        picture(np.zeros((3, 3, 3), np.uint8), {1: "a"})


def test_colours_and_legend():
    structures = {value: f"<{value}>" for value in (3, 1, 9)}
    assert colours_of(structures) == {3: COLOURS[0], 1: COLOURS[1], 9: COLOURS[2]}
    html = legend(structures)
    assert [html.index(part) for part in COLOURS[:3]] == sorted(html.index(part) for part in COLOURS[:3])
    assert "&lt;3&gt;" in html and "<3>" not in html
    # Every pair differs in lightness or hue for people without red or green cones, and all are lighter than mid-grey
    # or strongly coloured, so that they contrast with soft tissue.
    rgb = np.array([ImageColor.getrgb(colour) for colour in COLOURS]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    deuteranopia = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    )
    seen = np.clip(linear @ deuteranopia.T, 0, 1) ** (1 / 2.2)
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(COLOURS), 1)]
    assert distances.min() > 0.15


def test_volumes_have_three_digits():
    assert [volume_text(mm3) for mm3 in (0, 0.1234, 99.96, 523.4, 999.6, 1000, 45_678, 1_500_000)] == [
        *("0 mm³", "0.123 mm³", "100 mm³", "523 mm³", "1.00 ml", "1.00 ml", "45.7 ml", "1,500 ml")
    ]
