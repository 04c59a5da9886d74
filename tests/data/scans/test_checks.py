# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_llmboost.data import CheckVolumed


def image(size=(9, 8, 7), seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, *size)).astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :, :, 0], r"expected a volume with 1 channel\(s\), got shape \(1, 9, 8\)"),
        (lambda x: x.repeat(2, 1, 1, 1), r"expected a volume with 1 channel\(s\), got shape \(2, 9, 8, 7\)"),
        (lambda x: x[:, :, :, :1], "expected at least 2 x 2 x 2 voxels, got 9 x 8 x 1: too small"),
        (lambda x: torch.where(x == x.max(), torch.nan, x), r"expected finite voxels, \d are NaN or infinite"),
        (lambda x: torch.where(x == x.max(), -torch.inf, x), r"expected finite voxels, \d are NaN or infinite"),
        (lambda x: x * 0 + 7, "expected an image, every voxel is 7"),
        (lambda x: x - 1000, "expected voxels from 0 to 255, as in training, got -1000"),
        (lambda x: x / 255, "expected voxels that use the range 0 to 255, got 0 to 1, perhaps scaled before"),
    ],
)
def test_check_refuses_unsuitable_volumes(change, message):
    with pytest.raises(ValueError, match=message):
        CheckVolumed("image")({"image": change(image())})


def test_other_intensity_ranges_are_possible():
    scan = image() * 10 - 1000
    assert CheckVolumed("image", intensity_range=(-1000, 400), clip_intensities=True)({"image": scan})["image"] is scan
    with pytest.raises(ValueError, match="voxels from -1000 to 400"):
        CheckVolumed("image", intensity_range=(-1000, 400))({"image": scan})
    with pytest.raises(ValueError, match="a volume with 2 channel"):
        CheckVolumed("image", channels=2)({"image": scan})
    with pytest.raises(ValueError, match=r"intensity_range must be \[low, high\], not \(3, 1\)"):
        CheckVolumed("image", intensity_range=(3, 1))
    with pytest.raises(ValueError, match="clip_intensities must be True or False, not 'false'"):
        CheckVolumed("image", clip_intensities="false")


def test_other_minimum_sizes_are_possible():
    assert CheckVolumed("image", min_size=7)({"image": image()})
    assert CheckVolumed("image", min_size=(9, 8, 7))({"image": image()})
    with pytest.raises(ValueError, match="at least 8 x 8 x 8 voxels, got 9 x 8 x 7"):
        CheckVolumed("image", min_size=8)({"image": image()})
    with pytest.raises(ValueError, match="at least 9 x 9 x 7 voxels, got 9 x 8 x 7"):
        CheckVolumed("image", min_size=(9, 9, 7))({"image": image()})


def test_label_map_gives_a_warning():
    labels = MetaTensor(image() // 128 * 128, meta={"warnings": "from the reader"})
    out = CheckVolumed("image")({"image": labels})["image"]
    assert out.meta["warnings"].splitlines() == [
        "from the reader",
        "different values in some 8192 voxels: 2; perhaps it is a map of labels, no image",
    ]
    reason = r"got 0 to 1, perhaps a map of labels: .* give --intensity_range '.low,high.'$"
    with pytest.raises(ValueError, match=reason):
        CheckVolumed("image", clip_intensities=True)({"image": image() // 128})
    assert "warnings" not in CheckVolumed("image")({"image": MetaTensor(image())})["image"].meta


def test_clipped_voxels_give_a_warning():
    wide = image()
    wide[0, 0] = 300
    out = CheckVolumed("image", clip_intensities=True)({"image": MetaTensor(wide)})["image"]
    share = 100 * float((wide > 255).float().mean())
    assert out.meta["warnings"] == f"clipped to 0 to 255: {share:.2g} % of the voxels"


@pytest.mark.parametrize("wrong", ["foo", 3, [1, 2, 3], [None, 2]])
def test_invalid_intensity_range(wrong):
    with pytest.raises(ValueError, match=r"intensity_range must be \[low, high\], not"):
        CheckVolumed("image", intensity_range=wrong)


def test_values_are_sampled_from_the_whole_volume():
    """An image after a large constant part is not a label map."""
    wide = torch.zeros(1, 128, 64, 64)
    wide[:, 64:] = image((64, 64, 64))
    assert "warnings" not in CheckVolumed("image")({"image": MetaTensor(wide)})["image"].meta


def test_volumes_are_checked_in_parts(monkeypatch):
    """A voxel outside the range, or NaN, is found in any part, and in any order of the axes in memory."""
    monkeypatch.setattr("monai_llmboost.data.scans.checks.CHUNK_VOXELS", 50)
    for order in ((0, 1, 2, 3), (0, 3, 2, 1), (0, 2, 3, 1)):
        wide = image().permute(order)
        for place in ((0, 0, 0, 0), (0, 1, 1, 1), (0, -1, -1, -1)):
            changed = wide.clone()
            changed[place] = 300
            checked = CheckVolumed("image", clip_intensities=True)({"image": MetaTensor(changed)})["image"]
            assert checked.meta["warnings"] == "clipped to 0 to 255: 0.2 % of the voxels"
            changed[place] = torch.nan
            with pytest.raises(ValueError, match="expected finite voxels, 1 are NaN or infinite"):
                CheckVolumed("image")({"image": changed})


def test_an_end_of_the_range_is_compared_in_the_dtype_of_the_voxels():
    scan = image() / 255 * np.float32(0.1)
    assert float(scan.max()) > 0.1  # in float64
    out = CheckVolumed("image", intensity_range=(0, 0.1), clip_intensities=True)({"image": MetaTensor(scan)})["image"]
    assert "warnings" not in out.meta
