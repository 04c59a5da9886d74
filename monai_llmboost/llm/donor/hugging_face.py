# SPDX-License-Identifier: Apache-2.0
"""Read layers from a checkpoint in Hugging Face format: ``config.json`` and safetensors or PyTorch files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_llmboost.llm.donor.families import Family, find_family, get_text_config, make_geometry
from monai_llmboost.llm.donor.names import check_depth, rename_tensors, select_prefix, unify_dtype
from monai_llmboost.llm.donor.unsupported import check_not_quantised
from monai_llmboost.llm.donor.weight_sets import Files, WeightSet
from monai_llmboost.llm.layers import DonorLayers, Layer
from monai_llmboost.llm.transformers_model import NOT_WEIGHTS, number_of_layers, stack_of

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def get_language_config(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model part of a ``config.json``; raise ValueError if the weights are quantised."""
    config = get_text_config(content)
    for part in (content, config):
        check_not_quantised(part)
    return config


def count_layers(config: Mapping[str, Any]) -> int:
    """Return the number of layers of a natively run model."""
    key = "n_layer" if "n_layer" in config else "num_hidden_layers"
    number = config.get(key)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 10_000:
        raise ValueError(f"{key} in the configuration must be the number of layers, not {number!r}: correct it")
    return number


def read_hugging_face(
    files: Files, config: Mapping[str, Any], weights: WeightSet, choose: Callable[[int], Sequence[int]]
) -> DonorLayers:
    """Read layers of a model.

    Args:
        files: files of the model.
        config: configuration of its language model, from :func:`get_language_config`.
        weights: set of files with its weights.
        choose: function from the number of layers to the wanted layer indices.

    Raises:
        FileNotFoundError: a weight file is missing.
        ValueError: a file is damaged, the model cannot be a donor, or ``choose`` raises.
    """
    family = find_family(config)
    number = count_layers(config) if family else number_of_layers(config)
    indices = choose(number)
    stack = family.layers if family else stack_of(config)
    last_part = stack.rpartition(".")[2]
    weight_map = weights.read_weight_map(files)
    prefix = _find_prefix(weight_map, stack, indices[0], files.donor)
    if family:  # other models may have additional layers for other tasks
        check_depth(weight_map, f"{prefix}{last_part}.", number, files.donor)
    prefixes = [f"{prefix}{last_part}.{index}." for index in indices]
    norm = f"{prefix}{family.final_norm}." if family else None
    stored = weights.read(files, weight_map, lambda name: _is_wanted(name, prefixes, norm))
    check_weights(stored)
    layers = [
        _make_layer(select_prefix(begin, stored), config, family, i, files.donor) for begin, i in zip(prefixes, indices)
    ]
    final_norm = select_prefix(norm, stored) if norm else {}
    return DonorLayers(tuple(layers), files.donor, number, files.revision, files.find_licence(), final_norm)


def _find_prefix(names: Iterable[str], stack: str, index: int, donor: str) -> str:
    """Return the prefix of the layer list in tensor names, such as ``model.``; of several, the language model's."""
    usual, _, last_part = stack.rpartition(".")
    pattern = re.compile(rf"((?:.*?\.)?){re.escape(last_part)}\.{index}\.")
    found = sorted({match.group(1) for name in names if (match := pattern.match(name))})
    if usual and f"{usual}." in found:
        return f"{usual}."
    of_language = [prefix for prefix in found if "language_model" in prefix] if len(found) > 1 else found
    if len(of_language) != 1:
        raise ValueError(
            f"{donor} must have one list of layers, but has {found or f'no tensor of layer {index}'}: "
            "choose a plain language model, or download all its files"
        )
    return of_language[0]


def _is_wanted(name: str, prefixes: list[str], norm: str | None) -> bool:
    """Return whether a tensor is a weight of the layers with these prefixes, or of the final norm."""
    if norm is not None and name in (f"{norm}weight", f"{norm}bias"):
        return True
    return any(name.startswith(begin) and not NOT_WEIGHTS.search(name.removeprefix(begin)) for begin in prefixes)


def _make_layer(
    tensors: dict[str, Tensor], config: Mapping[str, Any], family: Family | None, index: int, donor: str
) -> Layer:
    if family is None:
        return Layer(tensors, config=json.dumps(dict(config), sort_keys=True), index=index)
    try:
        geometry = make_geometry(family, config, index)
        renamed = rename_tensors(family.names, geometry, tensors, family.transposed, family.by_head)
        return Layer(unify_dtype(renamed), geometry, index=index)
    except ValueError as error:
        raise ValueError(f"layer {index} of {donor}: {error}") from error


def check_weights(tensors: Mapping[str, Tensor]) -> None:
    """Check that all weights are finite floats; raise ValueError otherwise."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is {tensor.dtype}, not a float dtype: choose a donor that is not quantised")
        if not all(bound.isfinite() for bound in tensor.aminmax()):  # aminmax propagates NaN, and copies nothing
            raise ValueError(f"{name} has NaN or infinite weights: download the donor again")
