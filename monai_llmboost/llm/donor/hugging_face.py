# SPDX-License-Identifier: Apache-2.0
"""Layers out of a checkpoint as Hugging Face's libraries write it: ``config.json`` and safetensors or pickles."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_llmboost.llm.donor.families import Family, find_family, get_text_config, make_geometry
from monai_llmboost.llm.donor.names import check_depth, rename_tensors, unify_dtype
from monai_llmboost.llm.donor.unread import check_not_quantised
from monai_llmboost.llm.donor.weight_sets import Files, WeightSet
from monai_llmboost.llm.layers import DonorLayers, Layer
from monai_llmboost.llm.transformers_model import NOT_WEIGHTS, number_of_layers, stack_of

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def get_language_config(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a ``config.json`` that is about the language model; ValueError if it is quantised."""
    config = get_text_config(content)
    for said in (content, config):
        check_not_quantised(said)
    return config


def count_layers(config: Mapping[str, Any]) -> int:
    """Return how many layers a natively run model has."""
    key = "n_layer" if "n_layer" in config else "num_hidden_layers"
    number = config.get(key)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 10_000:
        raise ValueError(f"expected {key} to be the number of layers, got {number!r}: correct the model's config")
    return number


def read_hugging_face(
    files: Files, config: Mapping[str, Any], weights: WeightSet, choose: Callable[[int], Sequence[int]]
) -> DonorLayers:
    """Return layers of a model.

    Args:
        files: the model.
        config: of its language model, see :func:`get_language_config`.
        weights: the files that hold its weights.
        choose: number of layers -> indices of those that are wanted.

    Raises:
        FileNotFoundError: a file of the weights is missing.
        ValueError: one is damaged, the model is of a kind that cannot be a donor, or ``choose`` refuses.
    """
    family = find_family(config)
    number = count_layers(config) if family else number_of_layers(config)
    indices = choose(number)
    stack = family.layers if family else stack_of(config)
    words = stack.rpartition(".")[2]
    weight_map = weights.weight_map(files)
    prefix = _find_prefix(weight_map, stack, indices[0], files.donor)
    if family:  # others have further layers for other tasks
        check_depth(weight_map, f"{prefix}{words}.", number, files.donor)
    begins = [f"{prefix}{words}.{index}." for index in indices]
    norm = f"{prefix}{family.final_norm}." if family else None
    stored = weights.read(files, weight_map, lambda name: _is_wanted(name, begins, norm))
    check_weights(stored)
    layers = [_layer(_select_under(begin, stored), config, family, i, files.donor) for begin, i in zip(begins, indices)]
    final_norm = _select_under(norm, stored) if norm else {}
    return DonorLayers(tuple(layers), files.donor, number, files.revision, files.find_licence(), final_norm)


def _find_prefix(names: Iterable[str], stack: str, index: int, donor: str) -> str:
    """What stands before the list of layers in names on disk, such as ``model.``; of several, the language model's."""
    likely, _, words = stack.rpartition(".")
    begins = re.compile(rf"((?:.*?\.)?){re.escape(words)}\.{index}\.")
    found = sorted({match.group(1) for name in names if (match := begins.match(name))})
    spoken = [prefix for prefix in found if "language_model" in prefix] if len(found) > 1 else found
    if likely and f"{likely}." in found:
        spoken = [f"{likely}."]
    if len(spoken) != 1:
        raise ValueError(
            f"expected one stack of layers in {donor}, found {found or f'no tensor of layer {index}'}: "
            "choose a plain language model, or download all its files"
        )
    return spoken[0]


def _is_wanted(name: str, begins: list[str], norm: str | None) -> bool:
    """Whether a tensor is a weight of the layers whose names begin so, or of the final norm."""
    if norm is not None and name in (f"{norm}weight", f"{norm}bias"):
        return True
    return any(name.startswith(begin) and not NOT_WEIGHTS.search(name.removeprefix(begin)) for begin in begins)


def _select_under(begin: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(begin): tensor for name, tensor in tensors.items() if name.startswith(begin)}


def _layer(
    tensors: dict[str, Tensor], config: Mapping[str, Any], family: Family | None, index: int, donor: str
) -> Layer:
    if family is None:
        return Layer(tensors, config=json.dumps(dict(config), sort_keys=True), index=index)
    try:
        geometry = make_geometry(family, config, index)
        ours = rename_tensors(family.names, geometry, tensors, family.transposed, family.by_head)
        return Layer(unify_dtype(ours), geometry, index=index)
    except ValueError as error:
        raise ValueError(f"layer {index} of {donor}: {error}") from error


def check_weights(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless all are finite floats."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(
                f"expected float weights, got {tensor.dtype} for {name}: choose a donor that is not quantised"
            )
        if not all(bound.isfinite() for bound in tensor.aminmax()):  # which hand a NaN on, and copy nothing
            raise ValueError(f"expected finite weights, {name} has NaN or infinite ones: download the donor again")
