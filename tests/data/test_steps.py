# SPDX-License-Identifier: Apache-2.0
"""Preprocessing in words: what counts, what does not, and where two differ."""

import functools

import monai.transforms as mt
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from torch.utils.data import Subset

from monai_llmboost.data import BatchedVolumes, CheckVolumed, LabelledVolumes, RandAffineBatchd
from monai_llmboost.data.steps import NO_STEPS, Step, find_difference, list_transforms, list_voxel_steps, steps_to_text

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:monai")
WINDOW = mt.ScaleIntensityRanged("image", 0, 255, 0.0, 1.0)
TWICE = functools.partial(torch.mul, other=2)
PERCENTILES = mt.ScaleIntensityRangePercentilesd("image", 1, 99, 0, 1, clip=True)


def texts(*transforms, **options):
    return [step.text for step in list_voxel_steps(mt.Compose(list(transforms)), **options)]


@pytest.mark.parametrize(
    "transform",
    [
        mt.EnsureTyped("image", dtype=torch.float32),
        mt.CastToTyped("image", dtype=torch.float32),
        mt.EnsureChannelFirstd("image", channel_dim=0),
        mt.ToDeviced("image", "cpu"),
        mt.Identityd("image"),
        mt.ToTensor(),
        CheckVolumed("image", channels=1),
        mt.AsDiscreted("label", to_onehot=3),
        mt.Lambdad(["label", "pred"], func=lambda x: x + 1),
        RandAffineBatchd("image", prob=1.0),
        mt.RandGaussianNoised("image", prob=1.0),
        mt.OneOf([mt.Flipd("image", 0), mt.Flipd("image", 1)]),
        mt.RandomOrder([mt.Flipd("image", 0)]),
        None,
    ],
)
def test_steps_that_change_no_voxels_are_left_out(transform):
    assert list_voxel_steps([transform]) == []
    assert steps_to_text([], 100) == NO_STEPS


@pytest.mark.parametrize(
    ("transform", "text"),
    [
        (PERCENTILES, "ScaleIntensityRangePercentiles b_max 1, b_min 0, clip True, lower 1, upper 99"),
        (mt.NormalizeIntensityd("image", nonzero=True), "NormalizeIntensity nonzero True"),
        (mt.NormalizeIntensityd("image", np.array([1.5]), 2), "NormalizeIntensity divisor 2, subtrahend 1.5"),
        (mt.ClipIntensityPercentilesd("image", 1, 99), "ClipIntensityPercentiles lower 1, upper 99"),
        (mt.ScaleIntensity(), "ScaleIntensity"),
        (mt.HistogramNormalized("image"), "HistogramNormalize"),
        (mt.Spacingd(["image", "label"], [2, 2, 2], mode=["bilinear", "nearest"]), "Spacing max_pixdim nan, min_"),
        (mt.Resized(["image", "label"], [28] * 3, mode=["trilinear", "nearest"]), "Resize mode trilinear, spatial_"),
        (mt.Compose([mt.Compose([mt.Flipd("image", 0)])]), "Flip spatial_axis 0"),
        (mt.Transposed("image", (0, 2, 1, 3)), "Transpose indices [0, 2, 1, 3]"),
    ],
)
def test_text_of_a_step(transform, text):
    (found,) = texts(transform)
    assert found.startswith(text)


def test_equal_steps_have_equal_texts():
    several = mt.ScaleIntensityRanged(["image", "label"], -160, 240, clip=True)
    assert (
        texts(WINDOW)
        == texts(several)
        == texts(mt.ScaleIntensityRange(0, 1, 0, 1))
        == ["ScaleIntensityRange b_max 1, b_min 0"]
    )
    assert texts(mt.Resized(["image", "label"], [28] * 3, mode=["area", "nearest"])) == texts(mt.Resize(28))
    assert texts(mt.Lambdad("image", lambda x: x / 2)) == texts(mt.Lambdad(["image"], lambda x: x / 2))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (WINDOW, mt.ScaleIntensityRanged("image", 0, 255, 0.0, 2.0)),
        (WINDOW, mt.ScaleIntensityRanged("image", 0, 255, -1.0, 1.0)),
        (PERCENTILES, mt.ScaleIntensityRangePercentilesd("image", 1, 98, 0, 1, clip=True)),
        (PERCENTILES, mt.ScaleIntensityRangePercentilesd("image", 1, 99, 0, 1)),
        (mt.Lambdad("image", lambda x: x * 2), mt.Lambdad("image", lambda x: x + 2)),
        (mt.Lambdad("image", lambda x: x * 2), mt.Lambdad("image", lambda x: x * 3)),
        (mt.Lambdad("image", TWICE), mt.Lambdad("image", functools.partial(torch.mul, other=3))),
        (mt.MaskIntensityd("image", np.eye(8)), mt.MaskIntensityd("image", np.ones((8, 8)))),
        (mt.SpatialCrop(roi_slices=[slice(0, 3)] * 3), mt.SpatialCrop(roi_slices=[slice(1, 3)] * 3)),
        (mt.Orientationd("image", "RAS", labels=None), mt.Orientationd("image", "LPS", labels=None)),
    ],
)
def test_steps_that_differ(one, other):
    assert texts(one) != texts(other)


