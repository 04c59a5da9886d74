# SPDX-License-Identifier: Apache-2.0
"""Read selected layers from a language model checkpoint, without executing any code from it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from monai_llmboost.llm.donor.families import find_family, get_text_config, make_geometry
from monai_llmboost.llm.donor.gguf.model import read_gguf
from monai_llmboost.llm.donor.hub import HubRepository, LocalFolder
from monai_llmboost.llm.donor.hugging_face import check_weights, count_layers, get_language_config, read_hugging_face
from monai_llmboost.llm.donor.meta import read_native
from monai_llmboost.llm.donor.unsupported import no_weights_error
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
from monai_llmboost.llm.paths import find_config, parse_model

logger = logging.getLogger("monai_llmboost")
NATIVE_FORM = ("llama", "mistral")  # model types that are also distributed with a params.json
RANGE = re.compile(r"\s*(-?[0-9]+)?\s*:\s*(-?[0-9]+)?\s*")
# Name of a set of weights for messages, and the function that reads its layers.
Form = tuple[str, Callable[[], DonorLayers]]


def read_layers(model: str | Path, layer: int | str | Sequence[int] = -1, revision: str | None = None) -> DonorLayers:
    """Read one or several layers of a language model.

    If a folder holds several sets of weights, such as old shards next to a new file, the layers are read from each set
    and compared. Sets that differ are refused. The same weights in two formats do not differ.

    Args:
        model: a folder with ``config.json`` and safetensors or ``pytorch_model*.bin`` files (Hugging Face), a folder
            with ``params.json`` and ``consolidated.*`` (Meta, Mistral), a GGUF file or a folder with one, or a hub id
            such as ``HuggingFaceTB/SmolLM2-135M`` (or ``owner/name/file.gguf``), from which only the bytes of these
            layers are downloaded.
        layer: layer index; a negative index counts from the end. Several layers are a sequence, a text such as
            ``"3,5"``, or a range whose end is excluded, such as ``"4:8"`` or ``"-2:"``.
        revision: branch, tag or commit of a hub id.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: the model cannot be a donor, is damaged, holds two different sets of weights, or lacks the layer.
        ConnectionError: the hub cannot be reached, or denies access to the model.
        ImportError: a package that this file format needs is missing.

    Example:
        >>> read_layers("HuggingFaceTB/SmolLM2-135M", "-2:")  # doctest: +SKIP
    """
    files, chosen = _open_files(model, revision)
    donor = _read_agreeing(_find_forms(files, chosen, str(model), partial(parse_layers, layer)), files.donor)
    for one in donor.layers:
        check_weights(one.tensors)
    check_weights({f"the final norm's {name}": tensor for name, tensor in donor.final_norm.items()})
    return donor


def _open_files(model: str | Path, revision: str | None) -> tuple[Files, str]:
    """Return the files of a model, and the name of the GGUF file if one was requested."""
    path, on_hub = Path(model), parse_model(model)
    if on_hub is None:
        if revision is not None:
            raise ValueError(f"a folder has no revisions, but revision {revision!r} was given: leave it out")
        return (LocalFolder(path), "") if path.is_dir() else (LocalFolder(path.parent), path.name)
    try:
        return HubRepository(on_hub["repository"], revision), on_hub["file"] or ""
    except ConnectionError as error:
        raise ConnectionError(f"{error} (there is no local folder {model} either)") from error


def _find_forms(files: Files, chosen: str, model: str, choose: Callable[[int], list[int]]) -> list[Form]:
    """Return all formats in which the model is available, the preferred one first, with their readers."""
    content = None if chosen else files.read_json("config.json")
    missing: FileNotFoundError | None = None  # raised only if there is no other format
    sets: list[WeightSet] = []
    native: list[list[WeightSet]] = []
    try:
        sets = _find_comparable_sets(files) if content is not None else []
    except FileNotFoundError as error:
        missing = error
    config = get_language_config(content) if content is not None and sets else {}
    forms: list[Form] = [(one.name, partial(read_hugging_face, files, config, one, choose)) for one in sets]
    if not chosen and _may_be_native(files, sets, config):
        try:
            native = find_native_sets(files)
        except FileNotFoundError as error:
            missing = missing or error
    forms += [(parts[0].name, partial(read_native, files, parts, choose)) for parts in native]
    forms = forms or _find_gguf_form(files, chosen, model, choose)
    if not forms:
        raise missing or _no_form_error(files, content is not None)
    return forms


def _find_comparable_sets(files: Files) -> list[WeightSet]:
    """Return the sets of weights of Hugging Face that are compared with each other."""
    sets = find_hugging_face_sets(files)
    # On the hub all files are from one commit, and pickles must be downloaded whole: compare sets of one kind only.
    is_local = isinstance(files, LocalFolder)
    return [one for one in sets if is_local or one.is_safetensors == sets[0].is_safetensors]


def _may_be_native(files: Files, sets: Sequence[WeightSet], config: Mapping[str, Any]) -> bool:
    """Return whether to look for a native format, next to these sets of weights with their configuration."""
    is_wanted = not sets or (isinstance(files, LocalFolder) and config["model_type"] in NATIVE_FORM)
    return is_wanted and files.has("params.json")


def _find_gguf_form(files: Files, chosen: str, model: str, choose: Callable[[int], list[int]]) -> list[Form]:
    """Return the GGUF format of the model; empty if there is none."""
    parts = find_gguf_files(files, chosen)
    if not parts:
        return []
    donor = files.donor if not chosen else Path(chosen).stem if isinstance(files, LocalFolder) else model
    return [(parts[0], partial(_read_gguf, files, parts, donor, choose))]


def _no_form_error(files: Files, has_config: bool) -> FileNotFoundError:
    """Return the error for a model without any supported format."""
    expected, advice = "config.json (Hugging Face) or params.json (Meta, Mistral)", "give the folder of a model's files"
    if has_config:
        expected, advice = " or ".join(USUAL), "download the weights too"
    elif files.has("params.json"):
        expected, advice = "consolidated.00.pth or consolidated.safetensors", "download the weights too"
    return no_weights_error(files.list_files(), files.donor, expected, advice)


def _read_agreeing(forms: Sequence[Form], donor: str) -> DonorLayers:
    """Return the layers of the first complete format, after checking that the other formats hold the same weights.

    Raises:
        ValueError: another format differs.
        FileNotFoundError: no format is complete.
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
            logger.warning(f"{donor}: {name} could not be compared with {first[0]}: {error}")
        else:
            if first is not None and not same_weights(first[1], found):
                raise ValueError(
                    f"{donor} holds two sets of weights that differ, {first[0]} and {name}: remove the outdated one"
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
    """Read the geometry of a model's last layer from its ``config.json`` alone, without weights.

    Args:
        model: a Hugging Face folder, its ``config.json``, or a GGUF file, whose last layer is then read.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the model's family is not run natively, or the file has an invalid value.
    """
    path = find_config(model)
    if path.suffix.lower() == ".gguf":
        (layer,) = read_layers(path).layers
        return layer.geometry or BlockGeometry.from_json("")
    content = LocalFolder(path.parent).read_json(path.name) or {}
    config = get_text_config(content)
    family = find_family(config)
    if family is None:
        raise ValueError(
            f"model type {config.get('model_type')!r} is not run natively: extract a layer with "
            "`monai-llmboost extract`, then give the block file"
        )
    return make_geometry(family, config, count_layers(config) - 1)


def parse_layers(layer: int | str | Sequence[int], number: int) -> list[int]:
    """Return layer indices from 0 for the ``layer`` argument of :func:`read_layers`; the model has ``number`` layers.

    Raises:
        ValueError: a layer does not exist or is repeated, or the text cannot be parsed.

    Example:
        >>> parse_layers("-2:", 30)
        [28, 29]
    """
    if isinstance(layer, str):
        wanted = _parse_text(layer, number)
    else:
        wanted = [layer] if isinstance(layer, int) else list(layer)
    if not wanted:
        raise ValueError(f"{layer!r} selects no layer: the end of a range is excluded")
    for index in wanted:
        if not -number <= index < number:
            raise ValueError(
                f"layer {index} is not in this model: it has the layers 0 to {number - 1} "
                f"(or -{number} to -1, counted from the end)"
            )
    indices = [index % number for index in wanted]
    if len(set(indices)) < len(indices):
        raise ValueError(f"{layer!r} selects a layer twice: give each layer once")
    return indices


def _parse_text(text: str, number: int) -> list[int]:
    """Return the layer indices in an index, a list or a range; those of an index or list may be negative."""
    if span := RANGE.fullmatch(text):
        first, last = (int(word) if word else None for word in span.groups())
        for end in (first, last):
            if end is not None and not -number <= end <= number:
                raise ValueError(f"range {text!r} is outside the layers 0 to {number - 1}")
        return list(range(number))[first:last]
    words = text.split(",")
    if not all(re.fullmatch(r"\s*-?[0-9]+\s*", word) for word in words):
        raise ValueError(f"invalid layers {text!r}: give an index, a list or a range, such as -1, 3,5 or 4:8")
    return [int(word) for word in words]
