# SPDX-License-Identifier: Apache-2.0
"""A boosted network in several processes, and with compressed weights."""

import copy
import os
import sys
from pathlib import Path

import pytest
import torch
from monai_networks import build
from processes import run_two
from torch import nn
from torch.utils._python_dispatch import return_and_correct_aliasing

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.llm import random_block
from monai_llmboost.networks import ViT3D, boost

TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from monai_networks import build
from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.llm import random_block
from monai_llmboost.networks import boost

dist.init_process_group("gloo")
for name, at in (("ResNet", ("layer4", "pooled")), ("DynUNet", (None,))):
    network, x = build(name)
    for place in at:
        torch.manual_seed(dist.get_rank())  # the maps of the ranks differ until DDP makes them equal
        boost(network, lambda c: ResidualBooster(c, random_block("random"), start="published"), at=place)
    parallel = torch.nn.parallel.DistributedDataParallel(network.train())
    optimizer = torch.optim.SGD(parallel.parameters(), 1e-2)
    for step in range(2):
        optimizer.zero_grad()
        parallel(x[:, :, :] + dist.get_rank()).square().mean().backward()
        optimizer.step()
    flat = torch.cat([p.detach().flatten() for p in network.parameters()])
    both = [torch.zeros_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    assert torch.equal(*both), name
    assert flat.isfinite().all()
dist.destroy_process_group()
"""


def test_two_processes(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, "-W", "ignore", script, Path(__file__).parent]
    for done in run_two(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}):
        assert done.returncode == 0, done.stderr


class Int8(torch.Tensor):
    """A compressed weight that only a linear map can read, as quantisation libraries have it."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, parts, *_):
        return cls(parts["numbers"], parts["scale"])

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            x, weight, *bias = args
            return nn.functional.linear(x, weight.numbers.to(x.dtype) * weight.scale, *bias)
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            made = cls(args[0].numbers, args[0].scale)
            return return_and_correct_aliasing(function, args, kwargs or {}, made)
        raise NotImplementedError(f"no {function} of compressed weights")


def compress_(network):
    for module in network.modules():
        if type(module) is nn.Linear:
            frozen = "weight" in module._buffers
            weight = module.weight.detach()
            scale = weight.abs().amax(dim=1, keepdim=True) / 127
            made = Int8((weight / scale).round().to(torch.int8), scale)
            delattr(module, "weight")
            if frozen:
                module.register_buffer("weight", made, persistent=False)
            else:
                module.weight = nn.Parameter(made, requires_grad=False)


def vit(position):
    torch.manual_seed(0)
    booster = ResidualBooster(32, random_block("random"), start="published")
    return ViT3D(1, 2, img_size=16, patch_size=4, hidden_size=32, num_heads=4, booster=booster, position=position)


def resnet(at):
    torch.manual_seed(0)
    return boost(
        build("ResNet", dims=3)[0], lambda c: ResidualBooster(c, random_block("random"), start="published"), at
    )


NETWORKS = [(vit, "last", 16), (vit, "middle", 16), (vit, "head", 16), (resnet, "deepest", 64), (resnet, "pooled", 64)]


@pytest.mark.parametrize(("make", "place", "size"), NETWORKS)
def test_compressed_weights(make, place, size):
    """The read-out computes with weights in parts, so it leaves compressed ones to the block itself."""
    network = make(place).eval()
    x = torch.rand(2, 1, size, size, size)
    with torch.no_grad():
        expected = network(x)
        small = copy.deepcopy(network)  # which has been used already, with dense weights
        compress_(small)
        found = small(x)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "place", "size"), NETWORKS)
def test_torchao(make, place, size):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    network = make(place).eval()
    x = torch.rand(2, 1, size, size, size)
    with torch.no_grad():
        expected = network(x)
        small = copy.deepcopy(network)
        quantization.quantize_(small, quantization.Int8WeightOnlyConfig())
        torch.testing.assert_close(small(x), expected, rtol=0.1, atol=0.1)
