# SPDX-License-Identifier: Apache-2.0
import itertools

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientation, Orientationd

from monai_llmboost.data import OrientScand
from monai_llmboost.data.steps import list_voxel_steps

OBLIQUE = np.array([[0.9, 0.1, 0, -20], [-0.1, 0.9, 0.05, 7.3], [0, -0.05, 2.4, 31], [0, 0, 0, 1]])
CODES = ["".join(code) for axes in itertools.permutations(["LR", "PA", "IS"]) for code in itertools.product(*axes)]


def make_volume(code, channels=2):
    """Return a volume whose axes have these directions."""
    volume = MetaTensor(torch.rand(channels, 5, 4, 7), affine=torch.as_tensor(OBLIQUE))
    return Orientation(code, labels=None)(volume)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("wanted", ["RAS", "SPL"])
def test_result_is_that_of_monai(code, wanted):
    volume = make_volume(code)
    stock = Orientationd("image", axcodes=wanted, labels=None)({"image": volume.clone()})["image"]
    ours = OrientScand("image", wanted)({"image": volume})["image"]
    assert torch.equal(ours.as_tensor(), stock.as_tensor()) and torch.equal(ours.affine, stock.affine)
    (traced,), (expected,) = ([{**one, "id": 0} for one in v.applied_operations[1:]] for v in (ours, stock))
    assert str(traced) == str(expected)
    assert ours.meta.keys() == stock.meta.keys()


@pytest.mark.parametrize("code", ["LPS", "RAI", "SRP"])
def test_memory_is_that_of_the_given_volume(code):
    volume = make_volume(code)
    address = volume.data_ptr()
    before = volume.clone()
    ours = OrientScand("image")({"image": volume})["image"]
    assert ours.data_ptr() == address
    # The given volume is in its place still: what is at a point is there before and after.
    place = before.affine.numpy() @ [1, 2, 3, 1]
    voxel = np.rint(np.linalg.solve(volume.affine.numpy(), place)).astype(int)[:3]
    assert torch.equal(volume.as_tensor()[(slice(None), *voxel)], before.as_tensor()[:, 1, 2, 3])
    directions = nibabel.aff2axcodes(volume.affine.numpy())
    assert sorted(directions) == ["A", "R", "S"]


def test_is_inverted_as_by_monai():
    volume = make_volume("PSL")
    transform = Compose([OrientScand("image")])
    item = transform({"image": volume.clone()})
    item["mask"] = MetaTensor(item["image"].as_tensor() * 2, meta=dict(item["image"].meta))
    inverted = Invertd("mask", transform, orig_keys="image")(item)["mask"]
    torch.testing.assert_close(inverted.as_tensor(), 2 * volume.as_tensor())


def test_lazy_pipelines_and_volumes_without_affine_are_left_to_monai():
    volume = make_volume("LPS")
    lazy = Compose([OrientScand("image")], lazy=True)({"image": volume.clone()})["image"]
    assert torch.equal(lazy.as_tensor(), OrientScand("image")({"image": volume})["image"].as_tensor())
    plain = torch.rand(1, 3, 3, 3)
    with pytest.warns(UserWarning, match="identity"):
        assert torch.equal(OrientScand("image")({"image": plain})["image"], plain)
    assert OrientScand("image", allow_missing_keys=True)({}) == {}


def test_checkpoints_have_it_under_the_name_of_monai():
    ours, stock = (list_voxel_steps(one) for one in (OrientScand("image"), Orientationd("image", "RAS", labels=None)))
    assert ours == stock and ours[0].geometric and ours[0].name == "Orientation"
