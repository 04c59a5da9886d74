# SPDX-License-Identifier: Apache-2.0
import base64
import io
import json
import re

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.eulerangles import euler2mat
from PIL import Image

from monai_llmboost.inference.page.viewer import viewer_html

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = euler2mat(0.3, -0.2, 0.5) @ np.diag([-0.8, 1.1, 3.0])
OBLIQUE[:3, 3] = (40, -70, 12)
SHEARED = OBLIQUE @ np.array([[1, 0, 0.4, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
TURNED = np.array([[0, -2.0, 0, 9], [0, 0, 5.0, 1], [1.5, 0, 0, 5], [0, 0, 0, 1]])
IDS = ["eye", "oblique", "sheared", "turned", "fine"]
FINE = np.diag([0.1, 0.1, 0.1, 1])


def shown(page):
    """The parameters that the viewer is called with, and its two stacks of planes as volumes (x, y, z)."""
    params = json.loads(re.search(r"brainsprite\((\{.*?\})\);", page, re.DOTALL)[1])
    x, y, z = params["nbSlice"].values()
    stacks = []
    for name in (params["sprite"], params["overlay"]["sprite"]):
        data = re.search(rf'id="{name}".*?base64,([^"]*)"', page, re.DOTALL)[1]
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"), dtype=float)
        columns = sheet.shape[1] // y
        planes = [sheet[i // columns * z :][:z, i % columns * y :][:, :y] for i in range(x)]
        stacks.append(np.stack([plane[::-1].swapaxes(0, 1) for plane in planes]))
    return params, *stacks


@pytest.mark.parametrize(
    "affine", [np.eye(4), OBLIQUE, SHEARED, TURNED, FINE], ids=["eye", "oblique", "sheared", "turned", "fine"]
)
def test_a_voxel_is_shown_where_it_lies(affine):
    shape, place = (20, 30, 12), (14, 6, 8)
    if affine is FINE:  # several voxels to one of the viewer's
        shape, place = (300, 400, 350), (203, 51, 302)
    volume, relevance = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    around = tuple(slice(p - 2, p + 3) for p in place)
    volume[around] = relevance[around] = 0.5
    volume[place] = relevance[place] = 1
    params, grey, heat = shown(viewer_html(volume, affine, relevance, "x"))
    grid = np.array(params["affine"])  # what the page reads coordinates out by, for slices counted from 1
    voxel_mm = -grid[0, 0]  # x grows to the left of a picture: the radiological convention
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    middle_mm = apply_affine(affine, place)
    cut = np.array(list(params["numSlice"].values()))
    assert np.abs(apply_affine(grid, cut + 1) - middle_mm).max() <= max(voxel_mm, spacing.max()) / 2 + 1e-6
    bright = np.argwhere(heat[..., 3] > 0)
    assert np.abs(apply_affine(grid, bright + 1).mean(0) - middle_mm).max() < max(voxel_mm, spacing.max()) / 2
    seen = np.argwhere(grey[..., 0] > 100)
    assert np.abs(apply_affine(grid, seen + 1).mean(0) - middle_mm).max() < max(voxel_mm, spacing.max()) / 2
    assert max(params["nbSlice"].values()) == 128


def test_grey_goes_from_black_to_white_over_the_window_of_the_voxels():
    volume = np.tile(np.linspace(-1000, 3000, 50, dtype=np.float32)[:, None, None], (1, 50, 50))
    volume[0, 0, 0] = 1e6  # one hot voxel must not make all others black
    params, _, image = shown(viewer_html(volume, np.eye(4), None, "x"))
    assert params["colorMap"]["min"] == pytest.approx(-1000, abs=60)
    assert params["colorMap"]["max"] == pytest.approx(3000, abs=60)
    row = image[::-1, 60, 60, 0]  # from the patient's left, which is on the right
    assert row[0] < 5
    assert row[-1] > 250
    assert np.all(np.diff(row) >= 0)


def test_air_that_is_zero_and_the_outside_are_black():
    volume = np.ones((10, 10, 10), np.float32)
    volume[:5] = 0
    relevance = np.full_like(volume, 0.01)
    relevance[5, 5, 5] = 1
    _, grey, heat = shown(viewer_html(volume, np.eye(4), relevance, "x"))
    assert grey[80:, ..., 0].max() < 5
    assert grey[:50, ..., 0].min() > 250
    assert (heat[..., 3] > 0).mean() < 0.02, "faint relevance is not drawn"


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 300, 3), (5, 6, 7)])
@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_odd_volumes_are_shown(shape, value):
    for relevance in (None, np.zeros(shape), np.ones(shape)):
        assert "canvas" in viewer_html(np.full(shape, value), np.diag([1, 1, 4.0, 1]), relevance, "x")


def test_the_page_fetches_nothing_and_its_title_is_text():
    page = viewer_html(np.random.default_rng(0).random((5, 6, 7)), np.eye(4), None, "<script>é</script>\\1")
    assert "<title>&lt;script&gt;é&lt;/script&gt;\\1</title>" in page
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(?!data:)\w+:", page)
    assert "<link" not in page


@pytest.mark.parametrize(
    ("volume", "relevance", "message"),
    [
        ((5, 6), None, r"an array of shape \(5, 6\) is no volume \(i, j, k\): give one volume"),
        ((5, 6, 0), None, r"an array of shape \(5, 6, 0\) is no volume"),
        ((5, 6, 7), (7, 6, 5), r"relevance has the shape \(7, 6, 5\), the volume \(5, 6, 7\): resample it"),
    ],
)
def test_arrays_of_other_shapes(volume, relevance, message):
    with pytest.raises(ValueError, match=message):
        viewer_html(np.zeros(volume), np.eye(4), None if relevance is None else np.zeros(relevance), "x")


def test_real_volumes(real_data):
    for name in ("monai/anatomical.nii", "niivue/shear.nii.gz", "sct_spine_mr/t2s/t2s_uncropped.nii.gz"):
        image = nibabel.load(real_data / "volumes" / "nifti" / name)
        _, _, grey = shown(viewer_html(np.asanyarray(image.dataobj), image.affine, None, name))
        assert grey[..., 0].std() > 20


def test_a_label_map_is_drawn_in_its_colours_through_its_largest_planes():
    volume = np.random.default_rng(0).random((20, 16, 12)) + 10
    label_map = np.zeros(volume.shape, np.uint8)
    label_map[4:8, 4:8, 4:8] = 9
    label_map[8:14, 4:10, 4:6] = 3
    page = viewer_html(volume, OBLIQUE, None, "x", label_map, {3: "<a>", 9: "b"})
    _, _, over = shown(page)
    colours = {tuple(pixel[:3].astype(int)) for pixel in over[over[..., 3] > 0]}
    assert colours == {(0xE6, 0x9F, 0x00), (0x56, 0xB4, 0xE9)}
    assert 'id="structures"' in page and "&lt;a&gt;" in page and "<a>" not in page
    assert 'id="structures"' not in viewer_html(volume, OBLIQUE, None, "x")
    with pytest.raises(ValueError, match="label map has the shape"):
        viewer_html(volume, OBLIQUE, None, "x", label_map[1:], {3: "a"})
