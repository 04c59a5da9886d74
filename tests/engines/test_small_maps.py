# SPDX-License-Identifier: Apache-2.0
"""Gradients of convolutions of small maps in mixed precision on a CPU, where torch's own are wrong now and then."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from monai_llmboost.engines import AutocastInferer
from monai_llmboost.networks import ResNet3D


def used_memory():
    """Leave numbers that are none in memory that is free again."""
    for size in (100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000):
        torch.full((size,), torch.nan)


@pytest.mark.parametrize("padding", [1, (1, 1, 1)])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradients_are_those_of_float32(depth, padding):
    torch.manual_seed(0)
    layer, x = torch.nn.Conv3d(16, 16, 3, padding=padding), torch.randn(4, 16, depth, 4, 4)
    target = torch.randn(4, 16, depth, 4, 4)
    expected = torch.autograd.grad((layer(x) * target).sum(), list(layer.parameters()))
    for _ in range(10):
        used_memory()
        out = AutocastInferer(torch.bfloat16)(x, layer)
        torch.testing.assert_close(out, layer(x), rtol=0, atol=2e-2)
        for found, exact in zip(torch.autograd.grad((out * target).sum(), list(layer.parameters())), expected):
            assert (found - exact).norm() < 0.02 * exact.norm()


def test_the_span_of_a_dilated_kernel_counts():
    """And a convolution that its network keeps out of mixed precision stays so."""
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.conv3d:
                seen.append((args[0].dtype, torch.is_autocast_enabled("cpu")))
            return function(*args, **(kwargs or {}))

    x = torch.randn(1, 2, 4, 8, 8)
    with Watch():
        for dilation, in_float32 in ((1, False), (2, True)):
            layer = torch.nn.Conv3d(2, 2, 3, padding=dilation, dilation=dilation)
            assert AutocastInferer(torch.bfloat16)(x, layer).shape == x.shape
            assert seen.pop() == (torch.float32, not in_float32), dilation

    def kept_out(x):
        with torch.autocast("cpu", enabled=False):
            return torch.nn.Conv3d(2, 2, 3, padding=2, dilation=2)(x)

    torch.manual_seed(0)
    out = AutocastInferer(torch.bfloat16)(x, kept_out)
    torch.manual_seed(0)
    assert torch.equal(out, kept_out(x))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_network_of_the_bundle(compiled):
    torch.manual_seed(0)
    network = ResNet3D(1, 2, img_size=28)
    run = torch.compile(network, backend="eager") if compiled else network
    for _ in range(10):
        used_memory()
        AutocastInferer(torch.bfloat16)(torch.rand(4, 1, 28, 28, 28), run).sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
        network.zero_grad()
    torch.compiler.reset()
