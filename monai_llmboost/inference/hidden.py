# SPDX-License-Identifier: Apache-2.0
"""Hidden names: salted hashes of cases, and messages without file names."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from monai_llmboost.data import Scan, SkippedFile

# Hashed names of cases.
HASHED = re.compile(r"case-[0-9a-f]{16}")
# Replacement for file names in messages.
A_FILE = "(a file)"


def hashed(text: str, salt: str) -> str:
    """Return the hash that replaces a name; it cannot be computed without the salt."""
    return f"case-{hmac.new(salt.encode(), text.encode(errors='surrogateescape'), hashlib.sha256).hexdigest()[:16]}"


class HiddenNames:
    """Hides the names of cases and of all files of a run, which may contain names of patients.

    In messages, every name and path of a found file is replaced.

    Args:
        salt: a secret text.
        scans: all scans that were found.
        skipped: all other files.

    Example:
        >>> hidden = HiddenNames("pepper", [], [SkippedFile(Path("in/Doe.txt"), "a text file")])
        >>> hidden.text("cannot read Doe.txt")
        'cannot read (a file)'
    """

    def __init__(self, salt: str, scans: Sequence[Scan], skipped: Sequence[SkippedFile]) -> None:
        self.salt = salt
        files = (*(file for scan in scans for file in scan.files), *(file.path for file in skipped))
        self._names = set(_names(files))
        self._lengths = sorted({len(name) for name in self._names}, reverse=True)
        self._known: dict[str, str] = {}  # cache, because many files have the same reason

    def scan(self, scan: Scan) -> Scan:
        """Return a scan with its hash as the name, without UID, and without names in its messages."""
        return replace(
            scan,
            name=hashed(scan.name, self.salt),
            series_uid="",
            warnings=tuple(map(self.text, scan.warnings)),
            refused=self.text(scan.refused),
        )

    def skipped(self, file: SkippedFile) -> SkippedFile:
        """Return a skipped file with its hash as the name, without names in its reason."""
        return SkippedFile(Path(hashed(str(file.path), self.salt)), self.text(file.reason))

    def text(self, text: str) -> str:
        """Return a text with :data:`A_FILE` instead of each name."""
        if text not in self._known:
            self._known[text] = "".join(self._parts(text))
        return self._known[text]

    def _parts(self, text: str) -> Iterable[str]:
        position = 0
        while position < len(text):
            end = self._end_of_name(text, position)
            yield A_FILE if end else text[position]
            position = end or position + 1

    def _end_of_name(self, text: str, start: int) -> int:
        """Return the end of the longest name that begins at ``start``; 0 if there is none."""
        if start and _is_word_character(text[start - 1]):
            return 0
        for length in self._lengths:
            end = start + length
            if text[start:end] in self._names and not _is_word_character(text[end : end + 1]):
                return end
        return 0


def _names(files: Iterable[Path]) -> Iterable[str]:
    """Yield all names and paths of files that may occur in messages, also with joined spaces."""
    for file in files:
        paths = [str(path) for path in (file, file.absolute(), file.parent, file.parent.absolute())]
        # Paths without "/" are skipped, because a folder such as "in" is a word of many messages.
        for name in (file.name, *(path for path in paths if "/" in path.strip("/"))):
            yield name
            yield " ".join(name.split())


def _is_word_character(character: str) -> bool:
    return character.isalnum() or character == "_"
