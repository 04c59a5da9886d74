# SPDX-License-Identifier: Apache-2.0
"""From files to a network's input: each voxel keeps its place in the world, and its value or what replaces it."""

import re

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, ResizeWithPadOrCropd
from scipy.spatial.transform import Rotation

from monai_llmboost.data import LoadScansd, RefusedScan, ScanReader
from monai_llmboost.data.transforms import CropScand, ResampleScand, ScaleScand, WarnIfUnusuald, percentiles_of


def make_affine(spacing=(1.0, 1.0, 1.0), angles=(0, 0, 0), flips=(1, 1, 1), origin=(-7.0, 11.0, 3.0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("XYZ", angles, degrees=True).as_matrix() @ np.diag(np.multiply(spacing, flips))
    affine[:3, 3] = origin
    return affine


AFFINES = {
    "plain": make_affine(),
    "anisotropic": make_affine((0.7, 0.9, 2.5)),
    "flipped": make_affine((0.8, 0.8, 1.6), flips=(-1, 1, -1)),
    "oblique": make_affine((0.6, 1.1, 1.7), (12, -20, 31)),
    "turned": make_affine((0.6, 1.1, 1.7), (90, 0, 90), (1, -1, 1)),
}
each_affine = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
GRADIENT = np.array([0.3, -0.7, 1.1])


def world(volume):
    """The world position of each voxel, (i, j, k, 3)."""
    places = np.stack(np.meshgrid(*map(np.arange, volume.shape[1:]), indexing="ij"), axis=-1)
    affine = np.asarray(volume.affine)
    return places @ affine[:3, :3].T + affine[:3, 3]


def make_ramp(affine, shape=(24, 20, 16)):
    """A volume whose values are linear in the world."""
    volume = MetaTensor(torch.zeros(1, *shape), affine=torch.tensor(affine))
    volume[0] = torch.tensor(world(volume) @ GRADIENT + 5, dtype=torch.float32)
    return volume


def differences(volume, edge=0):
    """The differences from the ramp, without the outermost voxels."""
    inner = np.abs(np.asarray(volume.as_tensor())[0] - world(volume) @ GRADIENT - 5)
    return inner[tuple(slice(edge, size - edge) for size in inner.shape)]


# -- crop ------------------------------------------------------------------------------------------------------------


@each_affine
@pytest.mark.parametrize("crop", ["none", "foreground", "mask", "centre"])
def test_a_crop_keeps_the_place_of_each_voxel(affine, crop):
    volume = make_ramp(affine)
    mask = torch.zeros(volume.shape)
    mask[:, 5:9, 6:8, 7:12] = 1
    point = affine @ [8, 9, 10, 1]
    item = {"image": volume, "mask": MetaTensor(mask, affine=volume.affine), "centre": point[:3].tolist()}
    above = float(volume.median())
    cropped = CropScand("image", crop, above=above, margin_mm=1.0, size_mm=[9, 8, 7])(item)
    assert set(cropped) == {"image"} and set(item) == {"image", "mask", "centre"}
    assert differences(cropped["image"]).max() < 1e-4
    assert (cropped["image"].shape == volume.shape) or crop != "none"


@each_affine
def test_a_crop_around_a_mask_has_its_margin_in_mm(affine):
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    mask = torch.zeros(1, 24, 20, 16)
    mask[:, 10:13, 9:10, 7:9] = 1
    margin = np.ceil(2.0 / spacing - 1e-6).astype(int)
    cropped = CropScand("image", "mask", margin_mm=2.0)({"image": make_ramp(affine), "mask": mask})["image"]
    assert tuple(cropped.shape[1:]) == tuple(np.array([3, 1, 2]) + 2 * margin)
    assert np.allclose(np.asarray(cropped.affine)[:3, 3], (affine @ [*(np.array([10, 9, 7]) - margin), 1])[:3])


@each_affine
@pytest.mark.parametrize("size", [4, 5])
def test_a_crop_around_a_point_has_the_point_in_its_middle(affine, size):
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    voxel = np.array([11.2, 8.7, 7.4])
    point = (affine @ [*voxel, 1])[:3]
    item = {"image": make_ramp(affine), "centre": point.tolist()}
    cropped = CropScand("image", "centre", size_mm=spacing * size)(item)["image"]
    assert cropped.shape == (1, size, size, size)
    inside = np.linalg.inv(np.asarray(cropped.affine)) @ [*point, 1]
    assert np.abs(inside[:3] - (size - 1) / 2).max() <= 0.5 + 1e-6


def test_a_crop_at_the_border_is_smaller_and_right():
    volume = make_ramp(np.eye(4), (10, 10, 10))
    cropped = CropScand("image", "centre", size_mm=[6, 6, 6])({"image": volume, "centre": [0, 5, 9]})["image"]
    assert cropped.shape[1] < 6 and cropped.shape[2] == 6 and differences(cropped).max() < 1e-5


def test_the_foreground_leaves_out_single_noisy_voxels():
    volume = MetaTensor(torch.zeros(2, 40, 40, 40))
    volume[1, 10:20, 12:22, 14:24] = 1
    volume[0, 2, 3, 4] = 1
    cropped = CropScand("image", "foreground", above=0.5)({"image": volume})["image"]
    assert cropped.shape == (2, 10, 10, 10) and cropped.affine[:3, 3].tolist() == [10, 12, 14]


@pytest.mark.parametrize(
    "crop, item, sentence",
    [
        (
            "foreground",
            {},
            "no plane of the scan has more than 0.1 % of its voxels above 0.5: correct --foreground_abov",
        ),
        ("mask", {}, "the case has no mask to crop around: give one"),
        ("mask", {"mask": torch.zeros(1, 8, 8, 8)}, "the mask is empty: draw it, or leave the case out"),
        ("centre", {}, "the case has no point to crop around: give centre_x, centre_y, centre_z"),
        (
            "centre",
            {"centre": [4, 4, 40]},
            r"the point \(4, 4, 40\) mm is not in the scan: give RAS\+ mm \(DICOM has LPS",
        ),
        ("centre", {"centre": [-1, 4, 4]}, r"the point \(-1, 4, 4\) mm is not in the scan"),
    ],
)
def test_nothing_to_crop_to(crop, item, sentence):
    with pytest.raises(RefusedScan, match=sentence) as refused:
        CropScand("image", crop, above=0.5)({"image": MetaTensor(torch.zeros(1, 8, 8, 8)), **item})
    assert refused.value.kind == "transforms"


def test_an_unknown_crop():
    with pytest.raises(ValueError, match=r"unknown crop 'center'; .*centre"):
        CropScand("image", "center")


# -- resampling ------------------------------------------------------------------------------------------------------


@each_affine
@pytest.mark.parametrize("wanted", [(0.5, 0.5, 0.5), (1, 1, 1), (2, 2, 2), (3, 2.2, 3.4), (2.5, 1.1, 5.1)])
def test_a_linear_ramp_stays_one(affine, wanted):
    resampled = ResampleScand("image", wanted)({"image": make_ramp(affine, (24, 20, 30))})["image"]
    assert np.allclose(np.linalg.norm(np.asarray(resampled.affine)[:3, :3], axis=0), wanted)
    assert differences(resampled, edge=1).max() < 2e-3
    assert resampled.dtype == torch.float32


@each_affine
def test_a_blob_stays_where_it_is(affine):
    volume = make_ramp(affine, (30, 30, 30))
    centre = (affine @ [14.3, 15.1, 13.8, 1])[:3]
    volume[0] = torch.tensor(np.exp(-((world(volume) - centre) ** 2).sum(-1) / 18), dtype=torch.float32)
    for wanted in ((0.9, 0.9, 0.9), (2, 2, 2), (1, 1, 3)):
        resampled = ResampleScand("image", wanted)({"image": volume})["image"]
        weights = np.asarray(resampled.as_tensor())[0][..., None]
        assert np.abs((world(resampled) * weights).sum((0, 1, 2)) / weights.sum() - centre).max() < 0.25


def test_the_wanted_spacing_is_kept_bit_for_bit():
    volume = make_ramp(AFFINES["oblique"])
    assert ResampleScand("image", (0.6, 1.1, 1.7))({"image": volume})["image"] is volume


def test_means_come_before_interpolation():
    volume = MetaTensor((torch.arange(32)[:, None, None] % 2).expand(32, 8, 8)[None].float())
    resampled = ResampleScand("image", [4, 1, 1])({"image": volume})["image"]
    assert torch.allclose(resampled.as_tensor(), torch.tensor(0.5))  # linear interpolation alone gives 0 or 1


@pytest.mark.parametrize(
    "spacing, wanted, sentence",
    [
        (
            (1, 1, 500),
            (1, 1, 1),
            "24 x 20 x 16 voxels of 1 x 1 x 500 mm would become 24 x 20 x 8000: the spacing in the ",
        ),
        ((80, 80, 80), (1, 1, 1), "would become 1920 x 1600 x 1280: the spacing in the header is most likely wrong"),
        (
            (0.001, 0.001, 0.001),
            (1, 1, 1),
            "would become 0.024 x 0.02 x 0.016: the spacing in the header is most likely",
        ),
    ],
)
def test_a_spacing_that_is_wrong_by_far(spacing, wanted, sentence):
    with pytest.raises(RefusedScan, match=sentence):
        ResampleScand("image", wanted)({"image": make_ramp(make_affine(spacing))})


@pytest.mark.parametrize(
    "wanted", [[1, 1], [1, 1, 0], [1, 1, -1], [1, 1, float("nan")], 1.0, "1,1,1", ["a", "b", "c"], None]
)
def test_no_spacing(wanted):
    with pytest.raises(ValueError, match="spacing_mm must be three positive numbers, not"):
        ResampleScand("image", wanted)


# -- intensities -----------------------------------------------------------------------------------------------------


@each_affine
def test_scaling_keeps_geometry_and_input(affine):
    volume = make_ramp(affine)
    before = volume.clone()
    for scheme, ends in (("window", [-20, 30]), ("percentiles", [1, 99]), ("unchanged", None)):
        scaled = ScaleScand("image", scheme, ends)({"image": volume})["image"]
        assert torch.equal(scaled.affine, volume.affine) and torch.equal(volume, before)
        if scheme != "unchanged":
            assert scaled.min() >= 0 and scaled.max() <= 1 and scaled.dtype == torch.float32
    assert torch.equal(scaled, before)


def test_percentiles_are_of_each_channel():
    volume = MetaTensor(torch.stack([torch.rand(6, 6, 6), 1000 * torch.rand(6, 6, 6), torch.zeros(6, 6, 6)]))
    scaled = ScaleScand("image", "percentiles", [0, 100])({"image": volume})["image"]
    assert scaled.amin((1, 2, 3)).tolist() == [0, 0, 0] and scaled.amax((1, 2, 3)).tolist() == [1, 1, 0]


def test_percentiles_of_sparse_constant_and_whole_numbers():
    sparse = torch.zeros(20, 20, 20)
    sparse[3:5, 3, 3] = 7
    assert percentiles_of(sparse, [0.5, 99.5]) == [0, 7]
    assert percentiles_of(sparse, [0.5, 50, 99.5]) == [0, 0, 7]
    assert percentiles_of(torch.full((4, 4, 4), 3.0), [1, 99]) == [3, 3]
    assert percentiles_of(torch.arange(101.0).reshape(1, 1, 101), [5, 95]) == pytest.approx([5, 95])
    assert ScaleScand("image")({"image": MetaTensor(torch.full((1, 4, 4, 4), 3.0))})["image"].max() == 0


def test_percentiles_of_a_large_volume_are_of_evenly_chosen_voxels():
    volume = torch.arange(512.0).expand(128, 256, 512)  # values repeat in each row, as many as a power of two
    assert percentiles_of(volume, [0.5, 25, 50, 99.5]) == pytest.approx([2.5, 127.75, 255.5, 508.5], abs=2)


@pytest.mark.parametrize(
    "scheme, ends", [("window", [5, 5]), ("window", [5]), ("window", None), ("percentiles", [-1, 99]),
                     ("percentiles", [0, 101]), ("percentiles", [99, 1]), ("window", ["low", "high"])]
)  # fmt: skip
def test_no_range(scheme, ends):
    with pytest.raises(ValueError, match=rf"intensity_range of {scheme} must be \[low, high\], not .*: give \["):
        ScaleScand("image", scheme, ends)


def test_an_unknown_scheme():
    with pytest.raises(ValueError, match=r"unknown intensity 'percentile'; .*percentiles"):
        ScaleScand("image", "percentile")


# -- warnings --------------------------------------------------------------------------------------------------------

SEEN = {"spacing_mm": [[1, 1], [1, 1], [1, 2]], "intensity": [0, 100]}


@pytest.mark.parametrize(
    "spacing, low, high, sentences",
    [
        ((1, 1, 1.5), 0, 100, []),
        ((1.4, 0.7, 2.9), -20, 120, []),
        ((1, 1, 5), 0, 100, ["spacing 1 x 1 x 5 mm: in training from 1 x 1 x 1 to 1 x 1 x 2 mm"]),
        ((0.5, 1, 1), 0, 100, ["spacing 0.5 x 1 x 1 mm: in training"]),
        ((1, 1, 1), -1000, 100, ["intensities from -9.* to .*: in training from 0 to 100"]),
        ((1, 1, 1), 0, 0.5, ["intensities from 0.00.* to 0.49.*: in training from 0 to 100"]),
        ((5, 1, 1), 0, 4000, ["spacing 5", "intensities from"]),
    ],
)
def test_a_scan_far_from_the_training_is_reported(spacing, low, high, sentences):
    torch.manual_seed(0)
    volume = MetaTensor(
        low + (high - low) * torch.rand(1, 9, 9, 9), affine=torch.tensor(make_affine(spacing, (5, 6, 7)))
    )
    volume.meta["warnings"] = "earlier"
    found = WarnIfUnusuald("image", SEEN)({"image": volume})["image"].meta["warnings"].splitlines()
    assert found[0] == "earlier" and len(found) == 1 + len(sentences)
    for line, sentence in zip(found[1:], sentences):
        assert re.match(sentence, line), line


def test_without_a_plan_nothing_is_reported():
    volume = MetaTensor(torch.rand(1, 4, 4, 4))
    assert WarnIfUnusuald("image")({"image": volume})["image"].meta["warnings"] == ""


# -- loading ---------------------------------------------------------------------------------------------------------


def save(path, volume):
    nibabel.save(nibabel.Nifti1Image(np.asarray(volume.as_tensor())[0], np.asarray(volume.affine)), path)
    return str(path)


@pytest.mark.parametrize("second", AFFINES.values(), ids=AFFINES)
def test_channels_of_other_grids_are_taken_to_the_first(tmp_path, second):
    first = make_ramp(AFFINES["oblique"], (16, 10, 8))
    # Around the first: its centre in the middle, and larger.
    centre = (AFFINES["oblique"] @ [7.5, 4.5, 3.5, 1])[:3]
    shape = tuple(int(30 / size) for size in np.linalg.norm(second[:3, :3], axis=0))
    around = second.copy()
    around[:3, 3] = centre - second[:3, :3] @ (np.array(shape) - 1) / 2
    paths = [save(tmp_path / "1.nii", first), save(tmp_path / "2.nii", make_ramp(around, shape))]
    loaded = LoadScansd("image", ScanReader(), ["T1", "T2"])({"image": paths})["image"]
    assert loaded.shape == (2, 16, 10, 8) and np.allclose(loaded.affine, AFFINES["oblique"], atol=1e-5)
    assert torch.allclose(loaded[0], loaded[1], atol=5e-3)
    assert loaded.meta["warnings"] == ""


def test_channels_of_one_grid_are_not_resampled(tmp_path):
    volume = make_ramp(AFFINES["oblique"])
    moved = MetaTensor(volume.as_tensor(), affine=volume.affine + 1e-5)
    paths = [save(tmp_path / "1.nii", volume), save(tmp_path / "2.nii", moved)]
    loaded = LoadScansd("image", ScanReader(), 2)({"image": paths})["image"]
    assert torch.equal(loaded[0], loaded[1])


def test_channels_of_different_places(tmp_path):
    near, far = (make_affine(origin=(x, 11, 3)) for x in (3.0, 60.0))
    paths = [save(tmp_path / f"{n}.nii", make_ramp(one)) for n, one in enumerate((make_affine(), near, far))]
    loaded = LoadScansd("image", ScanReader(), ["T1", "T2"])({"image": paths[:2]})["image"]
    assert loaded.meta["warnings"] == "T2 covers 58 % of the first channel's grid; the rest is zero"
    assert (loaded[1, :9] == 0).all() and torch.allclose(loaded[0, 10:], loaded[1, 10:], atol=1e-3)
    with pytest.raises(RefusedScan, match="channel T2 covers 0 % of the first channel's grid, so they are not of one"):
        LoadScansd("image", ScanReader(), ["T1", "T2"])({"image": paths[::2]})


@pytest.mark.parametrize("absent", [None, ""])
def test_a_missing_channel(tmp_path, absent):
    path = save(tmp_path / "1.nii", make_ramp(make_affine()))
    for given in ([path, absent], [absent, path]):
        name = "T2" if given[0] else "T1"
        with pytest.raises(RefusedScan, match=f"the channel {name} is missing: give it, or allow zeros in its place"):
            LoadScansd("image", ScanReader(), ["T1", "T2"])({"image": given})
        loaded = LoadScansd("image", ScanReader(), ["T1", "T2"], "zeros")({"image": given})["image"]
        assert [bool(channel.any()) for channel in loaded] == [bool(one) for one in given]
        assert loaded.meta["warnings"] == f"the channel {name} is missing and was filled with zeros"
    with pytest.raises(RefusedScan, match="the channel T1, T2 is missing"):
        LoadScansd("image", ScanReader(), ["T1", "T2"], "zeros")({"image": [absent, absent]})
    with pytest.raises(
        RefusedScan, match=r"expected 2 scans \(T1, T2\), got 1: give one for each channel, in this ord"
    ):
        LoadScansd("image", ScanReader(), ["T1", "T2"])({"image": path})
    with pytest.raises(RefusedScan, match="the case has no image: give one"):
        LoadScansd("image", ScanReader())({"image": absent})
    with pytest.raises(ValueError, match=r"unknown missing 'zero'; .*zeros"):
        LoadScansd("image", ScanReader(), missing="zero")


def test_a_damaged_channel_or_mask_is_named(tmp_path):
    path = save(tmp_path / "1.nii", make_ramp(make_affine()))
    (tmp_path / "2.nii").write_bytes(b"0" * 400)
    with pytest.raises(RefusedScan, match="channel FLAIR: expected"):
        LoadScansd("image", ScanReader(), ["T1", "FLAIR"])({"image": [path, str(tmp_path / "2.nii")]})
    loaded = LoadScansd("image", ScanReader())({"image": path, "mask": str(tmp_path / "2.nii")})
    with pytest.raises(RefusedScan, match="mask: expected"):
        LoadScansd("mask", ScanReader(), like="image")(loaded)


@each_affine
def test_a_mask_of_another_grid_marks_the_same_place(tmp_path, affine):
    volume = make_ramp(affine)
    mask = make_ramp(make_affine((1, 1, 1), origin=(-60, -60, -60)), (120, 120, 120))
    centre = (affine @ [12, 10, 8, 1])[:3]
    mask[0] = torch.tensor((np.abs(world(mask) - centre) < 2.6).all(-1), dtype=torch.float32)
    load = Compose(
        [
            LoadScansd("image", ScanReader()),
            LoadScansd("mask", ScanReader(), like="image", allow_missing_keys=True),
        ]
    )
    paths = {"image": save(tmp_path / "i.nii", volume), "mask": save(tmp_path / "m.nii", mask)}
    loaded = load(paths)
    assert loaded["mask"].shape == volume.shape and set(loaded["mask"].unique().tolist()) == {0, 1}
    inside = world(volume)[np.asarray(loaded["mask"].as_tensor())[0] > 0]
    assert np.abs(inside - centre).max() < 3.2 and len(inside) > 10
    assert set(load({"image": paths["image"]})) == {"image"}


# -- all together ----------------------------------------------------------------------------------------------------


@each_affine
def test_all_steps_together_keep_places(tmp_path, affine):
    path = save(tmp_path / "1.nii", make_ramp(affine, (40, 32, 20)))
    point = (affine @ [20, 16, 9, 1])[:3]
    steps = Compose(
        [
            LoadScansd("image", ScanReader()),
            lambda item: {**item, "image": Orientation("RAS", labels=None)(item["image"])},
            CropScand("image", "centre", size_mm=[12, 12, 12], margin_mm=2),
            ResampleScand("image", [1.5, 1.5, 1.5]),
            ResizeWithPadOrCropd("image", [7, 7, 7]),
        ]
    )
    first, second = (steps({"image": path, "centre": point.tolist()})["image"] for _ in range(2))
    assert torch.equal(first, second) and first.shape == (1, 7, 7, 7)
    assert differences(first, edge=1).max() < 2e-3
    assert np.abs(world(first)[3, 3, 3] - point).max() < 2.5
