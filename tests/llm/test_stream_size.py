# SPDX-License-Identifier: Apache-2.0
"""The size of tokens at which a layer works as in its model: found without data, kept in block files, applied."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CASES, tiny_folder
from torch.nn import functional as F

from monai_llmboost.adapters import lora_block
from monai_llmboost.artifacts.digests import text_digest
from monai_llmboost.boosters import ResidualBooster
from monai_llmboost.llm import (
    BlockGeometry,
    FrozenBlock,
    extract_block,
    find_h_rms,
    frozen_block,
    load_block,
    random_block,
    random_layer,
    read_block,
    read_header,
    read_layers,
    trained_block,
    write_block,
)
from monai_llmboost.llm import block_file as block_files
from monai_llmboost.llm.info import block_table
from monai_llmboost.llm.paths import EMBEDDED


def added_and_cosine(donor, size, tokens=400):
    """What the donor's first layer adds to tokens of a size, relative to them, and the mean cosine of both."""
    block = FrozenBlock(replace(donor, layers=donor.layers[:1]), torch.float32, final_norm="none", h_rms=size)
    x = torch.randn(1, tokens, block.width, generator=torch.Generator().manual_seed(11))
    h, y = size * F.rms_norm(x, (block.width,)), block(x)
    return float((y - h).norm() / h.norm()), float(F.cosine_similarity(y, h, dim=-1).mean())


def check_works_as_in_its_model(donor):
    added, cosine = added_and_cosine(donor, find_h_rms(donor))
    assert 0.6 < added < 0.8, "on other noise than that it was found on"
    assert 0.5 < cosine < 0.95


@pytest.mark.parametrize("case", CASES)
def test_every_native_family(case, tmp_path):
    tiny_folder(case, tmp_path / "tiny")
    check_works_as_in_its_model(read_layers(tmp_path / "tiny", -1))


def test_the_embedded_block_and_random_ones():
    embedded = read_block("embedded")
    for donor in (embedded, embedded.random(0), random_layer(BlockGeometry(192, 512, 3, 3, 64))):
        check_works_as_in_its_model(donor)
    added, cosine = added_and_cosine(embedded, 0.3)
    assert added > 10 and cosine < 0.3, "tokens of another size are drowned"


@pytest.mark.parametrize("layer", [14, 29])
def test_layers_of_a_pre_trained_model(real_data, layer):
    check_works_as_in_its_model(read_layers(real_data / "smollm2_135m_layers", layer))


def test_small_pre_trained_models(tiny_llm_folder, stories_folder):
    check_works_as_in_its_model(read_layers(tiny_llm_folder, -1))
    for layer in range(5):
        check_works_as_in_its_model(read_layers(stories_folder, layer))


@pytest.fixture
def donor(geometry):
    """Two layers that work at other sizes."""
    first, second = random_layer(geometry, 3), random_layer(replace(geometry, norm_eps=1e-2), 4)
    return replace(first, layers=first.layers + second.layers)


def test_is_exact_on_its_own_noise(donor):
    """Checked by the definition, written a second time."""
    size = find_h_rms(donor)
    noise = torch.randn(1, 64, donor.width, generator=torch.Generator().manual_seed(20240326))
    h = size * noise / noise.square().mean(-1, keepdim=True).sqrt()
    layer = donor.layers[0].module(torch.float32, False, False)
    with torch.no_grad():
        added = float((layer(h) - h).norm() / h.norm())
    assert added == pytest.approx(0.7, rel=0.01)


