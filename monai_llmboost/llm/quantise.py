# SPDX-License-Identifier: Apache-2.0
"""Quantise a donor's matrices to 8, 6, 5 or 4 bits, with its most salient input channels in 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.arguments import check_choice, check_whole, is_positive
from monai_llmboost.llm.layers import DonorLayers, Layer
from monai_llmboost.llm.quantised_matrix import GROUP, QuantisedMatrix, pack, quantise_matrix
from monai_llmboost.llm.stream_size import find_h_rms

BITS = (16, 8, 6, 5, 4)  # of block files
TOKENS, SEED = 256, 20240326  # random tokens by which channels are chosen; others measure the error


@dataclass(frozen=True)
class QuantisedLayers:
    """A donor's layers with few bits a weight.

    Args:
        donor: the layers with dequantised weights, in the dtype of the original matrices.
        matrices: the quantised matrices of each layer by name.
        source: fingerprint of the layers before.
        salient: share of the input channels of each matrix that are kept in 16 bits.
        h_rms: the original layers' size of tokens, see :func:`monai_llmboost.llm.find_h_rms`.
        error: relative error of the block's output, see :func:`quantise_layers`.
        group: inputs that share a scale.

    Example:
        >>> quantise_layers(read_block("embedded"), bits=8).header["bits"]
        '8'
    """

    donor: DonorLayers
    matrices: tuple[Mapping[str, QuantisedMatrix], ...]
    source: str
    salient: float
    h_rms: float | None
    error: float
    group: int = GROUP

    @property
    def stored(self) -> list[dict[str, Tensor]]:
        """The tensors of each layer in a block file: the parts of its matrices, and the other tensors."""
        return [
            pack(matrices) | {name: tensor for name, tensor in layer.tensors.items() if name not in matrices}
            for layer, matrices in zip(self.donor.layers, self.matrices)
        ]

    @property
    def header(self) -> dict[str, str]:
        """Entries of a block file's header."""
        return {
            "bits": str(self.donor.bits),
            "group": str(self.group),
            "salient": repr(float(self.salient)),
            "dtype": str(_dtype(self.donor)).removeprefix("torch."),
            "error": f"{self.error:.3g}",
            "source": self.source,
        }


def check_bits(bits: int, salient: float) -> None:
    """Raise ValueError unless these are bits and a share of salient channels that a block file can have."""
    check_choice("bits", bits, BITS)
    check_share(salient)
    if salient and bits == 16:
        raise ValueError(f"--salient {salient:g} needs fewer bits for the others: give --bits 8, 6, 5 or 4 too")


def check_share(salient: float) -> None:
    """Raise ValueError unless this is a share of input channels."""
    if salient != 0 and not (is_positive(salient) and salient < 1):
        raise ValueError(f"salient must be a share of the input channels from 0 to below 1, not {salient!r}: give 0.1")


def quantise_layers(donor: DonorLayers, bits: int, salient: float = 0.0, group: int = GROUP) -> QuantisedLayers:
    """Quantise the matrices of a donor's layers, for storage; norms and biases stay as they are.

    Each group of inputs of an output has a scale, see :func:`quantise_matrix`. The salient input channels are those
    with the largest first-order saliency (SpikeLLM, arXiv:2407.04752), the change of ``|W x|^2 / 2`` by a relative
    change of the channel j: ``s_j = |mean of (W^T W x)_j x_j|``. The published method takes the mean over text. A block
    between trained maps sees no text, so here x are the inputs of the matrix when the layers run on 256 tokens of
    normal noise at the donor's size of tokens, without positions and mask.

    The error is ``|y' - y| / |y|`` for the outputs y, after a norm with gain one, of the original and y' of the
    dequantised layers in float32, on 256 other such tokens.

    Args:
        donor: layers of a native model.
        bits: bits of a weight, 2 to 8.
        salient: share of the input channels of each matrix that stay in 16 bits, from 0 to below 1.
        group: inputs that share a scale.

    Raises:
        ValueError: the layers run in transformers' own class, or a number out of its range.

    Example:
        >>> small = quantise_layers(read_block("embedded"), bits=4)
        >>> small.donor.name, small.error < 0.1
        ('tiny-english layer 5 in 4 bits', True)
    """
    check_whole("bits", bits, 2, 8)
    check_whole("group", group, 1)
    check_share(salient)
    if any(layer.geometry is None for layer in donor.layers):
        raise ValueError(
            f"{donor.name} is run by transformers' own class, whose weights cannot be stored in {bits} bits: leave out "
            "--bits, or choose a donor of a native family"
        )
    h_rms, dtype = find_h_rms(donor), _dtype(donor)
    seen, original, changed = _noise(donor.width, h_rms, 1), *[_noise(donor.width, h_rms, 2)] * 2
    layers, matrices = [], []
    with torch.no_grad():
        for layer in donor.layers:
            module = layer.module(torch.float32, causal=False, rotary=False)
            inputs, seen = _inputs(module, seen)
            channels = {name: find_salient(layer.tensors[name], x, salient) for name, x in inputs.items()}
            found = {name: quantise_matrix(layer.tensors[name], bits, channels[name], group) for name in inputs}
            layers.append(_dequantised(layer, found, dtype, group))
            matrices.append(found)
            original = module(original)
            changed = layers[-1].module(torch.float32, causal=False, rotary=False)(changed)
        norm = donor.final_norm_module("unit")
        original, changed = norm(original).double(), norm(changed).double()
    error = float((changed - original).norm() / original.norm())
    small = replace(donor, layers=tuple(layers), bits=bits)
    return QuantisedLayers(small, tuple(matrices), donor.fingerprint, salient, h_rms, error, group)


def _noise(width: int, h_rms: float | None, number: int) -> Tensor:
    """Return tokens (1, 256, D) of normal noise at the size of tokens; a donor without one gets the size 1."""
    generator = torch.Generator().manual_seed(SEED + number)
    noise = torch.randn(1, TOKENS, width, generator=generator, dtype=torch.float32, device="cpu")
    return F.rms_norm(noise, (width,)) * (h_rms or 1.0)


def _inputs(module: nn.Module, tokens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the inputs (tokens, in) of each matrix of a layer by its name, and the layer's output."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):

            def keep(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                found[f"{name}.weight"] = given[0].flatten(0, -2)

            hooks.append(part.register_forward_pre_hook(keep))
    output = module(tokens)
    for hook in hooks:
        hook.remove()
    return found, output


def find_salient(weight: Tensor, x: Tensor, share: float) -> Tensor | None:
    """Return the salient input channels of a matrix (out, in) for inputs x (tokens, in); ``None`` for the share 0."""
    if not share:
        return None
    matrix = weight.float()
    saliency = ((x @ matrix.T @ matrix) * x).mean(0).abs()
    count = min(max(round(share * len(saliency)), 1), len(saliency) - 1)
    return saliency.topk(count).indices


def _dtype(donor: DonorLayers) -> torch.dtype:
    """Return the common dtype of all matrices."""
    dtypes = [tensor.dtype for layer in donor.layers for tensor in layer.tensors.values() if tensor.ndim == 2]
    return reduce(torch.promote_types, dtypes)


def _dequantised(layer: Layer, matrices: Mapping[str, QuantisedMatrix], dtype: torch.dtype, group: int) -> Layer:
    """Return a layer with the values of its quantised matrices."""
    values = {name: one.dequantise(layer.tensors[name].shape[1], dtype, group) for name, one in matrices.items()}
    return replace(layer, tensors={**layer.tensors, **values})
