# SPDX-License-Identifier: Apache-2.0
"""Decoder layers as tensors, with their geometry and origin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import check_choice, is_whole
from monai_llmboost.artifacts.digests import tensors_digest
from monai_llmboost.llm.block import DecoderBlock
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.transformers_layer import TransformersLayer


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    Args:
        tensors: the weights, named as in ``geometry.tensor_shapes`` or, without a geometry, as on disk.
        geometry: sizes and options of the layer if block.py runs it; else ``None``.
        config: the model's ``config.json`` if a class of transformers runs the layer.
        index: position of the layer in its donor; ``None`` without a donor.

    Raises:
        ValueError: the tensors do not fit the geometry.

    Example:
        >>> geometry = BlockGeometry(width=16, mlp_width=32, num_heads=2, num_kv_heads=1, head_size=8)
        >>> layer = Layer({name: torch.zeros(shape) for name, shape in geometry.tensor_shapes.items()}, geometry)
        >>> layer.module(torch.float32, causal=False, rotary=False)(torch.ones(1, 3, 16)).shape
        torch.Size([1, 3, 16])
    """

    tensors: Mapping[str, Tensor]
    geometry: BlockGeometry | None = None
    config: str = ""
    index: int | None = None

    def __post_init__(self) -> None:
        if self.geometry is not None:
            self.geometry.check_tensors(self.tensors)

    @property
    def description(self) -> str:
        """The geometry or configuration as text, for the fingerprint."""
        return self.geometry.to_json() if self.geometry is not None else f"{self.index} {self.config}"

    def module(self, dtype: torch.dtype | None, causal: bool, rotary: bool) -> DecoderBlock | TransformersLayer:
        """Return the layer as a module that uses these tensors without a copy, unless ``dtype`` differs.

        Raises:
            ValueError: the layer does not support a mask or positions, or cannot be run on its own.
        """
        if self.geometry is not None:
            return DecoderBlock.from_tensors(self.geometry, dict(self.tensors), dtype, causal, rotary)
        if causal or rotary:
            raise ValueError(
                "a layer that is run by transformers' own class has neither causal nor rotary: leave them out, or "
                "choose a donor of a family that is run natively"
            )
        tensors = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in self.tensors.items()}
        return TransformersLayer(json.loads(self.config), tensors, self.index or 0)