def test_is_the_same_anywhere(donor):
    """Whatever the state of torch: it is in the signature of checkpoints."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    size = find_h_rms(donor)
    assert torch.equal(torch.rand(1), expected), "the global random state is not changed"
    assert size == float(f"{size:.3g}")
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    found = find_h_rms(donor)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)
    assert found == size
    assert find_h_rms(replace(donor, layers=donor.layers[:1])) == size, "of the first layer"


def doing(donor, factor):
    """The donor with what its layers add multiplied by a factor."""
    layers = [
        replace(
            one, tensors={n: factor * t if n.split(".")[0] in ("output", "down") else t for n, t in one.tensors.items()}
        )
        for one in donor.layers
    ]
    return replace(donor, layers=tuple(layers))


def test_follows_the_weights_and_has_bounds(donor):
    assert find_h_rms(doing(donor, 100)) > 50 * find_h_rms(donor)
    for factor in (0.0, 1e-6, 1e7, float("nan")):
        assert find_h_rms(doing(donor, factor)) is None


def test_a_layer_run_by_transformers(tmp_path):
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    Starcoder2ForCausalLM(Starcoder2Config(**sizes, num_hidden_layers=2, vocab_size=32)).save_pretrained(tmp_path / "s")
    extract_block(tmp_path / "s", tmp_path / "block.safetensors", "0,1")
    check_works_as_in_its_model(read_block(tmp_path / "block.safetensors"))
    block = load_block(tmp_path / "block.safetensors", h_scale="donor")
    assert block.h_rms == find_h_rms(read_block(tmp_path / "block.safetensors"))
    x = torch.randn(2, 9, 32)
    scaled = block.h_rms * F.rms_norm(x, (32,))
    torch.testing.assert_close(block(x), load_block(tmp_path / "block.safetensors")(scaled), rtol=1e-4, atol=1e-5)
    booster = ResidualBooster(16, block, start="published")
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(booster(x, 2), booster(x)[:, :2])


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"trained": True}, {"dtype": torch.float64}])
def test_tokens_are_scaled_once_before_the_first_layer(donor, options):
    plain, scaled = FrozenBlock(donor, **options), FrozenBlock(donor, **options, h_rms=0.3)
    h = torch.randn(2, 9, 24, dtype=options.get("dtype", torch.float32)).requires_grad_()
    direction = torch.randn(2, 9, 24)
    expected = plain(0.3 * h / h.square().mean(-1, keepdim=True).sqrt())
    (of_expected,) = torch.autograd.grad((expected * direction).sum(), h)
    got = scaled(h)
    (of_got,) = torch.autograd.grad((got * direction).sum(), h)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of_got, of_expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scaled(50 * h), got, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_tokens_in_16_bits(donor, dtype):
    """The squares of these tokens are too large for float16."""
    block = FrozenBlock(donor, dtype, h_rms=0.3)
    h = torch.randn(2, 9, 24)
    torch.testing.assert_close(block((1e4 * h).to(dtype)).float(), FrozenBlock(donor, h_rms=0.3)(h), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("size", [0, -1.0, True, "donor", float("inf"), float("nan")])
def test_a_size_that_is_none_is_refused(donor, size):
    with pytest.raises(
        ValueError, match=f"h_rms must be a number above 0, not {size!r}; None takes tokens as they are"
    ):
        FrozenBlock(donor, h_rms=size)


def test_a_file_contains_it(donor, tmp_path, monkeypatch):
    file = tmp_path / "block.safetensors"
    write_block(donor, file)
    assert json.loads(read_header(file)["h_rms"]) == find_h_rms(donor)
    size = find_h_rms(donor)
    monkeypatch.setattr(block_files, "find_h_rms", lambda donor: pytest.fail("found again"))
    assert load_block(file, h_scale="donor").h_rms == size
    assert lora_block(file, h_scale="donor").h_rms == size
    assert trained_block(file, h_scale="donor").h_rms == size
    assert _row(file) == (
        f"scaled to {size:g}, where the layer adds 0.7 times their size, as in its model (--h_scale donor)"
    )


def test_a_file_of_an_earlier_version(donor, tmp_path):
    file = tmp_path / "block.safetensors"
    write_block(donor, file)
    header = read_header(file)
    header = {key: text for key, text in header.items() if key not in ("h_rms", "header")}
    save_file(load_file(file), file, metadata={**header, "header": text_digest(header)})
    assert "h_rms" not in read_header(file)
    assert load_block(file, h_scale="donor").h_rms == find_h_rms(donor)
    assert "h_rms" not in read_header(EMBEDDED), "one of them"
    assert load_block("embedded", h_scale="donor").h_rms == find_h_rms(read_block("embedded"))


def test_a_donor_without_a_size(donor, tmp_path):
    file = tmp_path / "block.safetensors"
    write_block(doing(donor, 1e-6), file)
    assert json.loads(read_header(file)["h_rms"]) is None
    block = load_block(file, h_scale="donor")
    assert block.h_rms is None
    assert block.signature.text == load_block(file).signature.text
    assert (
        _row(file)
        == "not scaled, because the layer adds 0.7 times the size of its tokens at no size from 0.001 to 10000"
    )


def _row(file):
    names, texts = block_table(file).columns
    return dict(zip(names.cells, map(str, texts.cells)))["size of tokens"]


MAKERS = {
    "load": load_block,
    "random": random_block,
    "frozen": frozen_block,
    "trained": trained_block,
    "lora": lora_block,
}


@pytest.mark.parametrize("make", MAKERS)
def test_words_and_numbers(make, donor, tmp_path):
    file, make = tmp_path / "block.safetensors", MAKERS[make]
    write_block(donor, file)
    assert make(file).h_rms is None, "as copies of earlier bundles call it"
    assert make(file, h_scale="published").signature.text == make(file).signature.text
    donors = read_block(file).random(0) if make is random_block else donor
    assert make(file, h_scale="donor").h_rms == find_h_rms(donors)
    half = make(file, h_scale=0.5)
    assert (half.h_rms, make(file, h_scale=3).h_rms) == (0.5, 3.0)
    assert ", tokens of size 0.5" in half.signature.text
    for wrong in ("doner", 0, -0.1, True, float("nan"), float("inf"), None):
        with pytest.raises(
            ValueError, match=rf"h_scale must be donor, published or a number above 0, not {wrong!r}: give"
        ):
            make(file, h_scale=wrong)


@pytest.mark.parametrize("make", MAKERS)
def test_a_checkpoint_of_another_size_is_refused(make, donor, tmp_path):
    file, make = tmp_path / "block.safetensors", MAKERS[make]
    write_block(donor, file)
    old, new = make(file), make(file, h_scale=0.5)
    with pytest.raises(RuntimeError, match=r"has the block '.*, tokens of size 0\.5.*: .*; --h_scale published if its"):
        new.load_state_dict(old.state_dict())
    with pytest.raises(RuntimeError, match=r"made with the block '.*, tokens of size 0\.5"):
        old.load_state_dict(new.state_dict())
    make(file, h_scale=0.5).load_state_dict(new.state_dict())


def test_the_word_random_and_a_geometry(geometry):
    for like in ("random", geometry):
        block = random_block(like, seed=2, h_scale="donor")
        assert block.h_rms == frozen_block(like, seed=2, h_scale="donor").h_rms != random_block(like, 3).h_rms
