# SPDX-License-Identifier: Apache-2.0
"""Digests by which a file, or a value of a config, is known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


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
