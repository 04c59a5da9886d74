# SPDX-License-Identifier: Apache-2.0
"""Frozen weights in DistributedDataParallel: no process sends them, all have the same, and all else stays equal."""

import copy
import gc
import os
import pickle
import sys
import weakref
from pathlib import Path

import pytest
import torch
from processes import run_two
from torch import nn

from monai_llmboost.adapters import lora_block
from monai_llmboost.boosters import ResidualBooster, mlp_booster
from monai_llmboost.llm import random_block
from monai_llmboost.networks import ViT3D, boost, ignore_frozen_in_ddp, unboost
from monai_llmboost.networks.parallel import frozen_names

NO_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}

BEGINNING = """
import copy, sys, warnings, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[1])
from monai.networks.nets.segresnet_ds import SegResEncoder
from monai_networks import build
from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.llm import random_block
from monai_llmboost.networks import EncoderClassifier, ViT3D, boost, ignore_frozen_in_ddp, parallel_network

dist.init_process_group("gloo")
warnings.simplefilter("error", FutureWarning)
rank, sent = dist.get_rank(), []
send = dist._broadcast_coalesced

def counted(group, tensors, *more, **named):
    sent.append(sum(tensor.nbytes for tensor in tensors))
    return send(group, tensors, *more, **named)

dist._broadcast_coalesced = counted

def booster(channels):
    return ResidualBooster(channels, random_block("random"), start="published")

def vit():
    return ViT3D(1, 2, 16, 8, 32, 32, num_layers=1, num_heads=2, booster=booster(32)), torch.rand(2, 1, 16, 16, 16)

def all_equal(tensors):
    flat = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
    both = [torch.zeros_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    return torch.equal(*both)
"""

BYTES = (
    BEGINNING
    + """
class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.boosted = nn.Conv3d(1, 1, 1), vit()[0]

    def forward(self, x):
        return self.boosted(self.first(x))

torch.manual_seed(rank)  # what is trained differs until DDP makes it equal
vit3d, volumes = vit()
resnet, images = build("ResNet")
encoder = EncoderClassifier(SegResEncoder(init_filters=8, in_channels=1, blocks_down=(1, 1)), 16, 2, multiple_of=2)
networks = {
    "ViT3D": (vit3d, volumes),
    "copy": (copy.deepcopy(vit3d), volumes),
    "compiled": (torch.compile(vit()[0], backend="eager"), volumes),
    "ResNet": (boost(boost(resnet, booster, "layer4"), booster, "pooled"), images),
    "EncoderClassifier": (boost(encoder, booster, "pooled"), volumes),
    "own": (ignore_frozen_in_ddp(Mine()), volumes),
}
for name, (network, x) in networks.items():
    own_buffers = [b for n, b in network.named_buffers() if "running" in n or "batches" in n]
    frozen = sum(b.nbytes for n, b in network.named_buffers() if ".block." in n)
    assert frozen > 1e6, name
    sent.clear()
    parallel = DistributedDataParallel(network.train())  # with its defaults
    trained = sum(p.nbytes for p in network.parameters())
    assert sum(sent) <= trained + sum(b.nbytes for b in own_buffers), (name, sent, trained)
    sent.clear()
    optimizer = torch.optim.SGD(parallel.parameters(), 1e-2)
    for step in range(2):
        optimizer.zero_grad()
        parallel(x + rank).square().mean().backward()
        optimizer.step()
    assert sum(sent) == 2 * sum(b.nbytes for b in own_buffers), (name, sent, frozen)
    assert bool(own_buffers) == (name in ("ResNet", "EncoderClassifier"))
    assert all_equal(network.parameters()), name
    assert all_equal(b for n, b in network.named_buffers() if ".block." in n), name
dist.destroy_process_group()
"""
)

TRAINABLE = (
    BEGINNING
    + """
# A block made trainable later, by whatever way, is trained as one.
network, x = vit()
layer = network.booster.block.layer
frozen = layer.down.weight
del layer.down.weight
layer.down.weight = nn.Parameter(frozen)
parallel = DistributedDataParallel(network)
parallel(x + rank).square().mean().backward()
assert layer.down.weight.grad.abs().sum() > 0
assert all_equal(p.grad for p in network.parameters() if p.grad is not None)
dist.destroy_process_group()
"""
)

