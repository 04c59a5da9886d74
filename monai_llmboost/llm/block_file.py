# SPDX-License-Identifier: Apache-2.0
"""Layers <-> one small .safetensors file with their origin in the header, and the blocks made from it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from monai_llmboost.llm.donor.checkpoint import layers_of, read_layers
from monai_llmboost.llm.frozen import SMALL_GEOMETRY, FrozenBlock
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import DonorLayers, Layer, digest_of, random_layer
from monai_llmboost.llm.self_test import self_test

FORMAT = "monai-llmboost block 3"
# The small donor that comes with the package; its card lies beside it.
EMBEDDED = Path(__file__).parent / "embedded" / "tiny-english.safetensors"


def extract_block(
    model: str | Path,
    out: str | Path,
    layer: int | str | Sequence[int] = -1,
    revision: str | None = None,
    overwrite: bool = False,
) -> bool:
    """Cut layers out of a language model and write them to one file, unless it is there already.

    Args:
        model: see :func:`monai_llmboost.llm.read_layers`.
        out: the file to write, ending in ``.safetensors``; written whole or not at all.
        layer: see :func:`monai_llmboost.llm.read_layers`.
        revision: branch, tag or commit of a hub id.
        overwrite: replace a file that is there.

    Returns:
        Whether the file was written; not if it already holds these layers of this model, which of a folder the weights
        tell, and of a hub id its name and the revision that was asked for.

    Raises:
        FileExistsError: ``out`` is there, holds something else, and ``overwrite`` was not asked for; or is no block
            file, which is never overwritten.
        ValueError: the layers cannot be run on their own; see ``self_test``.
        Everything that ``read_layers`` raises.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"expected an output name that ends in .safetensors, got {out.name!r}")
    if out.is_dir():
        raise ValueError(f"expected a file name for the block, {out} is a folder: give --out {out}/block.safetensors")
    if out.exists() and not _is_block(out):
        raise FileExistsError(f"{out} is there already and is no block file: choose another --out, or remove it")
    if out.exists() and not overwrite:
        if _holds(out, model, layer, revision):
            return False
        raise FileExistsError(
            f"{out} is there already and holds something else: choose another --out, or give --overwrite"
        )
    donor = read_layers(model, layer, revision)
    # Float16 has too narrow a range for some layers, which are all right in the dtypes that blocks are run in.
    halves = any(tensor.dtype == torch.float16 for one in donor.layers for tensor in one.tensors.values())
    dtype = torch.bfloat16 if halves else None
    self_test(FrozenBlock(donor, dtype, known_fingerprint="not yet known"), donor.name)
    write_block(donor, out, revision or "", overwrite)
    return True


def _holds(file: Path, model: str | Path, layer: int | str | Sequence[int], revision: str | None) -> bool:
    """Whether a block file is what would be written; of a hub id without asking the hub."""
    try:
        held, header = read_block(file), read_header(file)
        if Path(model).exists():
            return read_layers(model, layer, revision).fingerprint == held.fingerprint
        wanted = layers_of(layer, held.num_layers)
    except (ValueError, OSError):
        return False
    same = held.donor == str(model) and [one.index for one in held.layers] == wanted
    return same and (header["asked"] == (revision or "") or held.revision == revision)


