# SPDX-License-Identifier: Apache-2.0
"""Check files against the digests published with a model; safetensors, GGUF and JSON contain no checksum themselves.

The hub's cache names each file by its digest, `hf download --local-dir` records digests in its metadata, and some
models come with a checksum file. Without any of these, damaged bytes inside such a file cannot be detected.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from monai_llmboost.llm.donor.tensor_files import damaged_error

# Larger files are not hashed, because that would read them whole.
LARGEST = 4 << 30
LISTS = ("SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "checksums.sha256", "checklist.chk", "MD5SUMS")
LISTED = re.compile(r"([0-9a-f]{64}|[0-9a-f]{32})\s+[ *]?(?:\./)?(\S.*?)\s*", re.IGNORECASE)
ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256"}  # by the number of hexadecimal digits
CHUNK = 1 << 20


def check_digest(path: Path) -> None:
    """Check a file against its published digests, if there are any; raise ValueError if one differs."""
    status = path.stat()
    if status.st_size > LARGEST:
        return
    for digest, source in _find_digests(path):
        algorithm = ALGORITHMS[len(digest)]
        # 40 digits are a git blob id (with a header), or on some mirrors the sha1 of the content alone.
        before = [b"blob %d\0" % status.st_size, b""] if algorithm == "sha1" else [b""]
        if digest.lower() not in [_compute_digest(path, algorithm, first, status.st_mtime_ns) for first in before]:
            raise damaged_error(path.name, f"its {algorithm} digest differs from the one in {source}")


def _find_digests(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each published digest of a file, with its source."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", blob.name):
        yield blob.name, "the hub's cache (its file name)"
    note = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    if note.is_file():
        _, etag, noted, *_ = [*note.read_text(errors="replace").split(), "", "", ""]
        # A file modified after the download is no longer the downloaded one.
        if re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", etag) and path.stat().st_mtime <= _parse_seconds(noted) + 1:
            yield etag, "the download metadata"
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
    """Return the hex digest of ``before`` followed by the file; ``modified`` is only a key of the cache."""
    digest = hashlib.new(algorithm, before, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
