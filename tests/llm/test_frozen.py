# SPDX-License-Identifier: Apache-2.0
import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from monai.networks.utils import copy_model_state

from monai_llmboost.llm import BlockGeometry, FrozenBlock, load_block, random_block, random_layer, trained_block
from monai_llmboost.llm.dtype import find_dtype


@pytest.fixture
def block(geometry):
    return random_block(geometry, seed=3)


def test_nothing_of_it_is_trained_or_saved(block):
    assert not list(block.parameters())
    assert list(block.state_dict()) == ["signature.code"]
    assert sum(buffer.numel() for buffer in block.buffers()) > 3000


def test_gradient_passes_through(block):
    h = torch.randn(1, 5, 24, requires_grad=True)
    block(h).sum().backward()
    assert torch.isfinite(h.grad).all()
    assert (h.grad != 0).all()


def test_final_norm(block, geometry):
    h = 100 * torch.randn(2, 5, 24)
    torch.testing.assert_close(block(h).square().mean(-1), torch.ones(2, 5), rtol=1e-3, atol=0)
    gain = torch.rand(24)
    donor = replace(random_layer(geometry, 3), final_norm={"weight": gain})
    other = FrozenBlock(donor, final_norm="donor")
    torch.testing.assert_close(other(h), block(h) * gain)
    with pytest.raises(RuntimeError, match=r"has the block 'random seed 3 \(\w{12}, final norm donor\)'"):
        other.load_state_dict(block.state_dict())
    assert torch.equal(FrozenBlock(donor)(h), block(h)), "one everywhere unless asked for"
    assert FrozenBlock(donor, final_norm="none")(h).square().mean() > 1000
    with pytest.raises(ValueError, match="unknown final_norm 'llm'; choose from unit, donor, none"):
        FrozenBlock(donor, final_norm="llm")
    with pytest.raises(ValueError, match="no final norm of random seed 3 for final_norm donor, but none"):
        random_block(geometry, seed=3, final_norm="donor")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_is_kept_in_the_dtype_asked_for(geometry, block, dtype):
    narrow = random_block(geometry, seed=3, dtype=dtype)
    assert {buffer.dtype for name, buffer in narrow.named_buffers() if "code" not in name} == {dtype}
    h = torch.randn(2, 5, 24)
    assert narrow(h).dtype == torch.float32
    torch.testing.assert_close(narrow(h), block(h), rtol=0.1, atol=0.1)
    assert narrow.fingerprint == block.fingerprint, "one block, whatever dtype it is run in"
    with pytest.raises(ValueError, match=r"unknown dtype torch\.int8 of the block; use auto, or a floating"):
        random_block(geometry, dtype=torch.int8)


@pytest.mark.parametrize("able", [True, False])
def test_chooses_bfloat16_where_it_is_native(geometry, able, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": able}, raising=False)
    expected = torch.bfloat16 if able else torch.float32
    assert random_block(geometry, dtype="auto").layer.down.weight.dtype == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or able)
    assert find_dtype("auto") == expected, "an emulated one is not taken"


def test_checkpoint_of_the_same_block_loads(geometry, block):
    random_block(geometry, seed=3, dtype=torch.bfloat16).load_state_dict(block.state_dict(), strict=True)


def test_the_same_block_by_another_name_loads(geometry, block):
    """From a hub id here, from a folder there."""
    FrozenBlock(replace(random_layer(geometry, 3), donor="another name")).load_state_dict(
        block.state_dict(), strict=True
    )


def test_checkpoint_over_another_block_is_refused_by_every_loader(geometry, block):
    other = random_block(geometry, seed=4)
    message = (
        r"made with the block 'random seed 3 \(\w{12}\)', but this network has the block 'random seed 4 \(\w{12}\)'"
    )
    with pytest.raises(RuntimeError, match=message):
        other.load_state_dict(block.state_dict())
    with pytest.raises(RuntimeError, match=message):
        other.load_state_dict(block.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match=message):
        copy_model_state(other, block)
    wider = random_block(copy.replace(geometry, width=32) if hasattr(copy, "replace") else geometry, seed=4)
    with pytest.raises(RuntimeError, match=message):
        copy_model_state(wider, block)


def test_checkpoint_without_a_block_is_refused(block):
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"signature\.code\""):
        block.load_state_dict({})


def test_survives_deepcopy_device_and_script(block):
    h = torch.randn(2, 5, 24)
    assert torch.equal(copy.deepcopy(block)(h), block(h))
    assert block.to("cpu").double()(h.double()).dtype == torch.float64


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_torchscript_holds_the_weights(block, tmp_path):
    torch.jit.save(torch.jit.script(block), tmp_path / "block.ts")
    h = torch.randn(3, 4, 24)
    torch.testing.assert_close(torch.jit.load(tmp_path / "block.ts")(h), block(h))


def test_random_block_follows_its_seed_and_touches_no_other_random_number(geometry):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = random_block(geometry, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert first.fingerprint == random_block(geometry, seed=1).fingerprint != random_block(geometry, seed=2).fingerprint


def test_random_block_matches_the_donors_scale(geometry):
    plain = random_layer(geometry, 8)
    (layer,) = plain.layers
    donor = {name: 0.3 * tensor + 0.1 for name, tensor in layer.tensors.items()}
    drawn = replace(plain, layers=(replace(layer, tensors=donor),)).random(9).layers[0].tensors
    for name, tensor in drawn.items():
        spread = donor[name].std()
        assert abs(tensor.mean() - donor[name].mean()) <= 4 * spread / tensor.numel() ** 0.5 + 1e-6
        assert abs(tensor.std() - spread) <= 0.5 * spread + 1e-6
        assert not torch.equal(tensor, donor[name]) or tensor.ndim == 1


def test_random_like_a_donor_is_the_same_with_any_number_of_threads(geometry):
    donor = random_layer(BlockGeometry(256, 704, 4, 4, 64), 5)
    threads = torch.get_num_threads()
    found = set()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.add(donor.random(0).fingerprint)
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float64)
    found |= {donor.random(0).fingerprint}
    other = random_layer(geometry, 5).fingerprint
    torch.set_default_dtype(torch.float32)
    assert len(found) == 1
    assert other == random_layer(geometry, 5).fingerprint


@pytest.mark.parametrize("word", ["causal", "rotary"])
def test_words_for_true_and_false_are_refused(geometry, word):
    with pytest.raises(ValueError, match=f"{word} must be True or False, not 'false'"):
        random_block(geometry, **{word: "false"})


def test_the_word_random_is_a_small_block():
    assert random_block("random").width == 192
    with pytest.raises(FileNotFoundError, match="no block file at random: give --block FILE"):
        load_block("random")


def test_a_move_draws_no_random_numbers_and_an_empty_one_is_refused():
    block = random_block("random")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for _ in range(3):
        block.to(torch.float64).half().float()
        with pytest.raises(ValueError, match="this would lose the frozen weights of the block"):
            block.to_empty(device="cpu")
    assert torch.equal(torch.rand(3), expected)
    trained_block("random").to_empty(device="cpu")
