# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from monai_llmboost.llm import BlockGeometry, DecoderBlock, read_layers


def block_of(folder, layer=-1):
    (one,) = read_layers(folder, layer).layers
    return DecoderBlock.from_tensors(one.geometry, one.tensors)


@pytest.mark.parametrize("layer", [0, 2])
def test_equals_the_transformers_layer(llama, llama_folder, layer):
    """Identity rotary (cos 1, sin 0), no mask, `is_causal=False`: without a mask their SDPA is causal."""
    theirs = llama.model.layers[layer]
    theirs.self_attn.is_causal = False
    x = torch.randn(2, 7, 24)
    rotary = torch.ones(2, 7, 8), torch.zeros(2, 7, 8)
    with torch.no_grad():
        expected = theirs(x, position_embeddings=rotary, attention_mask=None)
        got = block_of(llama_folder, layer)(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_is_permutation_equivariant(llama_folder):
    block, x, order = block_of(llama_folder), torch.randn(2, 9, 24), torch.randperm(9)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])


def test_every_token_sees_every_token(llama_folder):
    x = torch.randn(1, 5, 24, requires_grad=True)
    (grad,) = torch.autograd.grad(block_of(llama_folder)(x)[0, 0].sum(), x)
    assert (grad.abs().sum(-1) > 0).all()


def test_uses_the_tensors_without_copying(llama_folder):
    (donor,) = read_layers(llama_folder).layers
    block = DecoderBlock.from_tensors(donor.geometry, donor.tensors)
    assert block.query.weight.data_ptr() == donor.tensors["query.weight"].data_ptr()


def test_wrong_tensors_are_named(geometry, llama_folder):
    tensors = dict(read_layers(llama_folder).layers[0].tensors)
    with pytest.raises(ValueError, match=r"query\.weight has shape \(3, 3\), not \(32, 24\)"):
        DecoderBlock.from_tensors(geometry, {**tensors, "query.weight": torch.ones(3, 3)})
    del tensors["down.weight"]
    with pytest.raises(ValueError, match=r"missing or unknown: \['down\.weight'\]"):
        DecoderBlock.from_tensors(geometry, tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width must be a whole number from 1"),
        ({"num_heads": True}, "num_heads must be a whole number"),
        ({"mlp_width": 1 << 40}, "mlp_width must be a whole number from 1 to 1048576"),
        ({"num_kv_heads": 3}, "num_kv_heads 3 does not divide num_heads 2"),
        ({"norm_eps": 2.0}, "norm_eps must be between 0 and 1"),
        ({"norm": "batch"}, "unknown norm 'batch'; choose from rms, layer"),
        ({"qk_norm": "some"}, "unknown qk_norm 'some'; choose from none, head, all"),
        ({"activation": "sine"}, "unknown activation 'sine'; choose from silu, gelu, gelu_tanh, relu"),
        ({"parallel": True, "post_norm": True}, "a parallel layer has norms before its parts only"),
        ({"rotary": (1.0, 0.5, 0.1)}, "3 rotary pairs are too many for a head of 4 features"),
    ],
)
def test_impossible_geometry(change, message):
    sizes = {"width": 8, "mlp_width": 8, "num_heads": 2, "num_kv_heads": 1, "head_size": 4, **change}
    with pytest.raises(ValueError, match=message):
        BlockGeometry(**sizes)


def test_geometry_survives_json(geometry):
    assert BlockGeometry.from_json(geometry.to_json()) == geometry
    assert "gated" not in geometry.to_json(), "what is as in LLaMA is left out"
    other = BlockGeometry(8, 16, 2, 2, 4, norm="layer", gated=False, rotary=(1.0, 0.1))
    assert BlockGeometry.from_json(other.to_json()) == other
    for text in ("[1]", '{"width": 8}', '{"colour": 1}'):
        with pytest.raises(ValueError, match="is no geometry of a layer: extract the block again"):
            BlockGeometry.from_json(text)
