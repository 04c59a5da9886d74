# SPDX-License-Identifier: Apache-2.0
"""Extraction of layers of a language model to a block file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from monai_llmboost.llm.block_file import is_block_file, read_block, read_header, write_block
from monai_llmboost.llm.donor.checkpoint import parse_layers, read_layers
from monai_llmboost.llm.frozen import FrozenBlock
from monai_llmboost.llm.paths import check_new_block_file
from monai_llmboost.llm.quantise import check_bits, quantise_layers
from monai_llmboost.llm.self_tests import self_test


def extract_block(
    model: str | Path,
    out: str | Path,
    layer: int | str | Sequence[int] = -1,
    revision: str | None = None,
    overwrite: bool = False,
    bits: int = 16,
    salient: float = 0.0,
) -> bool:
    """Extract layers of a language model to one file, unless the file already contains them.

    Args:
        model: see :func:`monai_llmboost.llm.read_layers`.
        out: the file to write, ending in ``.safetensors``; an error leaves no partial file.
        layer: see :func:`monai_llmboost.llm.read_layers`.
        revision: branch, tag or commit of a hub id.
        overwrite: replace an existing file.
        bits: bits of a weight of the matrices in the file; 16 keeps the donor's dtype; 8, 6, 5, 4: native models.
        salient: share of the input channels of each matrix that stay in 16 bits if ``bits`` is lower, see
            :func:`monai_llmboost.llm.quantise_layers`.

    Returns:
        Whether the file was written. It is not written if it already contains these layers in these bits. For a folder
        the weights are compared; for a hub id, its name and the given revision.

    Raises:
        FileExistsError: ``out`` contains other layers or bits and ``overwrite`` is False; or it is not a block file
            (such a file is never overwritten).
        ValueError: the layers cannot be run on their own, see ``self_test``; or not be stored in these bits.
        Everything that ``read_layers`` raises.
    """
    out = Path(out)
    check_bits(bits, salient)
    check_new_block_file(out)
    if out.exists() and not is_block_file(out):
        raise FileExistsError(f"{out} exists already and is no block file: choose another --out, or remove it")
    if out.exists() and not overwrite:
        if _holds(out, model, layer, revision, bits, salient):
            return False
        raise FileExistsError(
            f"{out} exists already and holds other layers or bits: choose another --out, or give --overwrite"
        )
    donor = read_layers(model, layer, revision)
    # The range of float16 is too narrow for some layers that run correctly in bfloat16 or float32.
    has_float16 = any(tensor.dtype == torch.float16 for one in donor.layers for tensor in one.tensors.values())
    dtype = torch.bfloat16 if has_float16 else None
    self_test(FrozenBlock(donor, dtype, known_fingerprint="not yet known"), donor.name)
    if bits == 16:
        write_block(donor, out, revision or "", overwrite)
        return True
    quantised = quantise_layers(donor, bits, salient)
    self_test(FrozenBlock(quantised.donor, dtype, known_fingerprint="not yet known"), quantised.donor.name)
    write_block(quantised, out, revision or "", overwrite)
    return True


def _holds(
    file: Path, model: str | Path, layer: int | str | Sequence[int], revision: str | None, bits: int, salient: float
) -> bool:
    """Return whether a block file equals what would be written; for a hub id, without a request to the hub."""
    try:
        held, header = read_block(file), read_header(file)
        if (held.bits, float(header.get("salient", 0))) != (bits, salient):
            return False
        if Path(model).exists():
            return read_layers(model, layer, revision).fingerprint == header.get("source", held.fingerprint)
        wanted = parse_layers(layer, held.num_layers)
    except (ValueError, OSError):
        return False
    same = held.donor == str(model) and [one.index for one in held.layers] == wanted
    return same and (header["asked"] == (revision or "") or held.revision == revision)
