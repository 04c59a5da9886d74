# SPDX-License-Identifier: Apache-2.0
"""Digests that identify a file, tensors, or a value of a config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def files_digest(paths: Iterable[Path]) -> str:
    """Return the digest of one file, or of the sorted digests of several, so that their names do not matter."""
    digests = sorted(map(file_digest, paths))
    return digests[0] if len(digests) == 1 else text_digest(digests)


def text_digest(value: Any) -> str:
    """Return the sha256 of a value of plain JSON types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of every tensor's name, dtype, shape and bytes (a meta tensor has none), in hex digits."""
    import torch  # the rest of this file is used without it

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
