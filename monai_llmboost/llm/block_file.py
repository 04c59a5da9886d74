# SPDX-License-Identifier: Apache-2.0
"""Block files: layers in one .safetensors file with their origin in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from monai_llmboost.artifacts.digests import tensors_digest, text_digest
from monai_llmboost.artifacts.files import atomic_path
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import DonorLayers, Layer
from monai_llmboost.llm.paths import find_block_file
from monai_llmboost.llm.quantise import QuantisedLayers
from monai_llmboost.llm.quantised_matrix import unpack
from monai_llmboost.llm.stream_size import find_h_rms

# Files with fewer bits have a version of their own, so that earlier versions of the package refuse only them.
FORMAT, FORMAT_QUANTISED = "monai-llmboost block 3", "monai-llmboost block 4"


def write_block(donor: DonorLayers | QuantisedLayers, out: Path, asked: str = "", overwrite: bool = True) -> None:
    """Write layers atomically, with their indices, origin, fingerprint (sha256) and size of tokens in the header.

    Args:
        donor: the layers, or their quantised form, see :func:`monai_llmboost.llm.quantise_layers`.
        out: the file.
        asked: the branch, tag or commit that the user gave; ``donor.revision`` is the resolved commit.
        overwrite: replace an existing file.

    Raises:
        OSError: the file cannot be written (FileExistsError: it exists); an existing file is kept.
    """
    quantised = donor if isinstance(donor, QuantisedLayers) else None
    whole = donor.donor if isinstance(donor, QuantisedLayers) else donor
    header = {
        "format": FORMAT if quantised is None else FORMAT_QUANTISED,
        "geometries": json.dumps([json.loads(one.geometry.to_json()) for one in whole.layers if one.geometry]),
        "config": whole.layers[0].config,
        "donor": whole.donor,
        "layers": json.dumps([one.index for one in whole.layers]),
        "num_layers": str(whole.num_layers),
        "width": str(whole.width),
        "num_weights": str(whole.num_weights),
        "revision": whole.revision,
        "asked": asked,
        "licence": whole.licence,
        "quantised": whole.quantised,
        "fingerprint": whole.fingerprint,
        "final_norm": tensors_digest(whole.final_norm),
        "h_rms": json.dumps(find_h_rms(whole) if quantised is None else quantised.h_rms),
        **({} if quantised is None else quantised.header),
    }
    header["header"] = _digest(header)
    parts = [one.tensors for one in whole.layers] if quantised is None else quantised.stored
    tensors = {f"{i}.{name}": tensor for i, part in enumerate(parts) for name, tensor in part.items()}
    tensors |= {f"final_norm.{name}": tensor for name, tensor in whole.final_norm.items()}
    try:
        with atomic_path(out, overwrite=overwrite) as temporary:
            save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, metadata=header)
    except FileExistsError:
        raise
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk by its own error
        raise OSError(f"cannot write {out} ({error}): free some space there, or give another --out") from error


def is_block_file(file: Path) -> bool:
    """Return whether a file was written by any version of :func:`write_block`."""
    try:
        with safe_open(file, framework="pt") as content:
            return (content.metadata() or {}).get("format", "").startswith("monai-llmboost block")
    except (SafetensorError, OSError):
        return False


def _digest(header: dict[str, str]) -> str:
    """Return the digest of a header without its own entry."""
    return text_digest({key: value for key, value in header.items() if key != "header"})


def read_header(file: str | Path) -> dict[str, str]:
    """Return the header that :func:`write_block` wrote: layers, donor, revision, licence, fingerprint.

    Args:
        file: the block file, or ``"embedded"``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a block file.
    """
    path = find_block_file(file)
    try:
        with safe_open(path, framework="pt") as content:
            header = content.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no block file, or damaged ({error}): extract it again") from error
    if not header.get("format", "").startswith("monai-llmboost block"):
        raise ValueError(
            f"{path} is a safetensors file, but no block file: cut one layer out of the model with "
            "`monai-llmboost extract MODEL --layer -1 --out FILE`"
        )
    if header["format"] not in (FORMAT, FORMAT_QUANTISED):
        raise ValueError(f"{path} is a block file of another version, {header['format']!r}: extract it again")
    if header.get("header") != _digest(header):
        raise ValueError(f"{path} was altered, its header is not the one that was written: extract it again")
    return header


def stored_h_rms(header: Mapping[str, str], donor: DonorLayers) -> float | None:
    """Return the size of tokens in a header, see :func:`monai_llmboost.llm.find_h_rms`; old files lack it."""
    return json.loads(header["h_rms"]) if "h_rms" in header else find_h_rms(donor)


def read_block(file: str | Path) -> DonorLayers:
    """Read the layers of a block file, or of the one in the package (``"embedded"``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a block file, or altered after extraction.
    """
    header = read_header(file)
    with safe_open(find_block_file(file), framework="pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (safe_open is no dict)
    indices = json.loads(header["layers"])
    parts: list[dict[str, torch.Tensor]] = [{} for _ in indices]
    norm = {}
    for key, tensor in tensors.items():
        place, _, name = key.partition(".")
        if place == "final_norm":
            norm[name] = tensor
        elif place.isdecimal() and int(place) < len(parts):
            parts[int(place)][name] = tensor
    altered = f"{file} was altered, its weights are not those that were extracted: extract it again"
    try:
        geometries = [BlockGeometry.from_json(json.dumps(one)) for one in json.loads(header["geometries"])]
        if header["format"] == FORMAT_QUANTISED:
            dtype, group = getattr(torch, header["dtype"]), int(header["group"])
            parts = [unpack(part, one.tensor_shapes, dtype, group) for part, one in zip(parts, geometries)]
        layers = tuple(
            Layer(part, geometries[i] if geometries else None, header["config"], index)
            for i, (part, index) in enumerate(zip(parts, indices))
        )
    except ValueError as error:  # an unexpected name or shape
        raise ValueError(altered) from error
    numbers = header["donor"], int(header["num_layers"]), header["revision"], header["licence"]
    donor = DonorLayers(layers, *numbers, norm, header.get("quantised", ""), int(header.get("bits", 16)))
    if (donor.fingerprint, tensors_digest(norm)) != (header["fingerprint"], header["final_norm"]):
        raise ValueError(altered)
    return donor
