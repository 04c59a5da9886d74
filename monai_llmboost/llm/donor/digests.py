# SPDX-License-Identifier: Apache-2.0
"""Digests that were published with a model's files and lie next to them; safetensors, GGUF and JSON hold none inside.

The hub's cache names each file by its digest, a folder that `hf download --local-dir` made notes them, and some models
come with a list. Where there is none of these, damage inside such a file cannot be seen.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from monai_llmboost.llm.donor.tensor_files import damaged_error

# Larger files are not read whole to have their digest.
LARGEST = 4 << 30
LISTS = ("SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "checksums.sha256", "checklist.chk", "MD5SUMS")
LISTED = re.compile(r"([0-9a-f]{64}|[0-9a-f]{32})\s+[ *]?(?:\./)?(\S.*?)\s*", re.IGNORECASE)
ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256"}  # by the number of hexadecimal digits
CHUNK = 1 << 20


def check_digest(path: Path) -> None:
    """Raise ValueError if a file does not have the digest that was published with it; without one, do nothing."""
    status = path.stat()
    if status.st_size > LARGEST:
        return
    for digest, source in _find_digests(path):
        algorithm = ALGORITHMS[len(digest)]
        # Of 40 digits it is the one that git has of a file; of some mirrors that of the content alone.
        before = [b"blob %d\0" % status.st_size, b""] if algorithm == "sha1" else [b""]
        if digest.lower() not in [_compute_digest(path, algorithm, first, status.st_mtime_ns) for first in before]:
            raise damaged_error(path.name, f"it does not have the {algorithm} digest in {source}")


def _find_digests(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each digest that is known of a file, with where it stands."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", blob.name):
        yield blob.name, "its name in the hub's cache"
    note = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    if note.is_file():
        _, etag, noted, *_ = [*note.read_text(errors="replace").split(), "", "", ""]
        # What was written after the download is not what was downloaded.
        if re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", etag) and path.stat().st_mtime <= _parse_seconds(noted) + 1:
            yield etag, "what the download noted"
    for name in LISTS:
        if (path.parent / name).is_file():
            for line in (path.parent / name).read_text(errors="replace").splitlines():
                if (match := LISTED.fullmatch(line)) and match[2] == path.name:
                    yield match[1], name


def _parse_seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


@lru_cache(maxsize=64)
def _compute_digest(path: Path, algorithm: str, before: bytes, modified: int) -> str:
    """Return the digest of some bytes and a file behind them, hexadecimal; once for each state of it."""
    digest = hashlib.new(algorithm, before, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
