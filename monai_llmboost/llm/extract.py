# SPDX-License-Identifier: Apache-2.0
"""One layer <-> one small .safetensors file with its origin in the header, and the blocks made from it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from monai_llmboost.llm.checkpoint import DonorLayer, read_layer
from monai_llmboost.llm.frozen import SMALL_GEOMETRY, FrozenBlock, fingerprint, random_tensors
from monai_llmboost.llm.geometry import BlockGeometry

FORMAT = "monai-llmboost block 1"


def extract_block(
    model: str | Path, out: str | Path, layer: int = -1, revision: str | None = None, overwrite: bool = False
) -> DonorLayer:
    """Cut one layer out of a language model and write it to one file.

    Args:
        model: see :func:`monai_llmboost.llm.read_layer`.
        out: the file to write, ending in ``.safetensors``; written whole or not at all.
        layer: index of the layer; negative counts from the end.
        revision: branch, tag or commit of a hub id.
        overwrite: replace a file that is there.

    Raises:
        FileExistsError: ``out`` is there and ``overwrite`` was not asked for.
        Everything that ``read_layer`` raises.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"expected an output name that ends in .safetensors, got {out.name!r}")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} is there already: choose another name or ask to overwrite it")
    donor = read_layer(model, layer, revision)
    write_block(donor, out)
    return donor


def write_block(donor: DonorLayer, out: Path) -> None:
    """Write a layer with its geometry, origin and fingerprint in the header, atomically."""
    header = {
        "format": FORMAT,
        "geometry": donor.geometry.to_json(),
        "donor": donor.donor,
        "layer": str(donor.layer),
        "num_layers": str(donor.num_layers),
        "revision": donor.revision,
        "fingerprint": fingerprint(donor.geometry, donor.tensors),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    os.close(handle)
    try:
        save_file({key: value.contiguous() for key, value in donor.tensors.items()}, name, metadata=header)
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(out)
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_header(file: str | Path) -> dict[str, str]:
    """The header that :func:`write_block` wrote: geometry, donor, layer, revision, fingerprint.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a block file.
    """
    path = Path(file)
    if path.is_dir():
        raise ValueError(
            f"expected a block file, {path} is a folder: cut one layer out of the model with "
            f"`monai-llmboost extract {path} --layer -1 --out FILE`"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a block file, found nothing at {path}: give --block FILE; make one with "
            "`monai-llmboost extract MODEL --layer -1 --out FILE`"
        )
    try:
        with safe_open(path, framework="pt") as content:
            header = content.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"expected a block file, {path} is damaged or of another kind ({error}): extract it again"
        ) from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"expected a file written by `monai-llmboost extract`, got another safetensors file: {path}. "
            "Extract one layer of the model first"
        )
    return header


def _read_block(file: str | Path) -> tuple[dict[str, str], BlockGeometry, dict[str, Tensor]]:
    header = read_header(file)
    geometry = BlockGeometry.from_json(header["geometry"])
    with safe_open(file, framework="pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (safe_open is no dict)
    if fingerprint(geometry, tensors) != header["fingerprint"]:
        raise ValueError(
            f"the weights in {file} are not those that were extracted: the file was altered; extract it again"
        )
    return header, geometry, tensors


def load_block(file: str | Path, dtype: torch.dtype | None = None) -> FrozenBlock:
    """The frozen block in a file written by ``monai-llmboost extract``: the ``pretrained`` arm.

    Args:
        file: the block file.
        dtype: dtype to keep the weights in; ``None`` keeps the donor's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a block file, or altered since it was extracted.
    """
    header, geometry, tensors = _read_block(file)
    name = f"{header['donor']} layer {header['layer']}"
    return FrozenBlock(geometry, tensors, name, dtype, known_fingerprint=header["fingerprint"])


def random_block(
    like: str | Path | BlockGeometry = SMALL_GEOMETRY, seed: int = 0, dtype: torch.dtype | None = None
) -> FrozenBlock:
    """A frozen block of random weights: the ``random`` arm, the control for what pre-training brings.

    Args:
        like: a block file, whose geometry and scale (mean and standard deviation of each tensor) are matched; a
            geometry; or the word ``"random"`` for a small block.
        seed: seed of the weights; no other random number is touched.
        dtype: dtype to keep the weights in; ``None`` is float32.
    """
    if isinstance(like, BlockGeometry) or like == "random":
        geometry = like if isinstance(like, BlockGeometry) else SMALL_GEOMETRY
        return FrozenBlock(geometry, random_tensors(geometry, seed), f"random seed {seed}", dtype)
    header, geometry, tensors = _read_block(like)
    name = f"random seed {seed} like {header['donor']} layer {header['layer']}"
    return FrozenBlock(geometry, random_tensors(geometry, seed, tensors), name, dtype)


def frozen_block(source: str | Path | BlockGeometry, seed: int = 0, dtype: torch.dtype | None = None) -> FrozenBlock:
    """What ``--block SOURCE`` says: a block file, or the word ``random``.

    Args:
        source: a file written by ``monai-llmboost extract``, or ``"random"``; or a geometry, for random weights.
        seed: seed of a random block.
        dtype: dtype to keep the weights in.
    """
    if isinstance(source, BlockGeometry) or source == "random":
        return random_block(source, seed, dtype)
    return load_block(source, dtype)


def block_width(source: str | Path | BlockGeometry) -> int:
    """Features of a token in what ``--block SOURCE`` says, read from the header alone."""
    if isinstance(source, BlockGeometry):
        return source.width
    return (
        SMALL_GEOMETRY.width if source == "random" else BlockGeometry.from_json(read_header(source)["geometry"]).width
    )
