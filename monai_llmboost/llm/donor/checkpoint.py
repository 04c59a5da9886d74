# SPDX-License-Identifier: Apache-2.0
"""Read some layers, and nothing else, out of a language model's checkpoint; nothing of the model is ever executed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_llmboost.llm.donor.families import Family, family_of, geometry_of, text_config
from monai_llmboost.llm.donor.hub import HubRepository, LocalFolder
from monai_llmboost.llm.donor.meta import read_meta
from monai_llmboost.llm.donor.names import block_tensors
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import DonorLayers, Layer
from monai_llmboost.llm.transformers_model import NOT_WEIGHTS, number_of_layers, stack_of

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Weights as one file or as parts with an index; safetensors first.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
RANGE = re.compile(r"\s*(-?[0-9]+)?\s*:\s*(-?[0-9]+)?\s*")
Files = LocalFolder | HubRepository


def read_layers(model: str | Path, layer: int | str | Sequence[int] = -1, revision: str | None = None) -> DonorLayers:
    """Read one or several layers of a language model.

    Args:
        model: a folder with ``config.json`` and safetensors or ``pytorch_model*.bin`` files (Hugging Face), a folder
            with ``params.json`` and ``consolidated.*.pth`` (Meta), or a hub id such as ``HuggingFaceTB/SmolLM2-135M``,
            of which only the bytes of these layers are fetched.
        layer: index of the layer, negative counts from the end; several as a sequence, as text such as ``"3,5"``, or
            as a range that ends before its second number, ``"4:8"`` or ``"-2:"``.
        revision: branch, tag or commit of a hub id.

    Raises:
        FileNotFoundError: there is no such folder, or a file of it is missing.
        ValueError: the model is of a kind that cannot be a donor, damaged, or has no such layer.
        ConnectionError: the hub cannot be reached, or does not give this model to you.
    """
    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        if not (folder / "params.json").is_file():
            raise FileNotFoundError(
                f"expected config.json (Hugging Face) or params.json (Meta) in {folder}, found neither: "
                "give the folder that holds the model's files"
            )
        donor = read_meta(folder, lambda number: layers_of(layer, number))
        for one in donor.layers:
            check_weights(one.tensors)
        return donor
    if folder.is_dir() and revision is not None:
        raise ValueError(f"expected no revision with a folder, got {revision!r}: a folder holds one revision")
    if not folder.is_dir() and (folder.exists() or not HUB_ID.fullmatch(str(model))):
        raise FileNotFoundError(f"expected a model folder or a hub id such as owner/name, got {str(model)!r}")
    files = LocalFolder(folder) if folder.is_dir() else _on_hub(str(model), revision)
    config = _config(files)
    family = family_of(config)
    number = _number_of_layers(config) if family else number_of_layers(config)
    indices = layers_of(layer, number)
    stack = family.layers if family else stack_of(config)
    words = stack.rpartition(".")[2]
    weight_map = _weight_map(files)
    prefix = _prefix(weight_map, stack, indices[0], files.donor)
    begins = [f"{prefix}{words}.{index}." for index in indices]
    norm = f"{prefix}{family.final_norm}." if family else None
    stored = _read(files, weight_map, [name for name in weight_map if _is_wanted(name, begins, norm)])
    check_weights(stored)
    layers = [_layer(_under(begin, stored), config, family, i, files.donor) for begin, i in zip(begins, indices)]
    final_norm = _under(norm, stored) if norm else {}
    return DonorLayers(tuple(layers), files.donor, number, files.revision, files.licence(), final_norm)


def read_geometry(model: str | Path) -> BlockGeometry:
    """The numbers of a model's last layer, from its ``config.json`` alone; no weights are needed.

    Args:
        model: a Hugging Face folder, or the ``config.json`` itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the model's family is not run natively, or the file says something impossible.
    """
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"expected a model's config.json, found nothing at {path}: give the file or its folder")
    content = LocalFolder(path.parent).json(path.name) or {}
    config = text_config(content)
    family = family_of(config)
    if family is None:
        raise ValueError(
            f"expected a family that is run natively, got {config.get('model_type')!r}: extract a layer of it, if it "
            "can be a donor, then give its block file"
        )
    return geometry_of(family, config, _number_of_layers(config) - 1)


def layers_of(layer: int | str | Sequence[int], number: int) -> list[int]:
    """Indices from 0 for what :func:`read_layers` takes as ``layer``, of a model of ``number`` layers.

    Raises:
        ValueError: no such layer, the same one twice, or not to be understood.
    """
    if isinstance(layer, str):
        if span := RANGE.fullmatch(layer):
            first, last = (int(word) if word else None for word in span.groups())
            for end in (first, last):
                if end is not None and not -number <= end <= number:
                    raise ValueError(f"expected a range within the layers 0 to {number - 1}, got {layer!r}")
            wanted = list(range(number))[first:last]
        else:
            words = layer.split(",")
            if not all(re.fullmatch(r"\s*-?[0-9]+\s*", word) for word in words):
                raise ValueError(f"expected layers such as -1, 3,5 or 4:8, got {layer!r}")
            wanted = [int(word) for word in words]
    else:
        wanted = [layer] if isinstance(layer, int) else list(layer)
    if not wanted:
        raise ValueError(f"expected at least one layer, got none from {layer!r}: a range ends before its second number")
    for index in wanted:
        if not -number <= index < number:
            raise ValueError(
                f"layer {index} is not in this model: it has the layers 0 to {number - 1} "
                f"(or -{number} to -1, counted from the end)"
            )
    indices = [index % number for index in wanted]
    if len(set(indices)) < len(indices):
        raise ValueError(f"expected each layer once, got {layer!r}")
    return indices


def check_weights(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless all are finite floats."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(
                f"expected float weights, got {tensor.dtype} for {name}: choose a donor that is not quantised"
            )
        if not all(bound.isfinite() for bound in tensor.aminmax()):  # which hand a NaN on, and copy nothing
            raise ValueError(f"expected finite weights, {name} has NaN or infinite ones: download the donor again")


def _on_hub(model: str, revision: str | None) -> HubRepository:
    try:
        return HubRepository(model, revision)
    except ConnectionError as error:
        raise ConnectionError(f"{error} (nor is there a folder {model} here)") from error


def _config(files: Files) -> Mapping[str, Any]:
    content = files.json("config.json")
    if content is None:
        raise FileNotFoundError(f"expected config.json in {files.donor}, found none: it is no transformers model")
    config = text_config(content)
    if content.get("quantization_config") or config.get("quantization_config"):
        raise ValueError("expected plain weights, got a quantised model: choose the float version of this donor")
    return config


def _number_of_layers(config: Mapping[str, Any]) -> int:
    key = "n_layer" if "n_layer" in config else "num_hidden_layers"
    number = config.get(key)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 10_000:
        raise ValueError(f"expected {key} to be the number of layers, got {number!r}: correct the model's config")
    return number


def _weight_map(files: Files) -> dict[str, str]:
    """Every tensor's name and the file that holds it."""
    for whole in WEIGHTS:
        index = files.json(f"{whole}.index.json")
        if index is not None:
            weight_map = index.get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
                raise ValueError(f"expected a weight_map of file names in {whole}.index.json: download it again")
            return weight_map
        if files.has(whole):
            return dict.fromkeys(files.tensor_names(whole), whole)
    raise FileNotFoundError(
        f"expected {' or '.join(WEIGHTS)} in {files.donor}, found neither: download the weights too "
        "(GGUF files are not read)"
    )


def _prefix(names: Iterable[str], stack: str, index: int, donor: str) -> str:
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


def _under(begin: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(begin): tensor for name, tensor in tensors.items() if name.startswith(begin)}


def _layer(
    tensors: dict[str, Tensor], config: Mapping[str, Any], family: Family | None, index: int, donor: str
) -> Layer:
    if family is None:
        return Layer(tensors, config=json.dumps(dict(config), sort_keys=True), index=index)
    try:
        geometry = geometry_of(family, config, index)
        ours = block_tensors(family.names, geometry, tensors, family.transposed, family.by_head)
        return Layer(ours, geometry, index=index)
    except ValueError as error:
        raise ValueError(f"layer {index} of {donor}: {error}") from error


def _read(files: Files, weight_map: Mapping[str, str], names: list[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in sorted({weight_map[name] for name in names}):
        tensors.update(files.tensors(file, [name for name in names if weight_map[name] == file]))
    return tensors
