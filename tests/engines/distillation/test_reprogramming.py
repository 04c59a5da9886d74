# SPDX-License-Identifier: Apache-2.0
"""The map from a teacher's features to a student's."""

from __future__ import annotations

import pytest
import torch

from monai_llmboost.engines.distillation import ReprogrammingHead


@pytest.mark.parametrize(
    ("shape", "named", "expected"),
    [
        ((4, 6), {}, (4, 3)),
        ((4, 5, 6), {}, (4, 5, 3)),
        ((2, 6, 4, 5), {"spatial_dims": 2}, (2, 3, 4, 5)),
        ((2, 6, 4, 5, 6), {"spatial_dims": 3}, (2, 3, 4, 5, 6)),
        ((2, 6, 4, 4, 4), {"spatial_dims": 3, "size": [8, 2, 4]}, (2, 3, 8, 2, 4)),
        ((2, 6, 4, 4), {"spatial_dims": 2, "size": [8, 8], "hidden_features": 7}, (2, 3, 8, 8)),
    ],
)
def test_shapes(shape, named, expected):
    head = ReprogrammingHead(6, 3, **named)
    out = head(torch.randn(shape))
    assert out.shape == expected
    out.square().sum().backward()
    assert all(weight.grad is not None for weight in head.parameters())


def test_it_starts_as_a_linear_map():
    head = ReprogrammingHead(6, 3)
    x = torch.randn(4, 6)
    torch.testing.assert_close(head(x), head.linear(x))


def test_a_coarser_grid_is_the_mean_of_voxels():
    head = ReprogrammingHead(1, 1, spatial_dims=3, size=[2, 2, 2])
    torch.nn.init.ones_(head.linear.weight)
    torch.nn.init.zeros_(head.linear.bias)
    x = torch.randn(1, 1, 4, 4, 4)
    torch.testing.assert_close(head(x), torch.nn.functional.avg_pool3d(x, 2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"in_features": 0}, "in_features must be a whole number from 1, not 0"),
        ({"hidden_features": 0}, "hidden_features must be a whole number from 1, not 0"),
        ({"spatial_dims": 1}, "unknown spatial_dims 1; choose from 0, 2, 3"),
        ({"size": [4]}, r"size \[4\] has not 0 axes"),
        ({"spatial_dims": 2, "size": [4, 0]}, "each number of size must be a whole number from 1, not 0"),
    ],
)
def test_wrong_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        ReprogrammingHead(**{"in_features": 4, "out_features": 3, **given})


@pytest.mark.parametrize(("shape", "axes"), [((2, 5), 0), ((6,), 0), ((2, 6, 4, 4), 3), ((2, 5, 4, 4, 4), 3)])
def test_features_of_another_shape(shape, axes):
    with pytest.raises(ValueError, match=r"do not fit a head for 6 features on axis -?1 of .*: build the head for"):
        ReprogrammingHead(6, 3, spatial_dims=axes)(torch.zeros(shape))
