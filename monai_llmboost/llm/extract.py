# SPDX-License-Identifier: Apache-2.0
"""Layers of a language model into a block file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from monai_llmboost.llm.block_file import is_block_file, read_block, read_header, write_block
from monai_llmboost.llm.donor.checkpoint import parse_layers, read_layers
from monai_llmboost.llm.frozen import FrozenBlock
from monai_llmboost.llm.self_test import self_test


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
        out: the file to write, ending in ``.safetensors``; an error leaves nothing.
        layer: see :func:`monai_llmboost.llm.read_layers`.
        revision: branch, tag or commit of a hub id.
        overwrite: replace an existing file.

    Returns:
        Whether the file was written; not if it already holds these layers of this model: of a folder the weights are
        compared, of a hub id its name and the given revision.

    Raises:
        FileExistsError: ``out`` exists, holds other layers, and ``overwrite`` is False; or is no block file,
            which is never overwritten.
        ValueError: the layers cannot be run on their own; see ``self_test``.
        Everything that ``read_layers`` raises.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"{out.name!r} does not end in .safetensors: give --out {out.with_suffix('.safetensors')}")
    if out.is_dir():
        raise ValueError(f"{out} is a folder, not the file to write: give --out {out}/block.safetensors")
    if out.exists() and not is_block_file(out):
        raise FileExistsError(f"{out} exists already and is no block file: choose another --out, or remove it")
    if out.exists() and not overwrite:
        if _holds(out, model, layer, revision):
            return False
        raise FileExistsError(f"{out} exists already and holds other layers: choose another --out, or give --overwrite")
    donor = read_layers(model, layer, revision)
    # Float16 has too narrow a range for some layers, which are all right in the dtypes that blocks are run in.
    has_float16 = any(tensor.dtype == torch.float16 for one in donor.layers for tensor in one.tensors.values())
    dtype = torch.bfloat16 if has_float16 else None
    self_test(FrozenBlock(donor, dtype, known_fingerprint="not yet known"), donor.name)
    write_block(donor, out, revision or "", overwrite)
    return True


def _holds(file: Path, model: str | Path, layer: int | str | Sequence[int], revision: str | None) -> bool:
    """Return whether a block file is what would be written; of a hub id without asking the hub."""
    try:
        held, header = read_block(file), read_header(file)
        if Path(model).exists():
            return read_layers(model, layer, revision).fingerprint == held.fingerprint
        wanted = parse_layers(layer, held.num_layers)
    except (ValueError, OSError):
        return False
    same = held.donor == str(model) and [one.index for one in held.layers] == wanted
    return same and (header["asked"] == (revision or "") or held.revision == revision)
