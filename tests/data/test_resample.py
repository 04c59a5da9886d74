# SPDX-License-Identifier: Apache-2.0
"""Resampling to a spacing depends on the geometry of a scan, and not on the rounding of its header."""

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacing

from monai_llmboost.data import ResampleScand

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:monai")
WANTED = [1.3, 1.4, 1.7]
OBLIQUE = torch.tensor(
    [[0.56, -0.5184, -0.2016, 23.5], [0.42, 0.6912, 0.2688, -8.25], [0.0, -0.252, 1.152, 43.0], [0, 0, 0, 1]],
    dtype=torch.float64,
)


def resampled(affine):
    volume = torch.rand(1, 23, 21, 25, generator=torch.Generator().manual_seed(0))
    return ResampleScand("image", WANTED)({"image": MetaTensor(volume, affine=affine)})["image"], volume


def test_rounded_axes_change_nothing():
    exact, _ = resampled(OBLIQUE)
    nudged = OBLIQUE.clone()
    nudged[:3, :3] += 5e-8 * torch.tensor([[1, -1, 1], [-1, 1, 1], [1, 1, -1]])
    found, _ = resampled(nudged)
    torch.testing.assert_close(found.as_tensor(), exact.as_tensor(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.affine, exact.affine, rtol=0, atol=1e-5)
    torch.testing.assert_close(exact.affine[:3, 3], OBLIQUE[:3, 3])


def test_straight_axes_are_as_in_monai():
    affine = torch.diag(torch.tensor([0.7, 0.9, 1.2, 1.0], dtype=torch.float64))
    found, volume = resampled(affine)
    theirs = Spacing(WANTED, mode="bilinear", padding_mode="border")(MetaTensor(volume, affine=affine))
    torch.testing.assert_close(found.as_tensor(), theirs.as_tensor())
    torch.testing.assert_close(found.affine, theirs.affine)


@pytest.mark.parametrize(("own", "wanted"), [(1.0, 2.5), (0.7, 1.5), (1.0, 3.4), (1.0, 1.9), (3.0, 1.0)])
def test_every_voxel_of_the_scan_is_in_the_new_grid(own, wanted):
    """Else the last plane of a mask on the scan's own grid is background."""
    for number in range(3, 60):
        volume = MetaTensor(torch.zeros(1, number, 4, 4), affine=torch.diag(torch.tensor([own, 1.0, 1.0, 1.0])))
        found = ResampleScand("image", [wanted, 1, 1])({"image": volume})["image"]
        last = torch.linalg.solve(found.affine, volume.affine @ torch.tensor([number - 1.0, 0, 0, 1]).double())[0]
        assert -0.5 < last <= found.shape[1] - 0.5 + 1e-3
        assert found.shape[1] - last < 2, "no voxel is added that holds nothing"
