# SPDX-License-Identifier: Apache-2.0
"""Read some layers, and nothing else, out of a language model's checkpoint; nothing of the model is ever executed."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from monai_llmboost.llm.donor.families import find_family, get_text_config, make_geometry
from monai_llmboost.llm.donor.gguf.model import read_gguf
from monai_llmboost.llm.donor.hub import HubRepository, LocalFolder
from monai_llmboost.llm.donor.hugging_face import check_weights, count_layers, get_language_config, read_hugging_face
from monai_llmboost.llm.donor.meta import read_native
from monai_llmboost.llm.donor.unread import no_weights_error
from monai_llmboost.llm.donor.weight_sets import (
    USUAL,
    Files,
    WeightSet,
    find_gguf_files,
    find_hugging_face_sets,
    find_native_sets,
)
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import DonorLayers, same_weights

logger = logging.getLogger("monai_llmboost")
HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+?)(?:/(?P<file>[^/]+\.gguf))?")
NATIVE_FORM = ("llama", "mistral")  # model types that are also handed out with a params.json
RANGE = re.compile(r"\s*(-?[0-9]+)?\s*:\s*(-?[0-9]+)?\s*")
# What messages call a set of weights, and how its layers are read.
Form = tuple[str, Callable[[], DonorLayers]]


def read_layers(model: str | Path, layer: int | str | Sequence[int] = -1, revision: str | None = None) -> DonorLayers:
    """Read one or several layers of a language model.

    Where a folder holds several sets of weights, such as old shards next to a new file, the layers are read from each:
    sets that differ are refused, for nobody can say which one is meant. One model in two forms does not differ.

    Args:
        model: a folder with ``config.json`` and safetensors or ``pytorch_model*.bin`` files (Hugging Face), a folder
            with ``params.json`` and ``consolidated.*`` (Meta, Mistral), a GGUF file or a folder with one, or a hub id
            such as ``HuggingFaceTB/SmolLM2-135M`` (or ``owner/name/file.gguf``), of which only the bytes of these
            layers are fetched.
        layer: index of the layer, negative counts from the end; several as a sequence, as text such as ``"3,5"``, or
            as a range that ends before its second number, ``"4:8"`` or ``"-2:"``.
        revision: branch, tag or commit of a hub id.

    Raises:
        FileNotFoundError: there is no such folder, or a file of it is missing.
        ValueError: the model is of a kind that cannot be a donor, damaged, there in two versions, or has no such layer.
        ConnectionError: the hub cannot be reached, or does not give this model to you.
        ImportError: a package that this form of model needs is missing.
    """
    files, chosen = _open_files(model, revision)
    donor = _read_agreeing(_find_forms(files, chosen, str(model), partial(parse_layers, layer)), files.donor)
    for one in donor.layers:
        check_weights(one.tensors)
    check_weights({f"the final norm's {name}": tensor for name, tensor in donor.final_norm.items()})
    return donor


def _open_files(model: str | Path, revision: str | None) -> tuple[Files, str]:
    """Return the files of a model, and the name of the one that was asked for."""
    path, on_hub = Path(model), HUB_ID.fullmatch(str(model))
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".gguf"):
        if revision is not None:
            raise ValueError(f"expected no revision with a folder, got {revision!r}: a folder holds one revision")
        return (LocalFolder(path), "") if path.is_dir() else (LocalFolder(path.parent), path.name)
    if path.exists() or on_hub is None:
        raise FileNotFoundError(
            f"expected a model folder or a hub id such as owner/name, or a GGUF file, got {str(model)!r}"
        )
    try:
        return HubRepository(on_hub["repository"], revision), on_hub["file"] or ""
    except ConnectionError as error:
        raise ConnectionError(f"{error} (nor is there a folder {model} here)") from error


def _find_forms(files: Files, chosen: str, model: str, choose: Callable[[int], list[int]]) -> list[Form]:
    """Return every form that a model is there in, the one that counts first, with how to read it."""
    is_local = isinstance(files, LocalFolder)
    content = None if chosen else files.read_json("config.json")
    missing: FileNotFoundError | None = None  # which matters if there is no other form
    sets: list[WeightSet] = []
    native: list[list[WeightSet]] = []
    try:
        sets = find_hugging_face_sets(files) if content is not None else []
    except FileNotFoundError as error:
        missing = error
    # On the hub all is of one commit, and what is not safetensors comes whole: only sets of one kind are compared.
    sets = [one for one in sets if is_local or one.is_safetensors == sets[0].is_safetensors]
    config = get_language_config(content) if content is not None and sets else {}
    forms: list[Form] = [(one.name, partial(read_hugging_face, files, config, one, choose)) for one in sets]
    if not chosen and (not sets or (is_local and config["model_type"] in NATIVE_FORM)) and files.has("params.json"):
        try:
            native = find_native_sets(files)
        except FileNotFoundError as error:
            missing = missing or error
    forms += [(parts[0].name, partial(read_native, files, parts, choose)) for parts in native]
    if not forms and (parts := find_gguf_files(files, chosen)):
        donor = files.donor if not chosen else Path(chosen).stem if is_local else model
        forms = [(parts[0], partial(_read_gguf, files, parts, donor, choose))]
    if not forms:
        raise missing or _no_form_error(files, content is not None)
    return forms


def _no_form_error(files: Files, has_config: bool) -> FileNotFoundError:
    """Return what to raise where a model is there in no form that is read."""
    expected, advice = "config.json (Hugging Face) or params.json (Meta, Mistral)", "give the folder of a model's files"
    if has_config:
        expected, advice = " or ".join(USUAL), "download the weights too"
    elif files.has("params.json"):
        expected, advice = "consolidated.00.pth or consolidated.safetensors", "download the weights too"
    return no_weights_error(files.list_files(), files.donor, expected, advice)


def _read_agreeing(forms: Sequence[Form], donor: str) -> DonorLayers:
    """Return the layers of the first form that is complete, if the others hold the same.

    Raises:
        ValueError: another form differs; FileNotFoundError: none is complete.
    """
    first: tuple[str, DonorLayers] | None = None
    incomplete: list[FileNotFoundError] = []
    for name, read in forms:
        try:
            found = read()
        except FileNotFoundError as error:
            incomplete.append(error)
        except ValueError as error:
            if first is None:
                raise
            logger.warning(f"{name} next to {first[0]} in {donor} is not compared with it: {error}")
        else:
            if first is not None and not same_weights(first[1], found):
                raise ValueError(
                    f"{donor} holds two sets of weights that differ, {first[0]} and {name}: remove the one that is out "
                    "of date"
                )
            first = first or (name, found)
    if first is None:
        raise incomplete[0]
    return first[1]


def _read_gguf(files: Files, parts: Sequence[str], donor: str, choose: Callable[[int], list[int]]) -> DonorLayers:
    opened = {name: files.open_gguf(name) for name in parts}
    found = read_gguf(opened, files.read_tensors, donor, choose)
    return replace(found, revision=files.revision, licence=found.licence or files.find_licence())


def read_geometry(model: str | Path) -> BlockGeometry:
    """The numbers of a model's last layer, from its ``config.json`` alone; no weights are needed.

    Args:
        model: a Hugging Face folder, or the ``config.json`` itself; or a GGUF file, of which the layer is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the model's family is not run natively, or the file says something impossible.
    """
    path = Path(model)
    if path.is_file() and path.suffix.lower() == ".gguf":
        (layer,) = read_layers(path).layers
        return layer.geometry or BlockGeometry.from_json("")
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"expected a model's config.json, found nothing at {path}: give the file or its folder")
    content = LocalFolder(path.parent).read_json(path.name) or {}
    config = get_text_config(content)
    family = find_family(config)
    if family is None:
        raise ValueError(
            f"expected a family that is run natively, got {config.get('model_type')!r}: extract a layer of it, if it "
            "can be a donor, then give its block file"
        )
    return make_geometry(family, config, count_layers(config) - 1)


def parse_layers(layer: int | str | Sequence[int], number: int) -> list[int]:
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
