# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Affine, Compose

from monai_llmboost.data import RandAffineBatchd

RANGES = {"rotate_range": [0.4, 0.3, 0.2], "translate_range": [2, 1.5, 1], "scale_range": [0.2, 0.1, 0.3]}


def volumes(cases=6, channels=1, size=(9, 8, 7), dtype=torch.float32):
    return torch.rand(cases, channels, *size, generator=torch.Generator().manual_seed(0), dtype=dtype)


def augmented(images, seed=0, key="image", **options):
    transform = RandAffineBatchd(key, **{"prob": 1.0, **RANGES, **options})
    transform.set_random_state(seed=seed)
    return transform({key: images})[key], transform


def exactly(value):
    """A range that holds one value."""
    return [(entry, entry) for entry in value]


# Single parameters show which one is wrong; together they show whether their order is right.
@pytest.mark.parametrize(
    ("rotate", "translate", "scale"),
    [
        ((0.5, 0, 0), (0, 0, 0), (1, 1, 1)),
        ((0, 0.5, 0), (0, 0, 0), (1, 1, 1)),
        ((0, 0, 0.5), (0, 0, 0), (1, 1, 1)),
        ((0, 0, 0), (1.3, -2, 0.4), (1, 1, 1)),
        ((0, 0, 0), (0, 0, 0), (1.2, 0.8, 1.5)),
        ((0.3, -0.2, 0.6), (1.3, -2, 0.4), (1.2, 0.8, 1.5)),
    ],
)
@pytest.mark.parametrize("size", [(8, 8, 8), (12, 9, 6)])
def test_result_equals_that_of_monai(size, rotate, translate, scale):
    images = volumes(2, channels=3, size=size)
    ours, _ = augmented(
        images,
        rotate_range=exactly(rotate),
        translate_range=exactly(translate),
        scale_range=exactly([factor - 1 for factor in scale]),
    )
    affine = Affine(rotate, None, translate, scale, padding_mode="zeros", image_only=True)
    for image, result in zip(images, ours):
        assert torch.allclose(result, affine(image).as_tensor(), atol=1e-5)
    assert (ours - images).abs().max() > 0.1


def test_each_case_has_its_own_draw_within_the_ranges():
    _, transform = augmented(volumes(500, size=(2, 2, 2)))
    matrices = transform.matrices
    scales = np.linalg.norm(matrices[:, :, :3], axis=1)  # of the columns of R diag(scale)
    shifts = np.linalg.solve(matrices[:, :, :3] / scales[:, None], matrices[:, :, 3:])[:, :, 0]
    for values, centre, reach in ((scales, 1, RANGES["scale_range"]), (shifts, 0, RANGES["translate_range"])):
        assert (np.abs(values - centre) <= np.array(reach) + 1e-9).all()
        assert (np.abs(values - centre).max(0) > 0.95 * np.array(reach)).all()
    assert len(np.unique(matrices.reshape(500, -1), axis=0)) == 500


def test_without_ranges_only_rounding_changes():
    images = volumes(size=(28, 28, 28))
    ours, _ = augmented(images, **dict.fromkeys(RANGES))
    assert torch.allclose(ours, images, atol=1e-5)


def test_volumes_rotate_about_their_centre():
    images = volumes(1, size=(5, 5, 6))
    ours, _ = augmented(images, **{**dict.fromkeys(RANGES), "rotate_range": exactly((0, 0, np.pi / 2))})
    assert torch.allclose(ours, torch.rot90(images, 1, (3, 2)), atol=1e-5)


def test_cases_are_drawn_independently_and_others_are_unchanged():
    images = volumes(400, size=(3, 3, 3))
    before = images.clone()
    ours, transform = augmented(images, prob=0.3)
    changed = (ours != images).flatten(1).any(1)
    assert np.array_equal(changed.nonzero()[:, 0], transform.chosen)
    assert 80 < len(transform.chosen) < 160
    assert torch.equal(images, before), "the input is left as it was"
    assert torch.equal(augmented(images, prob=0.0)[0], images)


def test_seeds_repeat_and_differ():
    images = volumes()
    composed = [
        Compose([RandAffineBatchd("image", prob=0.5, **RANGES)]).set_random_state(seed=seed) for seed in (1, 1, 2)
    ]
    first, again, other = ([transform({"image": images})["image"] for _ in range(3)] for transform in composed)
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert not torch.equal(torch.stack(first), torch.stack(other))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_shape_are_kept(dtype):
    images = volumes(dtype=torch.float64)
    ours, _ = augmented(images.to(dtype))
    assert (ours.dtype, ours.shape, ours.device) == (dtype, images.shape, images.device)
    assert torch.allclose(ours.double(), augmented(images)[0], atol=2 * torch.finfo(dtype).eps + 1e-5)


def test_keys_share_one_draw_and_other_keys_are_unchanged():
    images = volumes()
    transform = RandAffineBatchd(["image", "twin", "absent"], prob=0.5, allow_missing_keys=True, **RANGES)
    batch = transform.set_random_state(seed=0)({"image": images, "twin": MetaTensor(images), "case": ["a"] * 6})
    assert torch.equal(batch["image"], batch["twin"])
    assert not torch.equal(batch["image"], images)
    assert batch["case"] == ["a"] * 6
    assert type(batch["twin"]) is torch.Tensor, "its affine would no longer be true"
    nothing = {"case": ["a"]}
    assert transform(nothing) == nothing


@pytest.mark.parametrize("images", [volumes()[0], volumes()[:, 0, 0], volumes().to(torch.uint8)])
def test_other_data_is_refused(images):
    with pytest.raises(
        ValueError, match=r"a batch of volumes \(B, channels, S0, S1, S2\) of real numbers, not of shape"
    ):
        augmented(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prob": 1.5}, r"prob must be a probability from 0 to 1, not 1\.5"),
        (
            {"rotate_range": 0.2},
            r"rotate_range must be three numbers or pairs, one for each axis, not 0\.2: write \[r, r, r\]",
        ),
        ({"scale_range": [0.1, 0.1]}, "scale_range must be three numbers or pairs"),
        ({"translate_range": [1, (1, 2, 3), 1]}, "translate_range must be three numbers or pairs"),
        ({"translate_range": [1, float("nan"), 1]}, "translate_range must be three numbers or pairs"),
        ({"rotate_range": "abc"}, "rotate_range must be three numbers or pairs"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        RandAffineBatchd("image", **options)


def test_anisotropic_volumes_are_rotated_in_mm_and_not_sheared():
    spacing = np.array([0.8, 0.8, 5.0])
    _, transform = augmented(volumes(20), spacing=spacing, scale_range=None, translate_range=None)
    rotations = spacing[:, None] * transform.matrices[:, :, :3] / spacing
    assert np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max() < 1e-12
    _, isotropic = augmented(volumes(20), spacing=[2, 2, 2], scale_range=None, translate_range=None)
    assert np.allclose(isotropic.matrices[:, :, :3], rotations)
    for wrong in ([1, 1], [1, 1, 0], [1, 1, np.nan]):
        with pytest.raises(ValueError, match="spacing must be three positive numbers"):
            RandAffineBatchd("image", spacing=wrong)
