# SPDX-License-Identifier: Apache-2.0
"""Probabilities on the scan's own grid: exact where no voxel lies between others, else as scipy interpolates."""

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_llmboost.inference import ToOwnGridd, on_own_grid, to_own_grid
from monai_llmboost.inference.masks import own_grid

NETWORK = np.array([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, -3], [0, 0, 2.5, 2], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def probabilities():
    torch.manual_seed(0)
    return torch.randn(4, 7, 9, 11).mul(3).softmax(0)


@pytest.fixture(autouse=True)
def thin_slabs(monkeypatch):
    monkeypatch.setattr(own_grid, "SLAB_VOXELS", 200)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_order_direction_and_whole_voxels_are_exact(probabilities, order):
    classes = probabilities.argmax(0).numpy()
    own = np.transpose(classes, order)[::-1, :, ::-1]
    into = np.zeros((4, 4))  # from the scan's voxels to the network's
    into[order, range(3)] = -1, 1, -1
    into[3, 3] = 1
    into[order[0], 3], into[order[2], 3] = own.shape[0] - 1, own.shape[2] - 1
    assert np.array_equal(to_own_grid(probabilities, NETWORK, own.shape, NETWORK @ into), own)
    # The scan is larger on one side (the network's grid was cropped), and smaller on another (it was padded).
    cropped = np.pad(own, ((2, 0), (0, 0), (0, 0)))[:, 3:]
    into[:, 3] += into[:, :3] @ [-2, 3, 0]
    found = to_own_grid(probabilities, NETWORK, cropped.shape, NETWORK @ into)
    assert found.dtype == np.uint8 and np.array_equal(found, cropped)


def turned(degrees):
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


@pytest.mark.parametrize("degrees", [0, 10])
def test_between_voxels_it_is_linear_and_outside_there_is_background(probabilities, degrees):
    own = NETWORK @ turned(degrees) @ np.diag([-0.7, 1.1, 0.6, 1])
    own[:3, 3] = (NETWORK @ [6.8, -1.7, 2.2, 1])[:3]
    shape = (12, 11, 17)
    voxels = np.indices(shape).reshape(3, -1)
    places = (np.linalg.inv(NETWORK) @ own @ np.vstack([voxels, np.ones(voxels.shape[1])]))[:3]
    inside = ((places > -0.5) & (places < np.array([[7], [9], [11]]) - 0.5)).all(0).reshape(shape)
    assert 0.3 < inside.mean() < 0.95
    every = [ndimage.map_coordinates(one, places, order=1, mode="nearest").reshape(shape) for one in probabilities]
    expected = np.stack(every) * inside
    for stored in (probabilities, probabilities.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)):
        found = np.stack([on_own_grid(one, NETWORK, shape, own) for one in stored])
        assert np.allclose(found, expected, atol=1e-6)
        classes = to_own_grid(stored, NETWORK, shape, own)
        top = np.sort(expected, axis=0)
        clear = ~inside | (top[-1] - top[-2] > 1e-5)
        assert np.array_equal(classes[clear], expected.argmax(0)[clear])


def test_another_place_is_background(probabilities):
    own = NETWORK.copy()
    own[:3, 3] += 500
    assert not to_own_grid(probabilities, NETWORK, (3, 4, 5), own).any()


@pytest.mark.parametrize("affine", [np.diag([1.0, 0, 1, 1]), np.full((4, 4), np.nan)])
def test_no_geometry_is_an_error(probabilities, affine):
    with pytest.raises(ValueError, match=r"an affine cannot be inverted: .*keep the geometry of the volume"):
        to_own_grid(probabilities, affine, (3, 4, 5), np.eye(4))


def test_too_many_classes_are_an_error():
    with pytest.raises(ValueError, match="257 classes are more than the 256"):
        to_own_grid(torch.zeros(257, 1, 1, 1), np.eye(4), (1, 1, 1), np.eye(4))


def test_the_transform_gives_values_of_label_maps(probabilities):
    meta = {"original_affine": NETWORK[:, [1, 0, 2, 3]], "spatial_shape": [9, 7, 11]}
    item = {"image": MetaTensor(torch.zeros(1, 7, 9, 11), affine=NETWORK, meta=meta), "pred": probabilities}
    labels = ToOwnGridd("pred", label_values=[3, 300, 7])(item)["pred"]
    expected = np.array([0, 3, 300, 7])[probabilities.argmax(0).numpy()].transpose(1, 0, 2)
    assert np.array_equal(labels[0].numpy(), expected)
    assert np.allclose(labels.affine, meta["original_affine"])
    with pytest.raises(ValueError, match="2 label values for 3 structures"):
        ToOwnGridd("pred", label_values=[3, 4])(item)
    with pytest.raises(ValueError, match="'image' does not know the grid of its scan"):
        ToOwnGridd("pred")({"image": torch.zeros(1, 7, 9, 11), "pred": probabilities})
