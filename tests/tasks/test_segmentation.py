# SPDX-License-Identifier: Apache-2.0
"""A segmentation: its table, its metrics with structures that are nowhere, and measures of known cubes."""

import csv
import io

import numpy as np
import pytest
import torch

from monai_llmboost.networks.class_names import ClassNames
from monai_llmboost.tasks import Segmentation, measure_mask

NAN = float("nan")


@pytest.fixture
def task():
    return Segmentation(["background", "anterior", "=post\nerior"])


def cube(start, stop, shape=(16, 16, 16)):
    volume = np.zeros(shape, np.uint8)
    volume[tuple(slice(*ends) for ends in zip(start, stop))] = 1
    return volume


def test_a_table_gives_scores_back(task):
    rows = [task.row([0.25, NAN]), task.row(torch.tensor([0.5, 1.0]))]
    file = io.StringIO()
    writer = csv.DictWriter(file, task.columns())
    writer.writeheader()
    writer.writerows(rows)
    read = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert list(read[0]) == ["dice_anterior", "dice_=post erior"]
    assert np.array_equal(task.read_scores(read), [[0.25, NAN], [0.5, 1.0]], equal_nan=True)
    assert task.record([0.25, NAN]) == {"dice": {"anterior": 0.25, "=post erior": None}}
    assert task.read_labels(read).tolist() == task.groups(np.arange(2)).tolist() == [0, 0]
    assert task.label("case.nii.gz") == ""
    assert task.activate(torch.tensor([[[0.0], [0.0], [0.0]]])).flatten().tolist() == pytest.approx([1 / 3] * 3)


def test_structures_that_are_nowhere_do_not_count(task):
    scores = np.array([[0.5, 1.0], [0.4, NAN], [NAN, NAN]])
    dice, of_posterior = task.metrics["dice"], task.metrics["dice_=post erior"]
    assert np.array_equal(dice.per_case(scores, np.zeros(3)), [0.75, 0.4, NAN], equal_nan=True)
    assert dice.compute(scores, np.zeros(3)) == pytest.approx(0.575)
    assert of_posterior.compute(scores, np.zeros(3)) == 1.0
    assert np.isnan(of_posterior.compute(scores[1:], np.zeros(2)))
    assert [metric.key for metric in task.metrics.values()][:2] == ["val_dice", "val_dice_anterior"]
    assert list(Segmentation(["background", "only"]).metrics) == ["dice"], "its mean is the same number"


def test_the_structures_of_a_network():
    network = torch.nn.Identity()
    network.class_names = ClassNames(2, ["background", "liver"])
    assert Segmentation.of(network).structures == ["liver"]
    with pytest.raises(ValueError, match="the network Identity keeps no class names"):
        Segmentation.of(torch.nn.Identity())
    with pytest.raises(ValueError, match="a segmentation needs a background and a structure"):
        Segmentation(["background"])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 3.0), (2.0, 0.7, 1.3)])
@pytest.mark.parametrize("axis", range(3))
def test_a_shifted_cube(spacing, axis):
    label = cube((4, 4, 4), (10, 10, 10))
    mask = np.roll(label, 1, axis)
    affine = np.diag([*spacing, 1.0])
    (found,) = measure_mask(mask, label, affine, 1, tolerance_mm=1.01 * spacing[axis])
    assert found.dice == pytest.approx(5 / 6)
    assert found.hd95_mm == pytest.approx(spacing[axis])
    assert found.nsd == 1.0
    assert found.volume_mm3 == found.label_volume_mm3 == pytest.approx(216 * np.prod(spacing))
    large = cube((4, 4, 4), (36, 36, 36), (40, 40, 40))
    (strict,) = measure_mask(np.roll(large, 1, axis), large, affine, 1, tolerance_mm=0.49 * min(spacing))
    # The four faces along the shift still lie on those of the label, but for one layer of 32 at either end; the two
    # faces across it do not. Edges are rounded.
    areas = np.array([np.prod(spacing) / each for each in spacing])
    assert strict.nsd == pytest.approx(31 / 32 * (areas.sum() - areas[axis]) / areas.sum(), abs=0.03)


def test_a_volume_does_not_depend_on_its_axes():
    label, mask = cube((1, 2, 3), (7, 9, 12)), cube((2, 2, 2), (9, 8, 12))
    affine = np.diag([0.5, 1.0, 3.0, 1.0])
    (found,) = measure_mask(mask, label, affine, 1)
    order = [2, 0, 1]
    turned = np.eye(4)
    turned[:3, :3] = affine[:3, :3][:, order]
    angle = np.deg2rad(30)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    (again,) = measure_mask(mask.transpose(order)[::-1], label.transpose(order)[::-1], rotation @ turned, 1)
    for name in ("dice", "hd95_mm", "nsd", "volume_mm3", "label_volume_mm3"):
        assert getattr(again, name) == pytest.approx(getattr(found, name), rel=1e-5)


def test_surface_distances_are_undefined_on_a_sheared_grid():
    label = cube((4, 4, 4), (10, 10, 10))
    affine = np.eye(4)
    affine[1, 2] = 0.2
    (found,) = measure_mask(np.roll(label, 1, 0), label, affine, 1)
    assert found.dice == pytest.approx(5 / 6) and found.volume_mm3 == pytest.approx(216)
    assert np.isnan([found.hd95_mm, found.nsd]).all()


def test_surfaces_at_the_border_of_the_volume_count():
    """The same cubes inside a volume, and at its border, where they touch three of its faces."""
    inside = [cube((4, 4, 4), (10, 10, stop), (20, 20, 20)) for stop in (10, 12)]
    at_border = [volume[4:, 4:, 4:] for volume in inside]
    filled = [volume[4:10, 4:10, 4:12] for volume in inside]  # the longer one fills this volume
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    (found,), *others = (measure_mask(*pair, affine, 1, 1.5) for pair in (inside, at_border, filled))
    assert found.hd95_mm == pytest.approx(6.0)
    assert found.nsd < 0.9
    assert others == [[found], [found]]


def test_structures_that_are_in_one_volume_or_in_none():
    label, mask = cube((2, 2, 2), (5, 5, 5)), 2 * cube((8, 8, 8), (10, 10, 10))
    missed, found, nowhere = measure_mask(mask, label, np.diag([2.0, 1.0, 1.0, 1.0]), 3)
    assert (missed.dice, missed.nsd, missed.volume_mm3, missed.label_volume_mm3) == (0, 0, 0, pytest.approx(54))
    assert (found.dice, found.nsd, found.volume_mm3, found.label_volume_mm3) == (0, 0, pytest.approx(16), 0)
    assert np.isnan([missed.hd95_mm, found.hd95_mm, nowhere.dice, nowhere.nsd, nowhere.hd95_mm]).all()
    assert nowhere.volume_mm3 == nowhere.label_volume_mm3 == 0
    with pytest.raises(ValueError, match=r"the mask has the shape \(2, 2, 2\), its label map \(16, 16, 16\)"):
        measure_mask(np.zeros((2, 2, 2), np.uint8), label, np.eye(4), 1)