PARALLEL = (
    BEGINNING
    + """
network, x = build("ResNet")
boost(network, booster)
network.bn1.running_mean += rank
parallel = parallel_network(network.train())
assert all_equal(network.buffers()), "once"
sent.clear()
parallel(x + rank).square().mean().backward()
assert not sent
assert not all_equal([network.bn1.running_mean])
parallel.eval()
with torch.no_grad():
    for _ in range(1 + rank):  # processes validate different numbers of batches
        parallel(x)
copied = copy.deepcopy(parallel)
for _ in range(1 + rank):
    copied(x)
assert not sent
dist.barrier()
for other in (random_block("random", seed=rank), random_block("random", dtype=(torch.float32, torch.bfloat16)[rank])):
    network, x = build("ResNet")
    boost(network, lambda c: ResidualBooster(c, other))
    try:
        parallel_network(network)
    except ValueError as error:
        print(error)
    else:
        raise AssertionError("different blocks")
dist.destroy_process_group()
"""
)


def run(script, tmp_path):
    (tmp_path / "two.py").write_text(script)
    done = run_two([sys.executable, "-W", "ignore", tmp_path / "two.py", Path(__file__).parent], env=NO_GPU)
    for one in done:
        assert one.returncode == 0, one.stderr
    return done


def test_ddp_with_its_defaults_sends_no_frozen_weight(tmp_path):
    run(BYTES, tmp_path)


def test_a_weight_made_trainable_later_is_trained(tmp_path):
    run(TRAINABLE, tmp_path)


def test_the_bundles_send_gradients_only_and_compare_blocks(tmp_path):
    for done in run(PARALLEL, tmp_path):
        weights, dtypes = done.stdout.splitlines()
        assert weights.startswith("the processes have different frozen blocks: layer4.booster.block is random")
        assert "in torch.float32 in process 0, and random" in dtypes
        assert "in torch.bfloat16 in process 1; give all of them the same --block and --precision" in dtypes


def vit(block=None):
    booster = ResidualBooster(32, block or random_block("random"))
    return ViT3D(1, 2, 16, 8, 32, 32, num_layers=1, num_heads=2, booster=booster)


def ignored(network):
    return {name for name in network._ddp_params_and_buffers_to_ignore if not name.startswith("_orig_mod.")}


def in_blocks(network):
    buffers = network.named_buffers(remove_duplicate=False)
    return {name for name, buffer in buffers if "block" in name and buffer.numel()}


def test_the_names_follow_the_network():
    network = vit()
    assert in_blocks(network) < ignored(network)
    assert all(network.get_buffer(name) is not None for name in ignored(network))
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        network.booster.block = None
        assert in_blocks(other) == {name for name in ignored(other) if ".block." in name and "signature" not in name}
        assert in_blocks(other)
        network = other
    unboost(network)
    assert ignored(network) == {name for name, buffer in network.named_buffers() if not buffer.numel()}
    boost(network, ResidualBooster(32, random_block("random")))
    assert in_blocks(network) < ignored(network)


def test_a_network_keeps_its_own_list():
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4))
    network._ddp_params_and_buffers_to_ignore = ["1.running_mean"]
    boost(network, mlp_booster(4, like="random"), "1", example=torch.zeros(1, 1, 8, 8, 8))
    for _ in range(2):
        ignore_frozen_in_ddp(network)
    assert set(network._ddp_params_and_buffers_to_ignore) >= {"1.running_mean"}
    assert "1.inner.running_var" not in ignored(network)


@pytest.mark.parametrize("trained", [False, True])
def test_only_frozen_weights_are_named(trained):
    block = random_block("random", trained=True) if trained else lora_block("random")
    names = ignored(vit(block))
    assert not names & {name for name, _ in vit(block).named_parameters()}
    assert any(name.endswith("query.frozen") for name in names) != trained
    assert any(name.endswith("down.weight") for name in names) != trained


def test_a_buffer_of_a_users_own_block_is_left_to_ddp():
    """It has no fingerprint, so nothing says that the processes made the same one."""

    class Own(nn.Module):
        width = 8

        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.rand(8, 8), persistent=False)

        def forward(self, h):
            return h @ self.weight

    assert not frozen_names(ResidualBooster(4, Own()).block)


def test_two_places_of_one_block_are_both_named():
    block = random_block("random")
    network = nn.ModuleList([ResidualBooster(4, block), ResidualBooster(4, block)])
    assert {"0.block.layer.down.weight", "1.block.layer.down.weight"} <= ignored(ignore_frozen_in_ddp(network))


def test_a_network_is_freed_at_once():
    gc.disable()
    try:
        network = vit()
        seen = weakref.ref(network)
        del network
        assert seen() is None
    finally:
        gc.enable()