class Halve(mt.MapTransform):
    def __init__(self, keys, by=2.0):
        super().__init__(keys)
        self.by = by

    def __call__(self, data):
        return data


def test_steps_of_users_are_listed():
    assert texts(Halve("image")) == ["Halve"]
    assert texts(Halve("image", by=3)) == ["Halve by 3"]
    assert not list_voxel_steps(Halve("image"))[0].geometric


def test_random_steps_on_request():
    assert texts(WINDOW, RandAffineBatchd("image", prob=0.9), random=True) == [
        "RandAffineBatch prob 0.9, rotate_range 0, scale_range 0, translate_range 0"
    ]
    noise = mt.RandGaussianNoised("image", prob=0.3)
    before = texts(noise, random=True)
    noise({"image": torch.zeros(1, 4, 4, 4)})
    assert texts(noise, random=True) == before, "what was drawn is no setting"


MOVES = [mt.Orientationd("image", "RAS", labels=None), mt.Resized("image", 28, mode="trilinear")]


@pytest.mark.parametrize(
    ("trained", "used", "found"),
    [
        ([WINDOW], [WINDOW], None),
        ([WINDOW], [*MOVES, WINDOW], None),
        ([WINDOW], [WINDOW, *MOVES], None),
        ([], MOVES, None),
        ([MOVES[1], WINDOW], [*MOVES, WINDOW], None),
        ([PERCENTILES], [*MOVES, WINDOW], ("ScaleIntensityRangePercentiles b_max 1", "ScaleIntensityRange b_max 1")),
        ([WINDOW], MOVES, ("ScaleIntensityRange b_max 1", "no ScaleIntensityRange in this place")),
        ([], [WINDOW], ("no ScaleIntensityRange", "ScaleIntensityRange b_max 1")),
        (
            [WINDOW, PERCENTILES],
            [PERCENTILES, WINDOW],
            ("no ScaleIntensityRangePerc", "ScaleIntensityRangePercentiles"),
        ),
        ([MOVES[1], WINDOW], [WINDOW], ("Resize mode trilinear, spatial_size 28", "ScaleIntensityRange b_max 1")),
        ([WINDOW], [WINDOW, mt.NormalizeIntensityd("image")], ("no NormalizeIntensity", "NormalizeIntensity")),
    ],
)
@pytest.mark.parametrize("room", [2000, 80])
def test_first_difference(trained, used, found, room):
    got = find_difference(steps_to_text(list_voxel_steps(trained), room), list_voxel_steps(used))
    if found is None:
        assert got is None
    else:
        assert all(text.split(" b_")[0].split()[0] in mine for text, mine in zip(found, got))
        if room == 2000:
            assert all(mine.startswith(text) for text, mine in zip(found, got))


def test_too_many_steps():
    with pytest.raises(ValueError, match="3 preprocessing steps are too many for 40 bytes of text: join some"):
        steps_to_text(list_voxel_steps([WINDOW] * 3), 40)


def test_functions_are_compared_across_python_versions():
    (step,) = list_voxel_steps(mt.Lambdad("image", lambda x: x * 2))
    other = step.text.replace("<py3.", "<py2.")
    assert find_difference(other, [step]) is None
    assert find_difference(step.text.replace("<py3.", "<py3.0")[:-2] + "x>", [Step("Lambda func other", False)])


def test_transforms_of_loaders(monkeypatch):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 4, "val": 4, "test": 4})
    volumes = LabelledVolumes("phantom", "train", size=8)
    assert texts(*list_transforms(BatchedVolumes(volumes, 2, "cpu", transform=WINDOW))) == texts(WINDOW)
    assert texts(*list_transforms(BatchedVolumes(volumes, 2, "cpu"))) == []
    items = [{"image": torch.zeros(1, 4, 4, 4), "label": 0}]
    for kind in (Dataset, lambda data, transform: CacheDataset(data, transform, progress=False)):
        dataset = kind(items, transform=mt.Compose([WINDOW]))
        assert texts(*list_transforms(DataLoader(dataset))) == texts(WINDOW)
        assert texts(*list_transforms(DataLoader(Subset(dataset, [0])))) == texts(WINDOW)
    assert list_transforms([1, 2]) is None
    assert list_transforms(None) is None