def write_block(donor: DonorLayers, out: Path, asked: str = "", overwrite: bool = True) -> None:
    """Write layers with their numbers, origin and fingerprint (sha256) in the header, atomically.

    Args:
        donor: the layers.
        out: the file.
        asked: the branch, tag or commit that was asked for, whose commit ``donor.revision`` is.
        overwrite: replace a file that is there.

    Raises:
        OSError: the file cannot be written (FileExistsError: it is there); what was there stays.
    """
    header = {
        "format": FORMAT,
        "geometries": json.dumps([json.loads(one.geometry.to_json()) for one in donor.layers if one.geometry]),
        "config": donor.layers[0].config,
        "donor": donor.donor,
        "layers": json.dumps([one.index for one in donor.layers]),
        "num_layers": str(donor.num_layers),
        "width": str(donor.width),
        "num_weights": str(donor.num_weights),
        "revision": donor.revision,
        "asked": asked,
        "licence": donor.licence,
        "quantised": donor.quantised,
        "fingerprint": donor.fingerprint,
        "final_norm": digest_of(donor.final_norm),
    }
    header["header"] = _digest(header)
    tensors = {f"{i}.{name}": t for i, one in enumerate(donor.layers) for name, t in one.tensors.items()}
    tensors |= {f"final_norm.{name}": tensor for name, tensor in donor.final_norm.items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    except OSError as error:
        raise OSError(f"cannot write into {out.parent} ({error.strerror}): give another --out") from error
    os.close(handle)
    try:
        save_file({key: value.contiguous() for key, value in tensors.items()}, name, metadata=header)
        Path(name).chmod(0o666 & ~_umask())
        if overwrite:
            Path(name).replace(out)
        else:
            out.hardlink_to(name)  # fails where another process has just written it
    except SafetensorError as error:  # how it reports a full disk, among others
        raise OSError(f"cannot write {out} ({error}): free some space there, or give another --out") from error
    finally:
        Path(name).unlink(missing_ok=True)


def _is_block(file: Path) -> bool:
    """Whether a file was written by :func:`write_block`, of any version."""
    try:
        with safe_open(file, framework="pt") as content:
            return (content.metadata() or {}).get("format", "").startswith("monai-llmboost block")
    except (SafetensorError, OSError):
        return False


def _digest(header: dict[str, str]) -> str:
    """sha256 (hex) over all of a header but this."""
    said = {key: value for key, value in header.items() if key != "header"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_header(file: str | Path) -> dict[str, str]:
    """The header that :func:`write_block` wrote: what the layers are, donor, revision, licence, fingerprint.

    Args:
        file: the block file, or the word ``"embedded"``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a block file.
    """
    path = _path(file)
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
    if not header.get("format", "").startswith("monai-llmboost block"):
        raise ValueError(
            f"expected a file written by `monai-llmboost extract`, got another safetensors file: {path}. "
            "Extract one layer of the model first"
        )
    if header["format"] != FORMAT:
        raise ValueError(f"expected a block file of this version, {path} is of another: extract it again")
    if header.get("header") != _digest(header):
        raise ValueError(
            f"the header of {path} is not the one that was written: the file was altered; extract it again"
        )
    return header


def _path(file: str | Path) -> Path:
    return EMBEDDED if file == "embedded" else Path(file)


def read_block(file: str | Path) -> DonorLayers:
    """The layers in a file that :func:`write_block` wrote, or in the one that comes with the package (``"embedded"``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a block file, or altered since it was extracted.
    """
    header = read_header(file)
    with safe_open(_path(file), framework="pt") as content:
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
    geometries = json.loads(header["geometries"])
    altered = f"the weights in {file} are not those that were extracted: the file was altered; extract it again"
    try:
        layers = tuple(
            Layer(
                part,
                BlockGeometry.from_json(json.dumps(geometries[i])) if geometries else None,
                header["config"],
                index,
            )
            for i, (part, index) in enumerate(zip(parts, indices))
        )
    except ValueError as error:  # a name or a shape
        raise ValueError(altered) from error
    numbers = header["donor"], int(header["num_layers"]), header["revision"], header["licence"]
    donor = DonorLayers(layers, *numbers, norm, header.get("quantised", ""))
    if (donor.fingerprint, digest_of(norm)) != (header["fingerprint"], header["final_norm"]):
        raise ValueError(altered)
    return donor


def load_block(file: str | Path, dtype: torch.dtype | None = None, **options: Any) -> FrozenBlock:
    """The frozen block in a file written by ``monai-llmboost extract``, after its self-test: the ``pretrained`` arm.

    Args:
        file: the block file; ``"embedded"`` for the small one that comes with the package.
        dtype: dtype to keep the weights in; ``None`` keeps the donor's.
        options: ``final_norm``, ``causal``, ``rotary`` as in :class:`FrozenBlock`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a block file, altered since it was extracted, or failing its self-test.
    """
    donor = read_block(file)
    block = FrozenBlock(donor, dtype, known_fingerprint=read_header(file)["fingerprint"], **options)
    self_test(block, donor.name, in_order=block.in_order)
    return block


def random_block(
    like: str | Path | BlockGeometry = SMALL_GEOMETRY,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> FrozenBlock:
    """A frozen block of random weights: the ``random`` arm, the control for what pre-training brings.

    Args:
        like: a block file, whose geometry and scale (mean and standard deviation of each tensor) are matched; a
            geometry; or the word ``"random"`` for a small block.
        seed: seed of the weights; no other random number is touched.
        dtype: dtype to keep the weights in; ``None`` is float32.
        options: ``final_norm``, ``causal``, ``rotary`` as in :class:`FrozenBlock`.
    """
    if isinstance(like, BlockGeometry) or like == "random":
        donor = random_layer(like if isinstance(like, BlockGeometry) else SMALL_GEOMETRY, seed)
    else:
        donor = read_block(like).random(seed)
    block = FrozenBlock(donor, dtype, **options)
    self_test(block, donor.name, in_order=block.in_order)
    return block


def frozen_block(
    source: str | Path | BlockGeometry,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> FrozenBlock:
    """What ``--block SOURCE`` says: a block file, or the words ``embedded`` or ``random``.

    Args:
        source: a file written by ``monai-llmboost extract``; ``"embedded"`` for the one that comes with the package;
            ``"random"`` or a geometry, for random weights.
        seed: seed of a random block.
        dtype: dtype to keep the weights in.
        options: ``final_norm``, ``causal``, ``rotary`` as in :class:`FrozenBlock`.
    """
    if isinstance(source, BlockGeometry) or source == "random":
        return random_block(source, seed, dtype, **options)
    return load_block(source, dtype, **options)


def block_width(source: str | Path | BlockGeometry) -> int:
    """Features of a token in what ``--block SOURCE`` says, read from the header alone."""
    if isinstance(source, BlockGeometry):
        return source.width
    if source == "random":
        return SMALL_GEOMETRY.width
    return int(read_header(source)["width"])
