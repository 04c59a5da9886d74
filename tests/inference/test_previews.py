# SPDX-License-Identifier: Apache-2.0
"""Which way round a patient lies in a picture, and that pictures are made of whatever comes."""

import io
import threading

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff
from PIL import Image

from monai_llmboost.artifacts.planes import grey_window, peak_of, planes
from monai_llmboost.inference.maps.previews import drawable, save_preview, shortened
from monai_llmboost.inference.maps.thumbnails import thumbnail

RAS_SHAPE = (7, 9, 5)
RAS_AFFINE = np.array([[2.0, 0, 0, -6], [0, 3, 0, 4], [0, 0, 5, 1], [0, 0, 0, 1]])


def stored(ras, codes):
    """A volume in RAS order, stored in another order, and its affine."""
    change = nibabel.orientations.ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return apply_orientation(ras, change), RAS_AFFINE @ inv_ornt_aff(change, ras.shape)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "AIL", "SPR", "PIL"])
def test_the_patient_lies_as_in_radiology_however_the_volume_is_stored(codes):
    """One voxel at the left back of the head lies at the right, back and top of the pictures."""
    ras = np.zeros(RAS_SHAPE)
    ras[0, 0, -1] = 1
    volume, affine = stored(ras, codes)
    axial, coronal, sagittal = planes(volume, affine, peak_of(volume))
    assert [plane.name for plane in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    assert axial.edges == ("R", "L", "A", "P")
    assert coronal.edges == ("R", "L", "S", "I")
    assert sagittal.edges == ("A", "P", "S", "I")
    assert axial.pixels.shape == (9, 7)
    assert coronal.pixels.shape == (5, 7)
    assert sagittal.pixels.shape == (5, 9)
    assert axial.pixel_mm == pytest.approx((3, 2))
    assert coronal.pixel_mm == pytest.approx((5, 2))
    assert sagittal.pixel_mm == pytest.approx((5, 3))
    for plane, corner in ((axial, (8, 6)), (coronal, (0, 6)), (sagittal, (0, 8))):
        assert plane.pixels[corner] == 1
        assert plane.cross == corner
        assert plane.pixels.sum() == 1


def test_planes_run_through_the_point_and_keep_all_voxels_in_place():
    ras = np.random.default_rng(0).random(RAS_SHAPE)
    expected = [ras[::-1, ::-1, 3].T, ras[::-1, 2, ::-1].T, ras[1, ::-1, ::-1].T]
    for codes in ("RAS", "LPS", "IAR"):
        volume, affine = stored(ras, codes)
        at = tuple(np.round(np.linalg.inv(affine) @ RAS_AFFINE @ (1, 2, 3, 1)).astype(int)[:3])
        for plane, pixels in zip(planes(volume, affine, at), expected):
            np.testing.assert_array_equal(plane.pixels, pixels)


def test_edges_of_an_oblique_volume_are_named_by_where_they_really_lie():
    turn = np.radians(30)
    affine = np.eye(4)
    affine[:3, :3] = [[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]]
    axial, coronal, sagittal = planes(np.zeros((4, 4, 4)), affine, (0, 0, 0))
    assert axial.edges == ("R", "L", "AS", "PI")
    assert coronal.edges == ("R", "L", "SP", "IA")
    assert sagittal.edges == ("AS", "PI", "SP", "IA")


def test_the_peak_is_in_the_middle_of_a_level_top():
    values = np.zeros((6, 6, 6))
    values[:3, 2:5, 4] = 1
    values[0, 0, 0] = 0.9
    assert peak_of(values) == (1, 3, 4)
    assert peak_of(np.zeros((5, 5, 7))) == (2, 2, 3)
    values[5, 0, 0] = 1
    assert values[peak_of(values)] == 1, "between two peaks there may be nothing"


def test_the_grey_window_leaves_out_the_extremes():
    values = np.arange(101.0)
    values[-1] = 1e9
    assert grey_window(values.reshape(101, 1, 1)) == pytest.approx((1, 99))
    assert grey_window(np.full((3, 3, 3), 7.0)) == (7, 8)
    assert grey_window(np.full((3, 3, 3), np.nan)) == (0, 1)


def runs(flags):
    """Where flags are set without a break, as (first, after the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(int), [0]))))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2]) if b - a > 20]


def test_a_preview_shows_the_map_at_its_place(tmp_path):
    """The volume is grey, so what is warm is the map: 8 voxels from the right side, the back and the top, of 40."""
    ras, peak = np.random.default_rng(0).random((40, 40, 40)), np.zeros((40, 40, 40))
    peak[28:35, 5:12, 28:35] = 1
    (volume, affine), (values, _) = stored(ras, "LPS"), stored(peak, "LPS")
    save_preview(tmp_path / "x", volume, affine, {"network": values}, "case", "token size 7 mm")
    picture = Image.open(tmp_path / "x")
    assert picture.format == "PNG"
    assert picture.size[0] <= 1200
    pixels = np.asarray(picture.convert("RGB"), dtype=int)
    lit, warm = pixels.max(axis=-1) > 20, pixels[..., 0] - pixels[..., 2] > 80
    columns = [run for run in runs(lit.mean(axis=0) > 0.4) if run[1] - run[0] > 100]
    assert len(columns) == 3
    # across and down, as parts of the panel: the right side is on the left
    for (left, right), (across, down) in zip(columns, [(8.5, 31.5), (8.5, 8.5), (31.5, 8.5)]):
        rows = [run for run in runs(lit[:, left:right].mean(axis=1) > 0.5) if run[1] - run[0] > 100]
        assert len(rows) == 2, "the volume alone, and below it with the map"
        (top, bottom), (map_top, map_bottom) = rows
        assert not warm[top:bottom, left:right].any()
        y, x = np.nonzero(warm[map_top:map_bottom, left:right])
        assert x.mean() / (right - left) == pytest.approx(across / 40, abs=0.02)
        assert y.mean() / (map_bottom - map_top) == pytest.approx(down / 40, abs=0.02)
        assert len(x) / ((right - left) * (map_bottom - map_top)) < 0.06, "invisible where it is low"


@pytest.mark.parametrize("shape", [(2, 2, 2), (300, 4, 3), (3, 2, 200), (160, 160, 2)])
def test_a_preview_of_any_shape(tmp_path, shape):
    volume = np.random.default_rng(0).integers(-1000, 1000, shape, dtype=np.int16)
    save_preview(tmp_path / "x.png", volume, np.diag([0.5, 0.5, 3, 1]), {}, "x", "")
    picture = Image.open(tmp_path / "x.png")
    picture.load()
    assert 0 < picture.size[0] <= 1200
    assert 0 < picture.size[1] <= 2000


def test_names_that_no_font_can_draw_and_formulas_are_drawn_as_plain_text(tmp_path):
    """Warnings are errors here, so a missing glyph or a broken formula would end the test."""
    title = "a$\\frac$_{x \u7ffb\udc80\n" + "long/" * 40
    save_preview(tmp_path / "x.png", np.zeros((3, 3, 3)), np.eye(4), {}, title, "$\\frac$")
    assert drawable("a\u7ffb\n$\u00e4") == "a??$\u00e4"
    assert shortened("x" * 500 + "end.nii").endswith("xend.nii")
    assert len(shortened("x" * 500)) == 90


def test_previews_are_the_same_in_threads(tmp_path):
    volume, values = np.random.default_rng(0).random((2, 12, 12, 12))

    def draw(name):
        save_preview(tmp_path / name, volume, np.eye(4), {"network": values}, "case", "note")

    threads = [threading.Thread(target=draw, args=(f"{number}.png",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    draw("alone.png")
    assert {(tmp_path / f"{number}.png").read_bytes() for number in range(3)} == {(tmp_path / "alone.png").read_bytes()}


def test_a_thumbnail_shows_the_middle_planes():
    """One bright voxel in the middle of the head from right to left, at the back and the top."""
    image = torch.zeros(2, 28, 28, 28)
    image[0, 14, 3, 25] = 1
    picture = Image.open(io.BytesIO(thumbnail(image)))
    assert picture.format == "PNG"
    assert picture.size == (3 * 84 + 2 * 2, 84)
    rows, columns = np.nonzero(np.asarray(picture) > 100)
    assert (rows.min(), rows.max()) == (6, 8), "three pixels a voxel, in the sagittal plane alone"
    assert (columns.min() - 172, columns.max() - 172) == (72, 74)


def test_a_thumbnail_is_small_and_of_one_height_for_any_size():
    torch.manual_seed(0)
    noise = torch.nn.functional.interpolate(torch.rand(1, 1, 12, 12, 12), size=(28, 28, 28), mode="trilinear")[0]
    assert 500 < len(thumbnail(noise)) < 8000
    odd = Image.open(io.BytesIO(thumbnail(torch.rand(1, 8, 12, 16))))
    assert odd.size[1] == 84
    assert odd.size[0] == round(84 * 8 / 12) + round(84 * 8 / 16) + round(84 * 12 / 16) + 4
