# SPDX-License-Identifier: Apache-2.0
"""In mixed precision, a block that is kept in its dtype is not cast again in each step."""

from functools import partial

import pytest
import torch
from monai_networks import build
from torch.utils._python_dispatch import TorchDispatchMode

from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.engines import AutocastInferer
from monai_llmboost.llm import BlockGeometry, random_block
from monai_llmboost.networks import ViT3D, boost


class Casts(TorchDispatchMode):
    """Counts the elements that are cast to another dtype."""

    def __init__(self):
        super().__init__()
        self.elements, self.memory = 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default:
            self.elements += args[0].numel()
            self.memory.add(args[0].untyped_storage().data_ptr())
        return function(*args, **(kwargs or {}))


BLOCK = BlockGeometry(width=256, mlp_width=688, num_heads=4, num_kv_heads=2, head_size=64, norm_eps=1e-5)


def vit(booster, position="last", pool="cls"):
    sizes = {"img_size": 16, "patch_size": 4, "hidden_size": 16, "mlp_dim": 16, "num_layers": 2, "num_heads": 2}
    return ViT3D(1, 2, **sizes, pool=pool, position=position, booster=booster(16)), torch.rand(1, 1, 16, 16, 16)


def boosted_resnet(booster, at):
    network, x = build("ResNet")
    return boost(network, booster, at), x


NETWORKS = {
    "CLS token": vit,
    "all tokens": partial(vit, pool="mean"),
    "middle": partial(vit, position="middle"),
    "head": partial(vit, position="head"),
    "map": partial(boosted_resnet, at="deepest"),
    "vector": partial(boosted_resnet, at="pooled"),
}


def casts_of_a_step(make, dtype, train):
    """Return the share of the block's size that a step casts, and whether weights of the block are among it."""
    network, x = make(lambda c: ResidualBooster(c, random_block(BLOCK, dtype=dtype), start="published"))
    network.train(train)
    x = torch.cat([x, x])
    trained = sum(parameter.numel() for name, parameter in network.named_parameters() if "booster" not in name)
    block = [buffer for name, buffer in network.named_buffers() if ".block." in name and buffer.ndim > 1]
    with torch.set_grad_enabled(train), Casts() as casts:
        out = AutocastInferer(torch.bfloat16)(x, network)
        if train:
            out.sum().backward()
    share = (casts.elements - 2 * trained) / sum(weight.numel() for weight in block)
    return share, bool(casts.memory & {weight.untyped_storage().data_ptr() for weight in block})


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_block_in_the_precision_is_not_cast(make, train):
    """Autocast keeps the casts of parameters for one pass, and those of buffers not at all."""
    share, casts_block = casts_of_a_step(make, torch.bfloat16, train)
    assert not casts_block
    assert share < 0.6  # tokens and maps, which are large next to so small a block
    share, casts_block = casts_of_a_step(make, torch.float32, train)
    assert casts_block
    assert share > 0.9, "the counter counts"