@dataclass(frozen=True)
class DonorLayers:
    """Layers of one language model, run in sequence, and the model's final norm.

    Args:
        layers: the layers, in the order in which they are run.
        donor: name of the model.
        num_layers: number of layers of the whole model.
        revision: commit of a model from the hub.
        licence: name of the model's licence on its card, such as "apache-2.0".
        final_norm: ``weight`` and optional ``bias`` of the norm after the model's last layer; empty if unknown.
        quantised: original quantised types of the weights, such as "Q4_K, Q6_K"; empty if they were floats.
        bits: fewer than 16 if the matrices are those of a block file with so many bits a weight.

    Example:
        >>> donor = read_block("embedded")
        >>> donor.name, donor.width, donor.licence
        ('tiny-english layer 5', 256, 'apache-2.0')
    """

    layers: tuple[Layer, ...]
    donor: str
    num_layers: int = 1
    revision: str = ""
    licence: str = ""
    final_norm: Mapping[str, Tensor] = field(default_factory=dict)
    quantised: str = ""
    bits: int = 16

    @property
    def name(self) -> str:
        """The name in messages."""
        indices = [str(layer.index) for layer in self.layers if layer.index is not None]
        parts = [self.donor, *(["layers" if len(indices) > 1 else "layer", ", ".join(indices)] if indices else [])]
        return " ".join([*parts, *([f"in {self.bits} bits"] if self.bits < 16 else [])])

    @property
    def width(self) -> int:
        """Features of a token, D."""
        last = self.layers[-1]
        return last.geometry.width if last.geometry is not None else int(last.module(None, False, False).width or 0)

    @property
    def num_weights(self) -> int:
        """Weights of the layers, without the final norm."""
        return sum(tensor.numel() for layer in self.layers for tensor in layer.tensors.values())

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the layers' descriptions and the name, dtype, shape and bytes of every tensor."""
        digest = hashlib.sha256()
        for layer in self.layers:
            digest.update(layer.description.encode())
            digest.update(tensors_digest(layer.tensors).encode())
        return digest.hexdigest()

    def final_norm_module(self, kind: str) -> nn.Module:
        """Return the norm after the last layer: ``"unit"`` (gain one), ``"donor"`` (the donor's own) or ``"none"``.

        Raises:
            ValueError: an unknown kind, or the donor's own norm is unknown.
        """
        check_choice("final_norm", kind, ("unit", "donor", "none"))
        if kind == "none":
            return nn.Identity()
        geometry, width = self.layers[-1].geometry, self.width
        if kind == "unit":
            if geometry is not None and geometry.norm == "layer":
                return nn.LayerNorm(width, eps=geometry.norm_eps, elementwise_affine=False)
            return nn.RMSNorm(width, eps=geometry.norm_eps if geometry else 1e-6, elementwise_affine=False)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.final_norm.items()}
        wanted = (
            {"weight": (width,), "bias": (width,)} if geometry and geometry.norm == "layer" else {"weight": (width,)}
        )
        if geometry is None or shapes != wanted:
            raise ValueError(
                f"no final norm of {self.donor} for final_norm donor, but {shapes or 'none'} (it is kept for natively "
                "run families): use unit, or another donor"
            )
        with torch.device("meta"):
            norm = (nn.LayerNorm if geometry.norm == "layer" else nn.RMSNorm)(width, eps=geometry.norm_eps)
        weights = dict(self.final_norm)
        if geometry.gain_offset:
            weights["weight"] = weights["weight"].float() + geometry.gain_offset
        norm.load_state_dict(weights, assign=True)
        return norm

    def random(self, seed: int) -> DonorLayers:
        """Return the random control: normal tensors with the mean and standard deviation of the original ones.

        They are drawn in float32 from a separate generator; the final norm is kept.
        """
        generator = generator_of(seed)

        def drawn(tensor: Tensor) -> Tensor:
            exact = tensor.double()  # sums round to the same float32 for any number of threads
            mean, std = exact.mean().float(), exact.std(correction=0).float()
            return mean + std * torch.randn(tensor.shape, generator=generator, dtype=torch.float32)

        layers = [replace(one, tensors={name: drawn(t) for name, t in one.tensors.items()}) for one in self.layers]
        return replace(self, layers=tuple(layers), donor=f"random seed {seed} like {self.donor}", bits=16)


def generator_of(seed: int) -> torch.Generator:
    """Return a new random generator with this seed.

    Raises:
        ValueError: the seed is not a whole number.
    """
    if not is_whole(seed):
        raise ValueError(f"the seed of a block must be a whole number, not {seed!r}: give --block_seed 0, for example")
    return torch.Generator().manual_seed(int(seed))


def same_weights(one: DonorLayers, other: DonorLayers) -> bool:
    """Return whether two donors have the same layers; tensors of different dtypes are compared in the coarser one."""
    pairs = [(a.tensors, b.tensors) for a, b in zip(one.layers, other.layers)]
    pairs.append((one.final_norm, other.final_norm))
    return len(one.layers) == len(other.layers) and all(
        a.keys() == b.keys() and all(_alike(a[name], b[name]) for name in a) for a, b in pairs
    )


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype == other.dtype:
        return torch.equal(one, other)
    coarser = max(one.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    if torch.equal(one.to(coarser), other.to(coarser)):
        return True
    return torch.allclose(one.double(), other.double(), rtol=torch.finfo(coarser).eps, atol=1e-7)  # two roundings


def random_layer(geometry: BlockGeometry, seed: int = 0) -> DonorLayers:
    """Make a layer of random float32 weights without a donor, from a separate generator.

    Matrices have standard deviation ``1 / sqrt(inputs)``, norms have a gain of one, and biases are zero.

    Example:
        >>> random_layer(BlockGeometry(64, 128, 4, 2, 16), seed=3).name
        'random seed 3'
    """
    generator = generator_of(seed)
    tensors = {}
    for name, shape in geometry.tensor_shapes.items():
        if len(shape) == 2:
            tensors[name] = torch.randn(shape, generator=generator, dtype=torch.float32) * shape[1] ** -0.5
        elif name.endswith("norm.weight"):
            tensors[name] = torch.full(shape, 1.0 - geometry.gain_offset, dtype=torch.float32)
        else:
            tensors[name] = torch.zeros(shape, dtype=torch.float32)
    return DonorLayers((Layer(tensors, geometry),), f"random seed {seed}")
